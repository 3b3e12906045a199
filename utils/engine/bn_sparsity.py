"""L1 penalty on BatchNorm scales for channel pruning (Liu et al. 2017, Network Slimming, arXiv 1708.06519)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def add_bn_sparsity(network: nn.Module, optimizer: torch.optim.Optimizer, strength: float, images: float) -> None:
    """Add the gradient of an L1 penalty on all BatchNorm scales before every optimizer step.

    Args:
        network: Network with BatchNorm layers, synchronised ones included.
        optimizer: Optimizer that receives the hook.
        strength: Weight of the penalty relative to the mean loss per image.
        images: Images per optimizer step; losses are sums over them, so the penalty is scaled likewise.
    """
    norms = (module.weight for module in network.modules() if isinstance(module, _BatchNorm))
    scales = [scale for scale in norms if scale is not None and scale.requires_grad]

    @torch.no_grad()
    def add_gradient(*_: object) -> None:
        for scale in scales:
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=strength * images)

    optimizer.register_step_pre_hook(add_gradient)
