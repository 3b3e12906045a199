"""Post-processing of the `segment` head: NMS, boxes in pixels of the original image, and instance masks."""

from __future__ import annotations

from torch import Tensor

from utils.core.contracts import Decoded, EvalSettings, HeadSpec, Results
from utils.ops.batch_masks import batch_prototype_masks
from utils.ops.masks import PrototypeMasks, prototype_masks
from utils.ops.nms import batched_nms, padded_nms
from utils.postprocess import POSTPROCESS
from utils.postprocess.detect import fill_boxes


@POSTPROCESS.register("segment")
class SegmentPostProcess:
    """Non-maximum suppression and assembly of masks from prototypes.

    Args:
        spec: Description of the head.
        settings: Thresholds and limits of NMS; `fine_masks` adds masks of higher resolution to the results.
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.spec, self.settings = spec, settings

    def __call__(self, decoded: Decoded, results: list[Results]) -> None:
        """Set `boxes`, `scores`, `classes`, `masks`, `candidates_cut` and, if enabled, `fine_masks` of each result.

        Args:
            decoded: `predictions` (B, N, 5 + C + M), as in `DetectPostProcess` with M mask coefficients, and
                `prototypes` (B, M, mh, mw).
            results: One per image, changed in place.
        """
        predictions, prototypes = decoded["predictions"], decoded["prototypes"]
        if not len(predictions) == len(prototypes) == len(results):
            raise ValueError(f"expected one result per image, got {len(predictions)} images and {len(results)} results")
        if predictions.is_cuda:
            self._batch_at_once(predictions, prototypes, results)
            return
        detections = batched_nms(predictions, self.spec.num_classes, self.settings)
        for rows, truncated, maps, result in zip(
            detections.rows, detections.truncated, prototypes, results, strict=True
        ):
            fill_boxes(result, rows, truncated, self.settings.single_class)
            maps = maps.to(rows.dtype)
            result.masks = prototype_masks(maps, rows[:, 6:], rows[:, :4], result.info.geometry.network_hw)
            self._fill_fine_masks(result, maps, rows)

    def _batch_at_once(self, predictions: Tensor, prototypes: Tensor, results: list[Results]) -> None:
        """Process all images with few launches; masks are views of the padded ones of the batch."""
        detections = padded_nms(predictions, self.spec.num_classes, self.settings)
        rows, prototypes = detections.rows, prototypes.to(detections.rows.dtype)
        masks = batch_prototype_masks(prototypes, rows[..., 6:], rows[..., :4], results[0].info.geometry.network_hw)
        for image, (host_rows, truncated, result) in enumerate(
            zip(detections.host_rows, detections.truncated, results, strict=True)
        ):
            fill_boxes(result, host_rows, truncated, self.settings.single_class)
            result.batch_masks, result.masks = masks, masks[image, : len(host_rows)]
            self._fill_fine_masks(result, prototypes[image], rows[image, : len(host_rows)])

    def _fill_fine_masks(self, result: Results, maps: Tensor, rows: Tensor) -> None:
        if self.settings.fine_masks:
            geometry, native = result.info.geometry, self.settings.native_masks
            result.fine_masks = PrototypeMasks(maps, rows[:, 6:], rows[:, :4], geometry, native)
