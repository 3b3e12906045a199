"""Binary cross-entropy with optional focal weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

FOCAL_ALPHA = 0.25  # weight of positives, Lin et al. 2017 (arXiv:1708.02002), section 5.1
_EPS = 1e-12


def binary_focal_loss(
    logits: Tensor, targets: Tensor, positive_weight: Tensor | None = None, gamma: float = 0.0
) -> Tensor:
    """Compute the element-wise binary cross-entropy of logits, with focal weights if `gamma` > 0.

    Args:
        logits: Tensor of any shape.
        targets: Probabilities in [0, 1], shaped like `logits`.
        positive_weight: Factor of the positive part, a scalar or one value per element of the last dimension.
        gamma: Exponent of the focal loss (arXiv:1708.02002); 0 is the plain cross-entropy.

    Returns:
        The losses, shaped like `logits`.
    """
    loss = binary_cross_entropy_with_logits(logits, targets, pos_weight=positive_weight, reduction="none")
    return loss * focal_weight(logits, targets, gamma) if gamma > 0 else loss


def focal_weight(logits: Tensor, targets: Tensor, gamma: float, alpha: float = FOCAL_ALPHA) -> Tensor:
    """Compute the focal weights alpha_t (1 - p_t)^gamma, generalised to soft targets t.

    With p = sigmoid(logit): alpha_t = alpha t + (1 - alpha)(1 - t) and p_t = p t + (1 - p)(1 - t).
    """
    probability = torch.sigmoid(logits)
    error = targets + probability - 2 * targets * probability  # 1 - p_t
    # The lower limit keeps the gradient of the power finite for perfect predictions.
    return (1 - alpha + (2 * alpha - 1) * targets) * error.clamp(min=_EPS) ** gamma
