"""Post-processing of the `detect` head: NMS, then boxes in pixels of the original image."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.core.contracts import Decoded, EvalSettings, HeadSpec, Results
from utils.ops.boxes import to_original
from utils.ops.nms import NmsResult, batched_nms, padded_nms
from utils.postprocess import POSTPROCESS


@POSTPROCESS.register("detect")
class DetectPostProcess:
    """Non-maximum suppression, followed by scaling and clipping to the original image.

    Args:
        spec: Description of the head.
        settings: Thresholds and limits of NMS.
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.spec, self.settings = spec, settings

    def __call__(self, decoded: Decoded, results: list[Results]) -> None:
        """Set `boxes`, `scores`, `classes` and `candidates_cut` of each result, on the CPU.

        Args:
            decoded: `predictions` (B, N, 5 + C): cx, cy, w, h in pixels of the network input, objectness, classes; or
                `end_to_end` (B, n, 6): x1, y1, x2, y2, score, class in descending order of score, which needs no NMS.
            results: One per image, changed in place.
        """
        if "end_to_end" in decoded:
            self._without_nms(decoded["end_to_end"], results)
            return
        predictions = decoded["predictions"]
        if len(predictions) != len(results):
            raise ValueError(f"expected one result per image, got {len(predictions)} images and {len(results)} results")
        if predictions.is_cuda:
            padded = padded_nms(predictions, self.spec.num_classes, self.settings)
            detections = NmsResult(padded.host_rows, padded.truncated)
        else:
            detections = batched_nms(predictions, self.spec.num_classes, self.settings)
        for rows, truncated, result in zip(detections.rows, detections.truncated, results, strict=True):
            fill_boxes(result, rows, truncated, self.settings.single_class)

    def _without_nms(self, detections: Tensor, results: list[Results]) -> None:
        """Select the rows above the confidence threshold, of the selected classes."""
        if len(detections) != len(results):
            raise ValueError(f"expected one result per image, got {len(detections)} images and {len(results)} results")
        for rows, result in zip(detections.cpu(), results, strict=True):
            wanted = rows[:, 4] > self.settings.confidence
            if self.settings.classes is not None:
                wanted &= torch.isin(rows[:, 5], rows.new_tensor(self.settings.classes))
            fill_boxes(result, rows[wanted][: self.settings.max_detections], False, self.settings.single_class)


def fill_boxes(result: Results, rows: Tensor, truncated: bool, single_class: bool) -> None:
    """Convert the detections of one image to its result, on the CPU.

    Args:
        result: Result to change in place.
        rows: (n, 6 or more) x1, y1, x2, y2 in pixels of the network input, score, class.
        truncated: Whether there were more candidates than NMS considers.
        single_class: Whether all detections count as class 0.
    """
    rows = rows.cpu()
    result.boxes = to_original(rows[:, :4], result.info.geometry)
    result.scores = rows[:, 4]
    classes = rows[:, 5].long()
    result.classes = classes.zero_() if single_class else classes
    result.candidates_cut = truncated
