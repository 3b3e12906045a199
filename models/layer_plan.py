"""How a row of a model YAML becomes constructor arguments, and the registries of layers and heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from utils.core.contracts import Head
from utils.core.registry import Registry

LAYERS: Registry[Any] = Registry("layer", "models.layers")
HEADS: Registry[type[Head]] = Registry("head", "models.heads")


@dataclass(frozen=True)
class Row:
    """What a plan is told: the row's inputs and arguments, the words in them looked up already."""

    channels: tuple[int, ...]  # of each input
    arguments: tuple[Any, ...]
    repeats: int  # after scaling
    scale_width: Callable[[int], int]  # written channels -> channels of this model size
    scale_depth: Callable[[int], int] = int  # written repeats -> repeats of this model size


@dataclass(frozen=True)
class Plan:
    """What the builder does with a row: how to call the class, how often, and what comes out."""

    arguments: tuple[Any, ...]
    out_channels: int
    copies: int = 1  # more than one become a Sequential


def _written_channels(row: Row) -> int:
    if not row.arguments:
        raise ValueError("the first argument must be the number of output channels, there is none")
    written = row.arguments[0]
    if isinstance(written, bool) or not isinstance(written, (int, float)) or written != int(written) or written < 1:
        raise ValueError(f"the first argument must be the number of output channels, not {written!r}")
    return int(written)


def single_input(row: Row) -> int:
    """Return the channels of the only input; several inputs raise ValueError."""
    if len(row.channels) != 1:
        raise ValueError(f"takes one input, the row names {len(row.channels)}")
    return row.channels[0]


def channel_plan(row: Row) -> Plan:
    """Plan a class called as (c_in, c_out, …): the first argument is scaled, the row repeated as a Sequential."""
    out_channels = row.scale_width(_written_channels(row))
    arguments = (single_input(row), out_channels, *row.arguments[1:])
    return Plan(arguments, out_channels, copies=row.repeats)


def repeat_plan(row: Row) -> Plan:
    """Plan a class that repeats its inner block itself: called once, as (c_in, c_out, repeats, …)."""
    out_channels = row.scale_width(_written_channels(row))
    return Plan((single_input(row), out_channels, row.repeats, *row.arguments[1:]), out_channels)


def same_plan(row: Row) -> Plan:
    """Plan a class that keeps the number of channels and takes its arguments as they are written."""
    return Plan(row.arguments, single_input(row), copies=row.repeats)


def find_kind(word: Any) -> Any:
    """Return the class that a row's third entry names: a layer, or a head under its name in lower case.

    What is no word raises ValueError, an unknown one UserError.
    """
    if not isinstance(word, str):
        raise ValueError(f"the third entry is the name of a module, not {word!r}")
    if word not in LAYERS and word.lower() in HEADS and word != word.lower():
        return HEADS.get(word.lower())
    return LAYERS.get(word)
