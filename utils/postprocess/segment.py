"""Post-processing of the `segment` head: NMS, boxes in pixels of the original image, and instance masks."""

from __future__ import annotations

from utils.core.contracts import Decoded, EvalSettings, HeadSpec, Results
from utils.ops.masks import PrototypeMasks, prototype_masks
from utils.ops.nms import batched_nms
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
        detections = batched_nms(predictions, self.spec.num_classes, self.settings)
        for rows, truncated, maps, result in zip(
            detections.rows, detections.truncated, prototypes, results, strict=True
        ):
            fill_boxes(result, rows, truncated, self.settings.single_class)
            boxes, coefficients, geometry = rows[:, :4], rows[:, 6:], result.info.geometry
            maps = maps.to(rows.dtype)
            result.masks = prototype_masks(maps, coefficients, boxes, geometry.network_hw)
            if self.settings.fine_masks:
                result.fine_masks = PrototypeMasks(maps, coefficients, boxes, geometry, self.settings.native_masks)
