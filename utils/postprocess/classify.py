"""Class probabilities of whole images."""

from __future__ import annotations

from utils.core.contracts import Decoded, EvalSettings, HeadSpec, Results
from utils.postprocess import POSTPROCESS


@POSTPROCESS.register("classify")
class ClassifyPostProcess:
    """Hands each image its row of probabilities."""

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.spec, self.settings = spec, settings

    def __call__(self, decoded: Decoded, results: list[Results]) -> None:
        """Fill `probabilities` (C,) of `results`, one per image."""
        probabilities = decoded["probabilities"]
        if len(probabilities) != len(results):
            raise ValueError(f"{len(probabilities)} images were predicted, {len(results)} results are to be filled")
        for row, result in zip(probabilities, results, strict=True):
            result.probabilities = row
