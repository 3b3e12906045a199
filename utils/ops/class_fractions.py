"""Fraction of a semantic map that each class covers."""

from __future__ import annotations

import numpy as np

from utils.core.contracts import IGNORED_PIXEL


def class_fractions(semantic_map: np.ndarray) -> dict[int, float]:
    """Compute the fraction of the labelled pixels that each class covers.

    Args:
        semantic_map: (H, W) uint8 classes.

    Returns:
        Fractions of the classes that occur, in descending order; empty without labelled pixels.
    """
    counts = np.bincount(semantic_map.ravel(), minlength=IGNORED_PIXEL + 1)[:IGNORED_PIXEL]
    total = int(counts.sum())
    order = np.argsort(-counts, kind="stable")
    return {int(index): int(counts[index]) / total for index in order if counts[index]}
