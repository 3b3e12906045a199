"""Selection of the channels to remove: the least important per operation, until a target is reached."""

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

FLOAT_TOLERANCE = 1e-9  # of the comparison with a fraction of the channels


@dataclass(frozen=True)
class Limits:
    """Limits of the selection.

    Attributes:
        step: Channels are removed in steps; the remaining number is a multiple of it.
        max_fraction: Largest fraction of a group that may be removed.
        weigh_cost: Divide the importance by the operations that are saved.
        uniform: Remove the same fraction of every group.
    """

    step: int = 8
    max_fraction: float = 0.5
    weigh_cost: bool = True
    uniform: bool = False


class Costs:
    """Operations of a network for one image as a function of the channels of its modules."""

    def __init__(self, network: Network, size_hw: tuple[int, int]) -> None:
        self.modules = {name: module for name, module in network.named_modules() if width_attributes(module)}
        self.sides: dict[str, list[float]] = {  # inputs, outputs
            name: [float(num_channels(module, out)) for out in (False, True)] for name, module in self.modules.items()
        }
        self._per_pair = dict.fromkeys(self.modules, 0.0)
        self._rest = 0.0
        self._measure(network, size_hw)
        self._rest = max(count_operations(network, size_hw) - self.total, 0.0)  # attention, which is not pruned

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
        """Compute the operations of a module at its current width."""
        inputs, outputs = self.sides[name]
        module = self.modules[name]
        one_sided = is_depthwise(module) or isinstance(module, nn.BatchNorm2d)
        groups = 1 if one_sided else getattr(module, "groups", 1)
        return self._per_pair[name] * outputs * (1 if one_sided else inputs / groups)

    @property
    def total(self) -> float:
        """Operations of the whole network."""
        return self._rest + sum(self.of(name) for name in self.modules)

    def saved(self, group: Group, fraction: float) -> float:
        """Compute the operations saved by removing a fraction of a group, without removing it."""
        touched = {part.module for part in group.slices}
        before = sum(self.of(name) for name in touched)
        original = {name: list(self.sides[name]) for name in touched}
        self.cut(group, fraction)
        after = sum(self.of(name) for name in touched)
        self.sides.update(original)
        return before - after

    def cut(self, group: Group, fraction: float) -> None:
        """Remove a fraction of a group from all modules, relative to its original number of channels."""
        for part in group.slices:
            self.sides[part.module][1 if part.side == OUT else 0] -= fraction * len(part.places)


def _per_pixel(module: nn.Module) -> float:
    """Compute the operations per pixel and pair of an input and an output channel."""
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
    """Choose the channels to remove, one step of the least important channels at a time.

    Args:
        costs: Costs of the network; reduced to those of the pruned network.
        groups: Groups of coupled channels.
        scores: Importance of the channels of each group.
        limits: Limits of the selection.
        enough: Stopping criterion, called with the fraction of operations that remains.

    Returns:
        The sorted indices of the removed channels, per group.

    Raises:
        UserError: If the limits prevent reaching the target.
    """
    orders = [np.argsort(values.numpy(), kind="stable") for values in scores]
    ranked = [values.numpy()[order] for values, order in zip(scores, orders, strict=True)]
    removed = [0] * len(groups)
    original_total = costs.total
    while not enough(costs.total / original_total):
        prices = {}
        for index, group in enumerate(groups):
            step = _step(group.channels, removed[index], limits)
            saved = costs.saved(group, step / group.channels) if step else 0.0
            if saved > 0:  # auxiliary branches of training have no cost
                loss = float(ranked[index][removed[index] : removed[index] + step].sum())
                prices[index] = _price(group, removed[index] + step, loss / step, loss / saved, limits)
        if not prices:
            raise UserError(
                f"{costs.total / original_total:.0%} of the operations remain and no layer may lose more; raise "
                f"--max-cut ({limits.max_fraction:g}), lower --round-to ({limits.step}), or choose another target"
            )
        index = min(prices, key=lambda one: (prices[one], one))
        step = _step(groups[index].channels, removed[index], limits)
        costs.cut(groups[index], step / groups[index].channels)
        removed[index] += step
    return [np.sort(order[:count]) for order, count in zip(orders, removed, strict=True)]


def _step(channels: int, removed: int, limits: Limits) -> int:
    """Compute how many channels may be removed next: the remainder is a multiple of the step; 0 if none may."""
    left = channels - removed
    step = left % limits.step or limits.step
    least = max(channels * (1 - limits.max_fraction), 1)
    return step if left - step >= least - FLOAT_TOLERANCE else 0


def _price(group: Group, removed: int, per_channel: float, per_operation: float, limits: Limits) -> float:
    """Compute the price by which the next step of a group is compared; `removed` includes that step."""
    if limits.uniform:
        return removed / group.channels
    return per_operation if limits.weigh_cost else per_channel


def removed_channels(groups: Sequence[Group], chosen: Sequence[np.ndarray]) -> Mapping[tuple[str, str], np.ndarray]:
    """Collect the indices of the removed channels by module and side."""
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for group, channels in zip(groups, chosen, strict=True):
        for part in group.slices:
            removed = part.places[np.isin(part.owners, channels)]
            if len(removed):
                found.setdefault((part.module, part.side), []).append(removed)
    return {key: np.unique(np.concatenate(parts)) for key, parts in found.items()}
