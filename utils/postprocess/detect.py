"""From decoded predictions of the `detect` head to boxes in the original image."""

from __future__ import annotations

from torch import Tensor

from utils.core.contracts import Decoded, EvalSettings, HeadSpec, Results
from utils.ops.boxes import to_original
from utils.ops.nms import batched_nms
from utils.postprocess import POSTPROCESS


@POSTPROCESS.register("detect")
class DetectPostProcess:
    """Suppress, map back and clip. Reads `decoded["predictions"]`, (B, N, 5 + C) in pixels of the network's input."""

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.spec, self.settings = spec, settings

    def __call__(self, decoded: Decoded, results: list[Results]) -> None:
        """Fill boxes, scores, classes and candidates_cut of `results`, one per image."""
        predictions = decoded["predictions"]
        if len(predictions) != len(results):
            raise ValueError(f"{len(predictions)} images were predicted, {len(results)} results are to be filled")
        kept = batched_nms(predictions, self.spec.num_classes, self.settings)
        for rows, cut, result in zip(kept.rows, kept.cut, results, strict=True):
            fill_boxes(result, rows, cut)
            if self.settings.single_class and result.classes is not None:
                result.classes.zero_()


def fill_boxes(result: Results, rows: Tensor, cut: bool) -> None:
    """Put (n, 6 or more) rows of x1, y1, x2, y2, score, class in network pixels into `result`."""
    result.boxes = to_original(rows[:, :4], result.info.geometry)
    result.scores = rows[:, 4]
    result.classes = rows[:, 5].long()
    result.candidates_cut = cut
