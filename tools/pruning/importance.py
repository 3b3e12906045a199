"""Importance of channels by their weights, their BatchNorm scales, or gradients of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from models.network import Network
from tools.pruning.channel_groups import OUT, Group, Slice, is_depthwise

Measure = Callable[[nn.Module, Slice], Tensor]


def by_weights(network: Network, groups: Sequence[Group], power: int) -> list[Tensor]:
    """Compute the norm of all weights that are removed with a channel, relative to the mean of its group.

    The normalisation makes groups with large and small weights comparable (DepGraph, arXiv 2301.12900).

    Args:
        network: The network.
        groups: Groups of coupled channels.
        power: 1 for the L1 norm, 2 for the L2 norm.

    Returns:
        A (channels,) tensor per group.
    """
    modules = dict(network.named_modules())
    totals = [
        _sum_by_channel(modules, group, lambda m, part: _sum_per_channel(m, _weight(m).abs() ** power, part))
        for group in groups
    ]
    scores = [values.sqrt() if power == 2 else values for values in totals]
    return [values / values.mean().clamp(min=1e-12) for values in scores]


def by_batchnorm(network: Network, groups: Sequence[Group]) -> list[Tensor]:
    """Compute the mean BatchNorm scale of each channel (network slimming; Liu et al., arXiv 1708.06519).

    Groups without BatchNorm have the importance of their weights.

    Returns:
        A (channels,) tensor per group.
    """
    modules = dict(network.named_modules())
    norms = [[part for part in group.slices if isinstance(modules[part.module], nn.BatchNorm2d)] for group in groups]
    weight_scores = by_weights(network, groups, 2)
    totals = []
    for group, parts, weights in zip(groups, norms, weight_scores, strict=True):
        factors = _sum_by_channel(modules, Group(group.channels, tuple(parts)), lambda m, _: _weight(m).abs())
        totals.append(factors / len(parts) if parts else weights)
    return totals


class TaylorImportance:
    """Accumulator of the first-order change of the loss without a channel (Molchanov et al., arXiv 1906.10771).

    The change is the sum of weight times gradient over the scales and biases of the channel's BatchNorm layers, or over
    the weights of its convolutions where there are none. The squares of all batches are added.
    """

    def __init__(self, network: Network, groups: Sequence[Group]) -> None:
        self.network, self.groups = network, groups
        self.totals = [torch.zeros(group.channels, dtype=torch.float64) for group in groups]

    def add(self) -> None:
        """Add the current gradients of the network."""
        modules = dict(self.network.named_modules())
        for group, total in zip(self.groups, self.totals, strict=True):
            producers = [part for part in group.slices if part.side == OUT]
            norms = [part for part in producers if isinstance(modules[part.module], nn.BatchNorm2d)]
            change = _sum_by_channel(modules, Group(group.channels, tuple(norms or producers)), _first_order_change)
            total += change.double().cpu() ** 2

    def scores(self) -> list[Tensor]:
        """Get the importance of the channels, a (channels,) tensor per group."""
        return [total.float() for total in self.totals]


def _first_order_change(module: nn.Module, part: Slice) -> Tensor:
    total = torch.zeros(())
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.grad is not None:
            product = parameter.detach() * parameter.grad
            total = total.to(product.device) + (product if name == "bias" else _sum_per_channel(module, product, part))
    return total


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _sum_per_channel(module: nn.Module, values: Tensor, part: Slice) -> Tensor:
    """Sum values in the shape of the module's weight over each channel of one of its sides."""
    if values.ndim == 1:
        return values
    first = part.side == OUT
    if isinstance(module, nn.ConvTranspose2d) and not is_depthwise(module):
        first = not first
    dimensions = [d for d in range(values.ndim) if d != (0 if first else 1)]
    return values.sum(dim=dimensions)


def _sum_by_channel(modules: Mapping[str, nn.Module], group: Group, measure: Measure) -> Tensor:
    """Sum `measure` over all slices of a group, per channel of the group."""
    total = torch.zeros(group.channels)
    for part in group.slices:
        values = measure(modules[part.module], part).float().cpu()
        if values.ndim:
            total.index_add_(0, torch.from_numpy(part.owners), values[torch.from_numpy(part.places)])
    return total
