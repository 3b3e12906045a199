"""Appearance of semantic maps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SemanticStyle:
    """Appearance of semantic maps."""

    names: tuple[str, ...] = ()  # class names
    colours: tuple[tuple[int, int, int], ...] = ()  # RGB of the first classes, if the data set defines them
    opacity: float = 0.4  # weight of the colours
    legend: bool = True
