"""Unstructured magnitude sparsity: the smallest weights of every convolution are set to zero."""

from __future__ import annotations

import copy

import torch
from torch import nn

from models.network import Network


def sparsify(network: Network, fraction: float) -> Network:
    """Copy a network and set a fraction of the smallest weights of each convolution to zero."""
    sparse = copy.deepcopy(network)
    with torch.no_grad():
        for module in sparse.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                flat = module.weight.reshape(-1)
                count = round(fraction * flat.numel())
                smallest = flat.abs().argsort(stable=True)[:count]
                flat = flat.clone()
                flat[smallest] = 0
                module.weight.copy_(flat.view_as(module.weight))
    return sparse


def zero_fraction(network: Network) -> float:
    """Compute the fraction of zeros among the weights of all convolutions."""
    weights = [m.weight for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / max(sum(weight.numel() for weight in weights), 1)
