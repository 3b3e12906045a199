"""Post-processing of the `classify` head: class probabilities of each image."""

from __future__ import annotations

from utils.core.contracts import Decoded, EvalSettings, HeadSpec, Results
from utils.postprocess import POSTPROCESS


@POSTPROCESS.register("classify")
class ClassifyPostProcess:
    """Assignment of class probabilities to the results.

    Args:
        spec: Description of the head.
        settings: Ignored.
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.spec, self.settings = spec, settings

    def __call__(self, decoded: Decoded, results: list[Results]) -> None:
        """Set `probabilities` of each result, on the CPU.

        Args:
            decoded: `probabilities` (B, C).
            results: One per image, changed in place.
        """
        probabilities = decoded["probabilities"].cpu()
        if len(probabilities) != len(results):
            raise ValueError(
                f"expected one result per image, got {len(probabilities)} images and {len(results)} results"
            )
        for row, result in zip(probabilities, results, strict=True):
            result.probabilities = row
