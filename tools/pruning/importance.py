"""How much each channel of a group matters: by its weights, by its normalisation's factor, or by gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from models.network import Network
from tools.pruning.channel_groups import OUT, Group, Slice, is_depthwise

Measure = Callable[[nn.Module, Slice], Tensor]


def by_weights(network: Network, groups: Sequence[Group], power: int) -> list[Tensor]:
    """Return (channels,) per group: the L1 or L2 norm (`power`) of all weights that go with a channel.

    Divided by the group's mean, so that groups of large and of small weights compare (DepGraph, arXiv 2301.12900).
    """
    modules = dict(network.named_modules())
    found = [_added(modules, group, lambda m, part: _channels(m, _weight(m).abs() ** power, part)) for group in groups]
    scores = [values.sqrt() if power == 2 else values for values in found]
    return [values / values.mean().clamp(min=1e-12) for values in scores]


def by_normalisation(network: Network, groups: Sequence[Group]) -> list[Tensor]:
    """Return (channels,) per group: the mean factor of its batch normalisations (network slimming, arXiv 1708.06519).

    Groups without normalisation count by their weights.
    """
    modules = dict(network.named_modules())
    norms = [[part for part in group.slices if isinstance(modules[part.module], nn.BatchNorm2d)] for group in groups]
    bare = by_weights(network, groups, 2)
    found = []
    for group, parts, weights in zip(groups, norms, bare, strict=True):
        factors = _added(modules, Group(group.channels, tuple(parts)), lambda m, _: _weight(m).abs())
        found.append(factors / len(parts) if parts else weights)
    return found


class TaylorImportance:
    """Adds up, batch by batch, how much the loss would change without a channel (Molchanov et al., arXiv 1906.10771).

    To first order that is weight times gradient, summed over everything that makes the channel: the factors and shifts
    of its normalisations, or where there are none the weights of its convolutions. Squares are added.
    """

    def __init__(self, network: Network, groups: Sequence[Group]) -> None:
        self.network, self.groups = network, groups
        self.totals = [torch.zeros(group.channels, dtype=torch.float64) for group in groups]

    def add(self) -> None:
        """Count the gradients that the network holds."""
        modules = dict(self.network.named_modules())
        for group, total in zip(self.groups, self.totals, strict=True):
            made = [part for part in group.slices if part.side == OUT]
            norms = [part for part in made if isinstance(modules[part.module], nn.BatchNorm2d)]
            change = _added(modules, Group(group.channels, tuple(norms or made)), _change)
            total += change.double().cpu() ** 2

    def scores(self) -> list[Tensor]:
        """Return (channels,) per group."""
        return [total.float() for total in self.totals]


def _change(module: nn.Module, part: Slice) -> Tensor:
    total = torch.zeros(())
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.grad is not None:
            moved = parameter.detach() * parameter.grad
            total = total.to(moved.device) + (moved if name == "bias" else _channels(module, moved, part))
    return total


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _channels(module: nn.Module, values: Tensor, part: Slice) -> Tensor:
    """Return what `values`, shaped as the module's weight, add up to for each channel of one of its sides."""
    if values.ndim == 1:
        return values
    first = part.side == OUT
    if isinstance(module, nn.ConvTranspose2d) and not is_depthwise(module):
        first = not first
    dimensions = [d for d in range(values.ndim) if d != (0 if first else 1)]
    return values.sum(dim=dimensions)


def _added(modules: Mapping[str, nn.Module], group: Group, measure: Measure) -> Tensor:
    """Return (channels,): what `measure` gives for the places of all slices, added up by their channels."""
    total = torch.zeros(group.channels)
    for part in group.slices:
        values = measure(modules[part.module], part).float().cpu()
        if values.ndim:
            total.index_add_(0, torch.from_numpy(part.owners), values[torch.from_numpy(part.places)])
    return total
