"""How much of an image each class of pixels covers."""

from __future__ import annotations

import numpy as np

from utils.core.contracts import IGNORED_PIXEL


def class_fractions(classes: np.ndarray) -> dict[int, float]:
    """Return the share of the labelled pixels that each class of an (H, W) uint8 map covers, the largest first.

    The shares add up to one; a map without a labelled pixel has none.
    """
    counts = np.bincount(classes.ravel(), minlength=IGNORED_PIXEL + 1)[:IGNORED_PIXEL]
    total = int(counts.sum())
    order = np.argsort(-counts, kind="stable")
    return {int(index): int(counts[index]) / total for index in order if counts[index]}
