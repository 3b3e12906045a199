"""Post-processing of the `semantic` head: the semantic map of the original image."""

from __future__ import annotations

from utils.core.contracts import Decoded, EvalSettings, HeadSpec, Results
from utils.ops.semantic_maps import class_maps
from utils.postprocess import POSTPROCESS


@POSTPROCESS.register("semantic")
class SemanticPostProcess:
    """Interpolate logits at the pixels of the original image and take the arg-max.

    Confidence threshold and `settings.classes` have no effect. Logits are interpolated once, directly from the
    resolution of the head, where multiyolov5 resizes them to the network input and then to the original image.

    Args:
        spec: Description of the head.
        settings: Ignored.
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.spec, self.settings = spec, settings

    def __call__(self, decoded: Decoded, results: list[Results]) -> None:
        """Set `semantic` of each result.

        Args:
            decoded: `logits` (B, C, h, w), whose corners are aligned with those of the network input.
            results: One per image, changed in place.
        """
        logits = decoded["logits"]
        if len(logits) != len(results):
            raise ValueError(f"expected one result per image, got {len(logits)} images and {len(results)} results")
        if logits.shape[1] != self.spec.num_classes:
            raise ValueError(
                f"head {self.spec.name!r}: expected logits of {self.spec.num_classes} classes, got {logits.shape[1]}"
            )
        maps = class_maps(logits, [result.info.geometry for result in results])
        for result, classes in zip(results, maps, strict=True):
            result.semantic = classes
