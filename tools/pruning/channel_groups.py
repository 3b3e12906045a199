"""Groups of coupled channels, found with torch-pruning (DepGraph; Fang et al., arXiv 2301.12900)."""

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
_TRACING_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
OUT, IN = "out", "in"
Place = tuple[str, str, int]  # module, side, index of the channel


@dataclass(frozen=True)
class Slice:
    """Channels of one side of a module: `places[i]` is removed together with channel `owners[i]` of the group."""

    module: str
    side: str  # out or in; BatchNorm and depthwise convolutions have only out
    places: np.ndarray
    owners: np.ndarray


@dataclass(frozen=True)
class Group:
    """Channels that can be removed independently, each with all of its occurrences in the network."""

    channels: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Coupling:
    """All groups of removable channels, and the modules whose number of outputs is fixed."""

    groups: tuple[Group, ...]
    fixed: frozenset[str]


def is_depthwise(module: nn.Module) -> bool:
    """Check whether a convolution is depthwise, with one output per input channel."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return isinstance(module, kinds) and module.groups == module.in_channels == module.out_channels > 1


def find_coupling(network: Network) -> Coupling:
    """Find the groups of coupled channels whose removal does not change the shape of the outputs.

    Attention, grouped convolutions and activations with parameters keep all of their channels.

    Raises:
        UserError: If torch-pruning is not installed, cannot analyse the network, or finds no removable channel.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise UserError("pruning needs the package torch-pruning: pip install -r requirements-prune.txt") from error
    traced = copy.deepcopy(network).to("meta").requires_grad_(True)
    traced.checkpointing = False
    graph = _build_graph(torch_pruning, traced)
    names = {module: name for name, module in traced.named_modules()}
    fixed = {names[node.module] for node in graph.module2node.values() if not node.outputs and node.module in names}
    sets = _DisjointSets()
    for module, name in names.items():
        if module in graph.module2node and isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            try:
                complete = sets.join_outputs(graph, module, name, names)
            except _TRACING_ERRORS as error:
                what = f"{network.architecture['name']}: torch-pruning cannot trace the channels of {name}"
                raise UserError(f"{what} ({error})") from error
            fixed |= set() if complete else {name}
    groups = sets.groups(fixed, _unprunable_modules(traced))
    if not groups:
        raise UserError(f"{network.architecture['name']}: no channels of this network can be removed")
    return Coupling(groups, frozenset(fixed))


def _build_graph(torch_pruning: Any, traced: Network) -> Any:
    height, width = traced.fixed_hw or (PROBE_PX, PROBE_PX)
    images = torch.zeros(2, traced.architecture.get("ch", 3), height, width, device="meta")
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # about parameters outside of layers, which `_unprunable_modules` excludes
        try:
            return torch_pruning.DependencyGraph().build_dependency(
                traced, images, forward_fn=_run_in_training_mode, output_transform=_flatten, verbose=False
            )
        except _TRACING_ERRORS as error:
            name = traced.architecture["name"]
            raise UserError(f"{name}: torch-pruning cannot trace its channels ({error})") from error


def _run_in_training_mode(network: Network, images: Tensor) -> Any:
    """Run the network in training mode, in which some heads return auxiliary outputs."""
    return network.train()(images)


def _flatten(raw: dict[str, dict[str, Tensor]]) -> list[Tensor]:
    return [tensor for tensors in raw.values() for tensor in tensors.values()]


def _unprunable_modules(network: Network) -> set[str]:
    """Find modules that must keep all channels: grouped convolutions and those near unknown parameters."""
    unprunable = set()
    for name, module in network.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.numel() > 1]
        if own and not width_attributes(module) and not isinstance(module, Sum):
            prefix = name.rpartition(".")[0]
            unprunable |= {
                other for other, _ in network.named_modules() if other.startswith(f"{prefix}." if prefix else "")
            }
        if getattr(module, "groups", 1) > 1 and not is_depthwise(module):
            unprunable.add(name)
    return unprunable


class _DisjointSets:
    """Disjoint sets of coupled channels (module, side, index).

    torch-pruning is queried for every layer, because its answer for one layer omits couplings among the others.
    """

    def __init__(self) -> None:
        self._parents: dict[Place, Place] = {}

    def _root(self, place: Place) -> Place:
        parent = self._parents.setdefault(place, place)
        while parent != self._parents[parent]:
            parent = self._parents[parent]
        self._parents[place] = parent
        return parent

    def join_outputs(self, graph: Any, root: nn.Module, name: str, names: dict[nn.Module, str]) -> bool:
        """Join the outputs of a layer with all channels that are coupled to them.

        Returns:
            False if they reach the outputs of the network, parameters outside of layers, or channels that do not exist,
            which shows that the tracing is incomplete.
        """
        pruner = graph.get_pruner_of_module(root)
        count = num_channels(root, out=True)
        found = graph.get_pruning_group(root, pruner.prune_out_channels, list(range(count)))
        complete = True
        for item in found:
            module = item.dep.target.module
            if isinstance(module, nn.Parameter) or type(module).__name__ == "_OutputOp":
                complete = False
            if not isinstance(module, nn.Module) or module not in names or not width_attributes(module):
                continue  # activations and pools have no width
            one_sided = is_depthwise(module) or isinstance(module, nn.BatchNorm2d)
            side = OUT if one_sided or graph.is_out_channel_pruning_fn(item.dep.handler) else IN
            complete = complete and max(item.idxs) < num_channels(module, side == OUT)
            for place, owner in zip(item.idxs, item.root_idxs, strict=True):
                self._parents[self._root((names[module], side, place))] = self._root((name, OUT, owner))
        return complete

    def groups(self, fixed: Collection[str], unprunable: Collection[str]) -> tuple[Group, ...]:
        """Collect the removable sets; those that occur in the same layers form a group."""
        sets: dict[Place, list[Place]] = {}
        for place in self._parents:
            sets.setdefault(self._root(place), []).append(place)
        by_layers: dict[tuple[tuple[str, str], ...], list[list[Place]]] = {}
        for places in sets.values():
            excluded = any(module in unprunable or (side == OUT and module in fixed) for module, side, _ in places)
            if not excluded:
                by_layers.setdefault(tuple(sorted((module, side) for module, side, _ in places)), []).append(places)
        return tuple(_group(members) for members in by_layers.values())


def _group(members: Sequence[Sequence[Place]]) -> Group:
    """Build a group from sets of coupled channels."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for owner, places in enumerate(members):
        for module, side, place in places:
            found.setdefault((module, side), []).append((place, owner))
    slices = []
    for (module, side), pairs in found.items():
        table = np.array(pairs, np.int64)
        slices.append(Slice(module, side, table[:, 0], table[:, 1]))
    return Group(len(members), tuple(slices))
