"""Plain magnitude sparsity: the smallest weights of every convolution become zero, wherever they stand."""

from __future__ import annotations

import copy

import torch
from torch import nn

from models.network import Network


def made_sparse(network: Network, share: float) -> Network:
    """Return a copy in which the `share` of each convolution's weights that are nearest to zero are zero."""
    sparse = copy.deepcopy(network)
    with torch.no_grad():
        for module in sparse.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                flat = module.weight.reshape(-1)
                count = round(share * flat.numel())
                smallest = flat.abs().argsort(stable=True)[:count]
                flat = flat.clone()
                flat[smallest] = 0
                module.weight.copy_(flat.view_as(module.weight))
    return sparse


def zero_share(network: Network) -> float:
    """Return how many of the convolutions' weights are zero, as a share."""
    weights = [m.weight for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / max(sum(weight.numel() for weight in weights), 1)
