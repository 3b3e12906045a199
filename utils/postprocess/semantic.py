"""From decoded scores of the `semantic` head to the class of every pixel of the original image."""

from __future__ import annotations

from utils.core.contracts import Decoded, EvalSettings, HeadSpec, Results
from utils.ops.semantic_maps import class_map, original_grid
from utils.postprocess import POSTPROCESS


@POSTPROCESS.register("semantic")
class SemanticPostProcess:
    """Look the scores up at every pixel of the original and take the best class.

    Reads `decoded["logits"]`, (B, C, h, w), which cover the network's input corner on corner. No threshold matters, and
    `settings.classes` does not: every pixel gets the class that wins there. The scores are interpolated once, from the
    head's own resolution; multiyolov5 enlarges them to the network's size first and then again (behaviour.md 12.7).
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.spec, self.settings = spec, settings

    def __call__(self, decoded: Decoded, results: list[Results]) -> None:
        """Fill `semantic` of `results`, one per image."""
        logits = decoded["logits"]
        if len(logits) != len(results):
            raise ValueError(f"{len(logits)} images were predicted, {len(results)} results are to be filled")
        if logits.shape[1] != self.spec.num_classes:
            raise ValueError(f"scores of {logits.shape[1]} classes, the head has {self.spec.num_classes}")
        map_hw = (logits.shape[2], logits.shape[3])
        for scores, result in zip(logits, results, strict=True):
            result.semantic = class_map(scores, *original_grid(result.info.geometry, map_hw))
