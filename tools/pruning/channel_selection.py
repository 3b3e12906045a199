"""Which channels go: the least important for the operations they cost, until few enough operations are left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.channel_widths import num_channels, width_attributes
from models.network import Network
from models.summary import OPERATIONS_PER_NORMALISED, count_operations
from tools.pruning.channel_groups import OUT, Group, is_depthwise
from utils.core.errors import UserError

Count = Callable[[float, float], float]


@dataclass(frozen=True)
class Limits:
    """How channels may go: in steps of `step`, never more than the share `most` of a group.

    `weigh_cost` divides importance by the operations that are saved; `uniform` takes the same share of every group.
    """

    step: int = 8
    most: float = 0.5
    weigh_cost: bool = True
    uniform: bool = False


class Costs:
    """Operations of a network for one image, as a function of how many channels its modules have."""

    def __init__(self, network: Network, size_hw: tuple[int, int]) -> None:
        self.modules = {name: module for name, module in network.named_modules() if width_attributes(module)}
        self.sides: dict[str, list[float]] = {  # inputs, outputs
            name: [float(num_channels(module, out)) for out in (False, True)] for name, module in self.modules.items()
        }
        self._per_pair = dict.fromkeys(self.modules, 0.0)
        self._rest = 0.0
        self._measure(network, size_hw)
        self._rest = max(count_operations(network, size_hw) - self.total, 0.0)  # of attention: it stays

    def _measure(self, network: Network, size_hw: tuple[int, int]) -> None:
        names = {module: name for name, module in self.modules.items()}

        def count(module: nn.Module, _: object, output: Tensor) -> None:
            pixels = output[0].numel() / num_channels(module, out=True)
            self._per_pair[names[module]] += pixels * _per_pixel(module)

        hooks = [module.register_forward_hook(count) for module in self.modules.values()]
        tensors = {name: value.to("meta") for name, value in [*network.named_parameters(), *network.named_buffers()]}
        image = torch.empty(1, network.architecture.get("ch", 3), *size_hw, device="meta")
        training = network.training
        try:
            with torch.no_grad():
                functional_call(network.eval(), tensors, (image,))
        finally:
            network.train(training)
            for hook in hooks:
                hook.remove()

    def of(self, name: str) -> float:
        """Return the operations of one module as wide as it is now."""
        inputs, outputs = self.sides[name]
        module = self.modules[name]
        one_sided = is_depthwise(module) or isinstance(module, nn.BatchNorm2d)
        groups = 1 if one_sided else getattr(module, "groups", 1)
        return self._per_pair[name] * outputs * (1 if one_sided else inputs / groups)

    @property
    def total(self) -> float:
        """Return the operations of the whole network."""
        return self._rest + sum(self.of(name) for name in self.modules)

    def saved(self, group: Group, share: float) -> float:
        """Return what is saved if the share of a group's channels goes; nothing changes."""
        touched = {part.module for part in group.slices}
        before = sum(self.of(name) for name in touched)
        kept = {name: list(self.sides[name]) for name in touched}
        self.cut(group, share)
        after = sum(self.of(name) for name in touched)
        self.sides.update(kept)
        return before - after

    def cut(self, group: Group, share: float) -> None:
        """Take the share of a group's channels, of as many as there were at first, out of all modules."""
        for part in group.slices:
            self.sides[part.module][1 if part.side == OUT else 0] -= share * len(part.places)


def _per_pixel(module: nn.Module) -> float:
    """Return the operations for each pixel and pair of an input and an output channel."""
    if isinstance(module, nn.BatchNorm2d):
        return OPERATIONS_PER_NORMALISED
    if isinstance(module, nn.Linear):
        return 2
    assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    area = float(np.prod(module.kernel_size))
    return 2 * area / float(np.prod(module.stride)) if isinstance(module, nn.ConvTranspose2d) else 2 * area


def choose(
    costs: Costs, groups: Sequence[Group], scores: Sequence[Tensor], limits: Limits, enough: Callable[[float], bool]
) -> list[np.ndarray]:
    """Return the numbers of the channels that go, per group; `enough` is told the share of the operations that is left.

    One step of the least important channels after the other. `costs` is changed. UserError if the limits forbid to
    take as many as that.
    """
    orders = [np.argsort(values.numpy(), kind="stable") for values in scores]
    ranked = [values.numpy()[order] for values, order in zip(scores, orders, strict=True)]
    gone = [0] * len(groups)
    whole = costs.total
    while not enough(costs.total / whole):
        prices = {}
        for index, group in enumerate(groups):
            step = _step(group.channels, gone[index], limits)
            saved = costs.saved(group, step / group.channels) if step else 0.0
            if saved > 0:  # branches that only training has cost nothing
                loss = float(ranked[index][gone[index] : gone[index] + step].sum())
                prices[index] = _price(group, gone[index] + step, loss / step, loss / saved, limits)
        if not prices:
            raise UserError(
                f"{costs.total / whole:.0%} of the operations are left and no layer may lose more; raise --max-cut "
                f"({limits.most:g}), lower --round-to ({limits.step}), or ask for less"
            )
        index = min(prices, key=lambda one: (prices[one], one))
        step = _step(groups[index].channels, gone[index], limits)
        costs.cut(groups[index], step / groups[index].channels)
        gone[index] += step
    return [np.sort(order[:count]) for order, count in zip(orders, gone, strict=True)]


def _step(channels: int, gone: int, limits: Limits) -> int:
    """Return how many channels may go next: what remains is a multiple of the step; 0 if none may."""
    left = channels - gone
    step = left % limits.step or limits.step
    return step if left - step >= max(channels * (1 - limits.most), 1) - 1e-9 else 0


def _price(group: Group, gone: int, per_channel: float, per_operation: float, limits: Limits) -> float:
    """Return by what the next step of a group is compared with those of others; `gone` counts it, too."""
    if limits.uniform:
        return gone / group.channels
    return per_operation if limits.weigh_cost else per_channel


def removed_places(groups: Sequence[Group], chosen: Sequence[np.ndarray]) -> Mapping[tuple[str, str], np.ndarray]:
    """Return which channels go, by module and side."""
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for group, channels in zip(groups, chosen, strict=True):
        for part in group.slices:
            going = part.places[np.isin(part.owners, channels)]
            if len(going):
                found.setdefault((part.module, part.side), []).append(going)
    return {key: np.unique(np.concatenate(parts)) for key, parts in found.items()}
