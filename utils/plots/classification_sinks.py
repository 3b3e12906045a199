"""Where classes of whole images go as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.core.contracts import Frame, Results
from utils.plots.draw import class_lines
from utils.plots.prediction_sinks import TextSink


class ClassTextSink(TextSink):
    """One text file per image or frame: `probability name` of the five surest classes (behaviour.md 5.4)."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        super().__init__(folder)
        self.names = names

    def _lines(self, frame: Frame, results: Results) -> list[str]:
        return [] if results.probabilities is None else class_lines(results.probabilities.numpy(), self.names)
