"""From decoded predictions of the `segment` head to boxes in the original image and their masks."""

from __future__ import annotations

from utils.core.contracts import Decoded, EvalSettings, HeadSpec, Results
from utils.ops.masks import PrototypeMasks, prototype_masks
from utils.ops.nms import batched_nms
from utils.postprocess import POSTPROCESS
from utils.postprocess.detect import fill_boxes


@POSTPROCESS.register("segment")
class SegmentPostProcess:
    """Suppress, map back, and mix every box's mask out of the prototypes.

    Reads `decoded["predictions"]`, (B, N, 5 + C + M) in pixels of the network's input, and `decoded["prototypes"]`,
    (B, M, mh, mw). Coefficients count times the objectness, as suppression leaves them (behaviour.md 2.3). With
    `settings.fine_masks` larger masks can be made from the results, else only those of the prototypes' size are there.
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.spec, self.settings = spec, settings

    def __call__(self, decoded: Decoded, results: list[Results]) -> None:
        """Fill boxes, scores, classes, masks, candidates_cut and on request fine_masks of `results`, one per image."""
        predictions, prototypes = decoded["predictions"], decoded["prototypes"]
        if not len(predictions) == len(prototypes) == len(results):
            raise ValueError(f"{len(predictions)} images were predicted, {len(results)} results are to be filled")
        kept = batched_nms(predictions, self.spec.num_classes, self.settings)
        for rows, cut, maps, result in zip(kept.rows, kept.cut, prototypes, results, strict=True):
            fill_boxes(result, rows, cut)
            if self.settings.single_class and result.classes is not None:
                result.classes.zero_()
            boxes, coefficients, geometry = rows[:, :4], rows[:, 6:], result.info.geometry
            maps = maps.to(rows.dtype)
            result.masks = prototype_masks(maps, coefficients, boxes, geometry.network_hw)
            if self.settings.fine_masks:
                result.fine_masks = PrototypeMasks(maps, coefficients, boxes, geometry, self.settings.native_masks)
