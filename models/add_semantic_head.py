"""Give any network's description a semantic head, beside its own heads or in their place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from models.architecture import read_architecture
from models.builder import build_network, measure_rows
from models.channel_widths import without_rows
from models.class_names import is_head
from models.layer_plan import HEADS
from models.network import INPUT, Network
from utils.core.errors import UserError

STRIDES = (8, 16, 32)
DESIGNS: dict[str, tuple[str, int]] = {  # word of the row, written channels (behaviour.md 12.1)
    "base": ("SegMaskBase", 512),
    "bise": ("SegMaskBiSe", 256),
    "lab": ("SegMaskLab", 256),
    "psp": ("SegMaskPSP", 256),
}
REPEATS = 3
CLASSES = 19  # of Cityscapes, where nothing says how many


def with_semantic(
    architecture: dict[str, Any] | str,
    design: str = "psp",
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    alone: bool = False,
) -> dict[str, Any]:
    """Return the description of a network with a semantic head of one of the `DESIGNS`, as its last row.

    It looks at the maps before the last block of each level of the box head (behaviour.md 12.1), at strides 8, 16 and
    32; a network without such levels gives its last rows of these strides. Rows keep their numbers, so that weights
    still fit; a semantic head that is there already is replaced. `alone` drops all other heads and what only they
    needed. A design that is not known, or a network without the maps it needs, raises UserError.
    """
    if design not in DESIGNS:
        raise UserError(f"there is no semantic design {design!r} (known: {', '.join(DESIGNS)})")
    description = copy.deepcopy(read_architecture(architecture))
    with torch.device("meta"):
        network = build_network(description)
    rows, (word, channels) = _absolute(network), DESIGNS[design]
    inputs = _inputs(design, network)
    added = [inputs, 1, word, ["n_segcls", REPEATS, channels, False]]
    old = next((index for index, layer in enumerate(network.model) if getattr(layer, "name", "") == "semantic"), None)
    if old is not None and not alone and max(inputs) < old:
        rows[old], away = added, {old}
    else:
        rows.append(added)
        heads = {index for index, layer in enumerate(network.model) if is_head(layer)}
        away = _unneeded(rows) if alone else set() if old is None else {old}
        rows = [_empty(index, heads - away) if index in away else row for index, row in enumerate(rows)]
        while alone and len(rows) - 2 in away:
            del rows[-2]
    split = min(len(description["backbone"]), len(rows) - 1)
    description = without_rows(description, away)
    count = num_classes or len(names or ()) or description.get("n_segcls") or CLASSES
    description |= {"backbone": rows[:split], "head": rows[split:], "n_segcls": count}
    description |= {"nc": count} if alone else {}
    if names:
        description["head_names"] = {"semantic": [str(name) for name in names]}
    return description | {"name": f"{description['name']}-{design}"}


def _absolute(network: Network) -> list[list[Any]]:
    """Return a network's rows with the numbers of the rows that they take their inputs from."""
    written = [*network.architecture["backbone"], *network.architecture["head"]]
    rows = []
    for index, (row, route) in enumerate(zip(written, network.routes, strict=True)):
        sources = list(route.sources)  # of row 0 the images, -1
        rows.append([-1 if sources == [index - 1] else sources, *row[1:]])
    return rows


def _sources(rows: list[list[Any]], index: int) -> list[int]:
    origin = rows[index][0]
    return [index - 1] if origin == -1 else list(origin)


def _unneeded(rows: list[list[Any]]) -> set[int]:
    """Return the numbers of the rows that the last one does without."""
    needed: set[int] = set()
    waiting = [len(rows) - 1]
    while waiting:
        index = waiting.pop()
        if index not in needed and index != INPUT:
            needed.add(index)
            waiting += _sources(rows, index)
    return set(range(len(rows))) - needed


def _empty(index: int, heads: set[int]) -> list[Any]:
    """Return a row that does nothing, for where one went away: the others keep their numbers."""
    source = next(row for row in range(index - 1, -2, -1) if row not in heads)
    return [source, 1, "nn.Identity", []]


def _inputs(design: str, network: Network) -> list[int]:
    """Return the rows that a design looks at."""
    source = network.architecture["source"]
    written = [*network.architecture["backbone"], *network.architecture["head"]]
    strides = measure_rows(network.model, network.routes, written, network.architecture["ch"], source)

    def last(stride: int, end: int) -> int:
        found = [index for index in range(end) if strides[index] == (stride, stride)]
        if not found:
            raise UserError(f"{source}: the semantic design {design!r} needs a map at stride {stride}; there is none")
        return found[-1]

    def level(stride: int) -> int:
        for head in network.heads.values():
            if hasattr(head, "set_anchors") and stride in head.strides:
                row = list(network.model).index(head)
                return _before_block(network, strides, network.routes[row].sources[head.strides.index(stride)])
        return _before_block(network, strides, last(stride, len(strides)))

    if design == "base":
        return [level(STRIDES[0])]
    if design == "lab":
        return [last(STRIDES[0], len(network.architecture["backbone"])), level(STRIDES[1])]
    return [level(stride) for stride in STRIDES]


def _before_block(network: Network, strides: list[tuple[float, ...]], level: int) -> int:
    """Return the row nearest before `level` that joins maps of the same size, `level` itself if there is none."""
    row = level
    while len(network.routes[row].sources) == 1:
        row = network.routes[row].sources[0]
        if row == INPUT or strides[row] != strides[level]:
            return level
    return row


def semantic_design(network: Network) -> str | None:
    """Return which of the `DESIGNS` a network's semantic head has, None without one."""
    head = network.heads.get("semantic")
    known = {HEADS.get(word.lower()): design for design, (word, _) in DESIGNS.items()}
    return None if head is None else known.get(type(head))
