"""Which channels can only go together: groups found by torch-pruning (DepGraph, arXiv 2301.12900)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.layers.common import Sum
from models.network import Network
from models.widths import attributes_of, width_of
from utils.core.errors import UserError

PROBE_PX = 256
OUT, IN = "out", "in"


@dataclass(frozen=True)
class Slice:
    """Channels of one side of a module: `places[i]` goes when channel `owners[i]` of the group does."""

    module: str
    side: str  # out or in; normalisations and depth-wise convolutions have only out
    places: np.ndarray
    owners: np.ndarray


@dataclass(frozen=True)
class Group:
    """`channels` channels, and every place in the network where each of them is found."""

    channels: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Coupling:
    """All groups whose channels may go, and the modules whose outputs must stay as many as they are."""

    groups: tuple[Group, ...]
    fixed: frozenset[str]


def is_depthwise(module: nn.Module) -> bool:
    """Tell whether a convolution looks at each channel by itself, and gives one for each."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return isinstance(module, kinds) and module.groups == module.in_channels == module.out_channels > 1


def find_coupling(network: Network) -> Coupling:
    """Return the groups of channels of `network` whose removal leaves its outputs as many as they are.

    What cannot be taken apart stays whole: attention, convolutions in groups, activations with weights of their own. A
    network of which nothing can go raises UserError, and so does the lack of the package torch-pruning.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise UserError("pruning needs the package torch-pruning: pip install -r requirements-prune.txt") from error
    traced = copy.deepcopy(network).to("meta").requires_grad_(True)
    traced.checkpointing = False
    graph = _graph(torch_pruning, traced)
    names = {module: name for name, module in traced.named_modules()}
    fixed = {names[node.module] for node in graph.module2node.values() if not node.outputs and node.module in names}
    kept = _whole(traced)
    groups = []
    roots = [nn.Conv2d, nn.ConvTranspose2d, nn.Linear]
    for found in graph.get_all_groups(root_module_types=roots):
        group, givers = _group(graph, found, names)
        if group is None or givers & fixed:
            fixed |= givers
        elif not kept & {part.module for part in group.slices}:
            groups.append(group)
    if not groups:
        raise UserError(f"{network.architecture['name']}: no channels of this network can be taken out")
    return Coupling(tuple(groups), frozenset(fixed))


def _graph(torch_pruning: Any, traced: Network) -> Any:
    height, width = traced.fixed_hw or (PROBE_PX, PROBE_PX)
    images = torch.zeros(2, traced.architecture.get("ch", 3), height, width, device="meta")
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # about parameters outside of layers, which `_whole` leaves alone
        try:
            return torch_pruning.DependencyGraph().build_dependency(
                traced, images, forward_fn=_in_training, output_transform=_tensors, verbose=False
            )
        except (AttributeError, AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            name = traced.architecture["name"]
            raise UserError(f"{name}: torch-pruning cannot follow its channels ({error})") from error


def _in_training(network: Network, images: Tensor) -> Any:
    """Run the network as in training: some heads have branches that only then give something."""
    return network.train()(images)


def _tensors(raw: dict[str, dict[str, Tensor]]) -> list[Tensor]:
    return [tensor for tensors in raw.values() for tensor in tensors.values()]


def _whole(network: Network) -> set[str]:
    """Return the modules that must keep all channels: around weights that belong to no known layer, in groups."""
    kept = set()
    for name, module in network.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.numel() > 1]
        if own and not attributes_of(module) and not isinstance(module, Sum):
            around = name.rpartition(".")[0]
            kept |= {other for other, _ in network.named_modules() if other.startswith(f"{around}." if around else "")}
        if getattr(module, "groups", 1) > 1 and not is_depthwise(module):
            kept.add(name)
    return kept


def _group(graph: Any, found: Any, names: dict[nn.Module, str]) -> tuple[Group | None, set[str]]:
    """Return a group in our terms, and the modules that give its channels.

    The group is None if it reaches the network's outputs, weights that belong to no layer, or channels that are not
    there, which shows that it was not followed all the way.
    """
    slices: list[Slice] = []
    whole = True
    for item in found:
        module = item.dep.target.module
        if module in names:
            found_here = list(_slices(graph, item, module, names[module]))
            slices += found_here
            whole = whole and all(part.places.max() < width_of(module, part.side == OUT) for part in found_here)
        elif isinstance(module, nn.Parameter) or type(module).__name__ == "_OutputOp":
            whole = False
    givers = {part.module for part in slices if part.side == OUT}
    return _united(slices) if whole else None, givers


def _united(slices: Sequence[Slice]) -> Group:
    """Return the group in which channels that share a place are one: where a half of a map is added to the other."""
    places: dict[tuple[str, str], dict[int, int]] = {}
    chief = list(range(1 + max(int(part.owners.max()) for part in slices)))

    def first(channel: int) -> int:
        while chief[channel] != channel:
            channel = chief[channel]
        return channel

    for part in slices:
        known = places.setdefault((part.module, part.side), {})
        for place, owner in zip(part.places.tolist(), part.owners.tolist(), strict=True):
            one, other = sorted((first(known.setdefault(place, owner)), first(owner)))
            chief[other] = one
    numbers = {channel: n for n, channel in enumerate(c for c in range(len(chief)) if chief[c] == c)}
    united = [
        Slice(module, side, np.array(list(found)), np.array([numbers[first(owner)] for owner in found.values()]))
        for (module, side), found in places.items()
    ]
    return Group(len(numbers), tuple(united))


def _slices(graph: Any, item: Any, module: nn.Module, name: str) -> Iterator[Slice]:
    if not attributes_of(module):
        return  # an activation or a pool inside a layer: it takes what comes
    one_sided = is_depthwise(module) or isinstance(module, nn.BatchNorm2d)
    side = OUT if one_sided or graph.is_out_channel_pruning_fn(item.dep.handler) else IN
    yield Slice(name, side, np.asarray(item.idxs, np.int64), np.asarray(item.root_idxs, np.int64))
