"""Registries of layers and heads, and how a row of a model YAML becomes constructor arguments."""

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
    """Input of a plan: the row's inputs and arguments, in which words are already resolved."""

    channels: tuple[int, ...]  # of each input
    arguments: tuple[Any, ...]
    repeats: int  # after scaling
    scale_width: Callable[[int], int]  # written channels -> channels of this model size
    scale_depth: Callable[[int], int] = int  # written repeats -> repeats of this model size


@dataclass(frozen=True)
class Plan:
    """Result of a plan: constructor arguments, output channels, and number of copies in a Sequential."""

    arguments: tuple[Any, ...]
    out_channels: int  # 0 for heads
    copies: int = 1


def _written_channels(row: Row) -> int:
    if not row.arguments:
        raise ValueError("the first argument must be the number of output channels, but there are no arguments")
    written = row.arguments[0]
    if isinstance(written, bool) or not isinstance(written, (int, float)) or written != int(written) or written < 1:
        raise ValueError(f"the first argument must be the number of output channels, got {written!r}")
    return int(written)


def single_input(row: Row) -> int:
    """Return the channels of a row's only input; several inputs raise ValueError."""
    if len(row.channels) != 1:
        raise ValueError(f"takes one input, the row names {len(row.channels)}")
    return row.channels[0]


def channel_plan(row: Row) -> Plan:
    """Plan a class called as (in_channels, out_channels, …): the row's repeats are copies in a Sequential."""
    out_channels = row.scale_width(_written_channels(row))
    arguments = (single_input(row), out_channels, *row.arguments[1:])
    return Plan(arguments, out_channels, copies=row.repeats)


def repeat_plan(row: Row) -> Plan:
    """Plan a class called as (in_channels, out_channels, repeats, …), which repeats its inner block itself."""
    out_channels = row.scale_width(_written_channels(row))
    return Plan((single_input(row), out_channels, row.repeats, *row.arguments[1:]), out_channels)


def same_plan(row: Row) -> Plan:
    """Plan a class that keeps the number of channels and takes the row's arguments unchanged."""
    return Plan(row.arguments, single_input(row), copies=row.repeats)


def find_class(word: Any) -> Any:
    """Look up the layer or head that a row names; heads may be written with capitals.

    Raises:
        ValueError: `word` is not a string.
        UserError: No layer or head has that name.
    """
    if not isinstance(word, str):
        raise ValueError(f"the third entry must be the name of a module, got {word!r}")
    if word not in LAYERS and word.lower() in HEADS and word != word.lower():
        return HEADS.get(word.lower())
    return LAYERS.get(word)
