"""Sink of whole-image classes as text files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.core.contracts import Frame, Results
from utils.plots.draw import class_lines
from utils.plots.prediction_sinks import TextSink


class ClassTextSink(TextSink):
    """Write a text file per image or frame: lines of `probability name` for the five most probable classes."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        super().__init__(folder)
        self.names = names

    def _lines(self, frame: Frame, results: Results) -> list[str]:
        return [] if results.probabilities is None else class_lines(results.probabilities.numpy(), self.names)
