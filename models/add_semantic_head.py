"""Addition of a semantic head to any architecture, beside its own heads or instead of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from models.architecture import read_architecture
from models.builder import build_network, measure_strides
from models.channel_widths import remove_rows
from models.class_names import is_head
from models.layer_plan import HEADS
from models.network import INPUT, Network
from utils.core.errors import UserError

STRIDES = (8, 16, 32)
DESIGNS: dict[str, tuple[str, int]] = {  # module of the row, channels before scaling
    "base": ("SegMaskBase", 512),
    "bise": ("SegMaskBiSe", 256),
    "lab": ("SegMaskLab", 256),
    "psp": ("SegMaskPSP", 256),
}
REPEATS = 3
DEFAULT_CLASSES = 19  # those of Cityscapes


def with_semantic_head(
    architecture: dict[str, Any] | str,
    design: str = "psp",
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    alone: bool = False,
) -> dict[str, Any]:
    """Describe a network with a semantic head as its last row.

    The head's inputs are the maps before the last block of each level of the box head, at strides 8, 16 and 32;
    without such levels, the last rows of these strides. Row numbers stay, so that weights still fit; an existing
    semantic head is replaced.

    Args:
        architecture: a description, or what `read_architecture` accepts.
        design: key of `DESIGNS`.
        num_classes: number of classes; None for that of `names`, else of the description, else `DEFAULT_CLASSES`.
        names: class names.
        alone: remove all other heads and the rows that only they need.

    Raises:
        UserError: The design is unknown, or the network lacks a map that it needs.
    """
    if design not in DESIGNS:
        raise UserError(f"semantic design {design!r} does not exist; choose one of {', '.join(DESIGNS)}")
    description = copy.deepcopy(read_architecture(architecture))
    with torch.device("meta"):
        network = build_network(description)
    rows, (word, channels) = _absolute_rows(network), DESIGNS[design]
    inputs = _inputs(design, network)
    added = [inputs, 1, word, ["n_segcls", REPEATS, channels, False]]
    old = next((index for index, layer in enumerate(network.model) if getattr(layer, "name", "") == "semantic"), None)
    if old is not None and not alone and max(inputs) < old:
        rows[old], removed = added, {old}
    else:
        rows.append(added)
        heads = {index for index, layer in enumerate(network.model) if is_head(layer)}
        removed = _unneeded(rows) if alone else set() if old is None else {old}
        rows = [_placeholder(index, heads - removed) if index in removed else row for index, row in enumerate(rows)]
        while alone and len(rows) - 2 in removed:
            del rows[-2]
    split = min(len(description["backbone"]), len(rows) - 1)
    description = remove_rows(description, removed)
    count = num_classes or len(names or ()) or description.get("n_segcls") or DEFAULT_CLASSES
    description |= {"backbone": rows[:split], "head": rows[split:], "n_segcls": count}
    description |= {"nc": count} if alone else {}
    if names:
        description["head_names"] = {"semantic": [str(name) for name in names]}
    return description | {"name": f"{description['name']}-{design}"}


def only_semantic_head(architecture: dict[str, Any] | str) -> dict[str, Any]:
    """Describe a network without its heads other than the semantic one, and without the rows that only they need.

    Row numbers stay, so that weights still fit.

    Args:
        architecture: A description with a semantic head, or what `read_architecture` accepts.
    """
    description = copy.deepcopy(read_architecture(architecture))
    with torch.device("meta"):
        network = build_network(description)
    end = next(index for index, layer in enumerate(network.model) if getattr(layer, "name", "") == "semantic") + 1
    heads = {index for index, layer in enumerate(network.model) if is_head(layer)}
    rows = _absolute_rows(network)[:end]
    removed = _unneeded(rows)
    rows = [_placeholder(index, heads) if index in removed else row for index, row in enumerate(rows)]
    description = remove_rows(description, {*removed, *range(end, len(network.model))})
    split = min(len(description["backbone"]), end - 1)
    return description | {"backbone": rows[:split], "head": rows[split:], "nc": description["n_segcls"]}


def _absolute_rows(network: Network) -> list[list[Any]]:
    """Copy a network's rows with absolute row numbers as inputs."""
    written = [*network.architecture["backbone"], *network.architecture["head"]]
    rows = []
    for index, (row, route) in enumerate(zip(written, network.routes, strict=True)):
        sources = list(route.sources)  # of row 0 the images, -1
        rows.append([-1 if sources == [index - 1] else sources, *row[1:]])
    return rows


def _unneeded(rows: list[list[Any]]) -> set[int]:
    """Find the rows that the last one does not depend on."""
    needed: set[int] = set()
    pending = [len(rows) - 1]
    while pending:
        index = pending.pop()
        if index not in needed and index != INPUT:
            needed.add(index)
            origin = rows[index][0]
            pending += [index - 1] if origin == -1 else list(origin)
    return set(range(len(rows))) - needed


def _placeholder(index: int, heads: set[int]) -> list[Any]:
    """Create a row without effect in place of a removed one, so that the others keep their numbers."""
    source = next(row for row in range(index - 1, -2, -1) if row not in heads)
    return [source, 1, "nn.Identity", []]


def _inputs(design: str, network: Network) -> list[int]:
    """Choose the input rows of a design."""
    source = network.architecture["source"]
    written = [*network.architecture["backbone"], *network.architecture["head"]]
    strides = measure_strides(network.model, network.routes, written, network.architecture["ch"], source)

    def last(stride: int, end: int) -> int:
        found = [index for index in range(end) if strides[index] == (stride, stride)]
        if not found:
            raise UserError(f"{source}: the semantic design {design!r} needs a map at stride {stride}, there is none")
        return found[-1]

    def level(stride: int) -> int:
        for head in network.heads.values():
            if getattr(head, "predicts_boxes", False) and stride in head.strides:
                row = list(network.model).index(head)
                return _before_block(network, strides, network.routes[row].sources[head.strides.index(stride)])
        return _before_block(network, strides, last(stride, len(strides)))

    if design == "base":
        return [level(STRIDES[0])]
    if design == "lab":
        return [last(STRIDES[0], len(network.architecture["backbone"])), level(STRIDES[1])]
    return [level(stride) for stride in STRIDES]


def _before_block(network: Network, strides: list[tuple[float, ...]], level: int) -> int:
    """Find the nearest row before `level` that joins maps of the same size; `level` itself if there is none."""
    row = level
    while len(network.routes[row].sources) == 1:
        row = network.routes[row].sources[0]
        if row == INPUT or strides[row] != strides[level]:
            return level
    return row


def semantic_design(network: Network) -> str | None:
    """Return the design of a network's semantic head, or None without one."""
    head = network.heads.get("semantic")
    known = {HEADS.get(word.lower()): design for design, (word, _) in DESIGNS.items()}
    return None if head is None else known.get(type(head))
