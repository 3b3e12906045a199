"""Push the factors of batch normalisation towards zero while training, so that channels can go (arXiv 1708.06519)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def add_slimming(network: nn.Module, optimizer: Any, strength: float, images: float) -> None:
    """Add the gradient of `strength` times the sum of all factors' sizes before every step of `optimizer`.

    Losses are sums over the `images` of an update, and so is this.
    """
    norms = (module.weight for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    factors = [factor for factor in norms if factor is not None and factor.requires_grad]

    @torch.no_grad()
    def push(*_: object) -> None:
        for factor in factors:
            if factor.grad is not None:
                factor.grad.add_(factor.sign(), alpha=strength * images)

    optimizer.register_step_pre_hook(push)
