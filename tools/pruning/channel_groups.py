"""Which channels can only go together: groups found by torch-pruning (DepGraph, arXiv 2301.12900)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.channel_widths import num_channels, width_attributes
from models.layers.common import Sum
from models.network import Network
from utils.core.errors import UserError

PROBE_PX = 256
_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
OUT, IN = "out", "in"
Place = tuple[str, str, int]  # module, side, number of the channel


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
    ties = _Ties()
    for module, name in names.items():
        if module in graph.module2node and isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            try:
                whole = ties.follow(graph, module, name, names)
            except _FAULTS as error:
                what = f"{network.architecture['name']}: torch-pruning cannot follow the channels of {name}"
                raise UserError(f"{what} ({error})") from error
            fixed |= set() if whole else {name}
    groups = ties.groups(fixed, _whole(traced))
    if not groups:
        raise UserError(f"{network.architecture['name']}: no channels of this network can be taken out")
    return Coupling(groups, frozenset(fixed))


def _graph(torch_pruning: Any, traced: Network) -> Any:
    height, width = traced.fixed_hw or (PROBE_PX, PROBE_PX)
    images = torch.zeros(2, traced.architecture.get("ch", 3), height, width, device="meta")
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # about parameters outside of layers, which `_whole` leaves alone
        try:
            return torch_pruning.DependencyGraph().build_dependency(
                traced, images, forward_fn=_in_training, output_transform=_tensors, verbose=False
            )
        except _FAULTS as error:
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
        if own and not width_attributes(module) and not isinstance(module, Sum):
            around = name.rpartition(".")[0]
            kept |= {other for other, _ in network.named_modules() if other.startswith(f"{around}." if around else "")}
        if getattr(module, "groups", 1) > 1 and not is_depthwise(module):
            kept.add(name)
    return kept


class _Ties:
    """Channels that go together: places (module, side, number), joined into sets as they are found to be tied.

    torch-pruning is asked about every layer by itself, since what it says about one leaves out ties among the others.
    """

    def __init__(self) -> None:
        self._chief: dict[Place, Place] = {}

    def _first(self, place: Place) -> Place:
        chief = self._chief.setdefault(place, place)
        while chief != self._chief[chief]:
            chief = self._chief[chief]
        self._chief[place] = chief
        return chief

    def follow(self, graph: Any, root: nn.Module, name: str, names: dict[nn.Module, str]) -> bool:
        """Tie everything that goes with the outputs of a layer to them.

        Returns False if they reach the network's outputs, weights that belong to no layer, or channels that are not
        there, which shows that they were not followed all the way.
        """
        pruner = graph.get_pruner_of_module(root)
        count = num_channels(root, out=True)
        found = graph.get_pruning_group(root, pruner.prune_out_channels, list(range(count)))
        good = True
        for item in found:
            module = item.dep.target.module
            if isinstance(module, nn.Parameter) or type(module).__name__ == "_OutputOp":
                good = False
            if not isinstance(module, nn.Module) or module not in names or not width_attributes(module):
                continue  # an activation or a pool takes what comes
            one_sided = is_depthwise(module) or isinstance(module, nn.BatchNorm2d)
            side = OUT if one_sided or graph.is_out_channel_pruning_fn(item.dep.handler) else IN
            good = good and max(item.idxs) < num_channels(module, side == OUT)
            for place, owner in zip(item.idxs, item.root_idxs, strict=True):
                self._chief[self._first((names[module], side, place))] = self._first((name, OUT, owner))
        return good

    def groups(self, fixed: Collection[str], kept: Collection[str]) -> tuple[Group, ...]:
        """Return the sets that are free to go, those that touch the same layers together in a group."""
        sets: dict[Place, list[Place]] = {}
        for place in self._chief:
            sets.setdefault(self._first(place), []).append(place)
        alike: dict[tuple[tuple[str, str], ...], list[list[Place]]] = {}
        for places in sets.values():
            bound = any(module in kept or (side == OUT and module in fixed) for module, side, _ in places)
            if not bound:
                alike.setdefault(tuple(sorted((module, side) for module, side, _ in places)), []).append(places)
        return tuple(_group(members) for members in alike.values())


def _group(members: Sequence[Sequence[Place]]) -> Group:
    """Return sets of places as the channels of a group."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for owner, places in enumerate(members):
        for module, side, place in places:
            found.setdefault((module, side), []).append((place, owner))
    slices = []
    for (module, side), pairs in found.items():
        table = np.array(pairs, np.int64)
        slices.append(Slice(module, side, table[:, 0], table[:, 1]))
    return Group(len(members), tuple(slices))
