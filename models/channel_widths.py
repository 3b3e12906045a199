"""Channel counts of pruned networks: a record in the architecture that narrows layers while they are built.

The key `widths:` maps a row number to `out` (the channels that later rows see) and `modules` (for the convolutions,
normalisations and linear layers of the row, by dotted name, torch's attributes):

    {"4": {"out": 56, "modules": {"cv1.conv": {"in_channels": 40, "out_channels": 24}, "cv1.bn": {"num_features": 24}}}}
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from utils.core.errors import UserError

Widths = dict[str, dict[str, Any]]
ATTRIBUTES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("in_channels", "out_channels", "groups"),
    nn.ConvTranspose2d: ("in_channels", "out_channels", "groups"),
    nn.BatchNorm2d: ("num_features",),
    nn.Linear: ("in_features", "out_features"),
}
MAX_WIDTH = 1_000_000  # bounds the memory that a damaged file can ask for


def width_attributes(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's channel attributes; empty for modules without channels."""
    return next((names for kind, names in ATTRIBUTES.items() if isinstance(module, kind)), ())


def num_channels(module: nn.Module, out: bool) -> int:
    """Return the output (or input) channels of a module that has `width_attributes`."""
    names = width_attributes(module)
    return int(getattr(module, next((name for name in names if name.startswith("out_") == out), names[0])))


def check_widths(value: Any, source: str) -> Widths:
    """Validate a `widths` record and convert its row numbers to strings.

    Raises:
        UserError: The record has another structure.
    """
    if not isinstance(value, dict):
        raise UserError(f"{source}: `widths:` must be a table from row numbers to widths")
    for row, entry in value.items():
        parts = entry.get("modules", {}) if isinstance(entry, dict) else None
        valid = isinstance(parts, dict) and all(isinstance(widths, dict) for widths in parts.values())
        if not valid or entry.keys() - {"out", "modules"} or not str(row).isdigit():
            raise UserError(f"{source}: `widths:` of row {row} must be {{out: channels, modules: {{name: widths}}}}")
    return {str(row): dict(entry) for row, entry in value.items()}


def remove_rows(description: Mapping[str, Any], rows: Collection[int]) -> dict[str, Any]:
    """Copy a description without the widths of some rows, for rows that are replaced."""
    remaining = {row: entry for row, entry in description.get("widths", {}).items() if int(row) not in rows}
    rest = {key: value for key, value in description.items() if key != "widths"}
    return {**rest, "widths": remaining} if remaining else rest


def apply_widths(layer: nn.Module, entry: Mapping[str, Any]) -> None:
    """Resize the modules inside `layer` to a row's entry, with new random weights.

    Raises:
        ValueError: A module or attribute does not exist, or a width is invalid.
    """
    modules = dict(layer.named_modules())
    for name, widths in entry.get("modules", {}).items():
        if name not in modules:
            raise ValueError(f"`widths:` names {name}, which does not exist")
        _resize(modules[name], name, widths)


def _resize(module: nn.Module, name: str, widths: Mapping[str, Any]) -> None:
    known = width_attributes(module)
    for attribute, value in widths.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if attribute not in known or not whole or not 1 <= value <= MAX_WIDTH:
            raise ValueError(f"`widths:` has an invalid {attribute} for {name}: {value!r}")
        setattr(module, attribute, value)
    for parameter, shape in _shapes(module, name).items():
        old: Tensor | None = getattr(module, parameter)
        if old is not None and old.shape != shape:
            fresh = old.new_empty(shape)
            setattr(module, parameter, nn.Parameter(fresh) if isinstance(old, nn.Parameter) else fresh)
    module.reset_parameters()  # type: ignore[operator]


def _shapes(module: Any, name: str) -> dict[str, tuple[int, ...]]:
    """Compute the shape of every tensor for a module's current channel attributes."""
    if isinstance(module, nn.BatchNorm2d):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (module.num_features,))
    if isinstance(module, nn.Linear):
        return {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}
    if module.in_channels % module.groups or module.out_channels % module.groups:
        raise ValueError(f"`widths:` gives {name} channels that are not divisible by its {module.groups} groups")
    first, second = module.out_channels, module.in_channels
    if isinstance(module, nn.ConvTranspose2d):
        first, second = second, first
    return {"weight": (first, second // module.groups, *module.kernel_size), "bias": (module.out_channels,)}
