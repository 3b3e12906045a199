"""Post-processing of panoptic maps: the merge of the results of a mask head and a semantic head."""

from __future__ import annotations

from utils.core.contracts import Decoded, EvalSettings, HeadSpec, Results
from utils.ops.panoptic import PanopticMerger
from utils.postprocess import POSTPROCESS


@POSTPROCESS.register("panoptic")
class PanopticPostProcess:
    """Merge instance masks and semantic map of each image; runs after the post-processing of both heads.

    Args:
        spec: Description of the panoptic maps, see `utils.ops.panoptic.panoptic_spec`.
        settings: Constants of the merge; without `fine_masks`, those of the results are dropped after the merge.
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.merge = PanopticMerger(spec.things, spec.names, settings.merge)
        self.settings = settings

    def __call__(self, decoded: Decoded, results: list[Results]) -> None:
        """Set `panoptic` of each result.

        Args:
            decoded: Unused, everything is in the results.
            results: One per image, on the CPU, with fine masks and a semantic map; changed in place.
        """
        for result in results:
            result.panoptic = self.merge(result)
            if not self.settings.fine_masks:
                result.fine_masks = None
