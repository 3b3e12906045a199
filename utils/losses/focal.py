"""Cross-entropy of independent yes-or-no outputs, with the focal weight if wanted (behaviour.md 3.7)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

FOCAL_ALPHA = 0.25


def binary_focal_loss(
    logits: Tensor, targets: Tensor, positive_weight: Tensor | None = None, gamma: float = 0.0
) -> Tensor:
    """Return the cross-entropy of every element, shaped like `logits`.

    `targets` lie in [0, 1]. `positive_weight`, a scalar or one value per last dimension, multiplies the part of the
    positives. `gamma` > 0 adds the focal weight (arXiv 1708.02002) with alpha 0.25.
    """
    loss = binary_cross_entropy_with_logits(logits, targets, pos_weight=positive_weight, reduction="none")
    return loss * focal_weight(logits, targets, gamma) if gamma > 0 else loss


def focal_weight(logits: Tensor, targets: Tensor, gamma: float, alpha: float = FOCAL_ALPHA) -> Tensor:
    """Return (alpha t + (1 - alpha)(1 - t)) (1 - p_t)^gamma, where p_t is the probability given to the target."""
    probability = torch.sigmoid(logits)
    missed = targets + probability - 2 * targets * probability  # 1 - p_t
    # The floor keeps the power's gradient finite where an output is certain and right.
    return (1 - alpha + (2 * alpha - 1) * targets) * missed.clamp(min=1e-12) ** gamma
