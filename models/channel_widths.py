"""Networks narrower than their rows say: a record of widths in the description, put on while a network is built.

`widths:` of a description has, for the number of a row, `out` (the channels that later rows see) and `modules` (for the
convolutions, normalisations and linear layers in it, by dotted name, the attributes that torch gives them):

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
MAX_WIDTH = 1_000_000


def attributes_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the attributes that say how wide a module is, none for modules without a width."""
    return next((names for kind, names in ATTRIBUTES.items() if isinstance(module, kind)), ())


def width_of(module: nn.Module, out: bool) -> int:
    """Return how many channels a module that has widths gives, or takes."""
    names = attributes_of(module)
    return int(getattr(module, next((name for name in names if name.startswith("out_") == out), names[0])))


def check_widths(value: Any, source: str) -> Widths:
    """Return the record with numbers of rows as text; one that is no such record raises UserError."""
    if not isinstance(value, dict):
        raise UserError(f"{source}: `widths:` must be a table from numbers of rows to widths")
    for row, entry in value.items():
        parts = entry.get("modules", {}) if isinstance(entry, dict) else None
        right = isinstance(parts, dict) and all(isinstance(widths, dict) for widths in parts.values())
        if not right or entry.keys() - {"out", "modules"} or not str(row).isdigit():
            raise UserError(f"{source}: `widths:` of row {row} must be {{out: channels, modules: {{name: widths}}}}")
    return {str(row): dict(entry) for row, entry in value.items()}


def without_rows(description: Mapping[str, Any], rows: Collection[int]) -> dict[str, Any]:
    """Return a description that no longer says how wide some rows are, since others take their place."""
    kept = {row: entry for row, entry in description.get("widths", {}).items() if int(row) not in rows}
    rest = {key: value for key, value in description.items() if key != "widths"}
    return {**rest, "widths": kept} if kept else rest


def put_on(layer: nn.Module, entry: Mapping[str, Any]) -> None:
    """Give the modules inside `layer` the widths that a row's entry says, with fresh weights; nonsense: ValueError."""
    modules = dict(layer.named_modules())
    for name, widths in entry.get("modules", {}).items():
        if name not in modules:
            raise ValueError(f"`widths:` names {name}, which is not there")
        _resize(modules[name], name, widths)


def _resize(module: nn.Module, name: str, widths: Mapping[str, Any]) -> None:
    known = attributes_of(module)
    for attribute, value in widths.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if attribute not in known or not whole or not 1 <= value <= MAX_WIDTH:
            raise ValueError(f"`widths:` says {attribute}: {value!r} of {name}")
        setattr(module, attribute, value)
    for parameter, shape in _shapes(module, name).items():
        old: Tensor | None = getattr(module, parameter)
        if old is not None and old.shape != shape:
            fresh = old.new_empty(shape)
            setattr(module, parameter, nn.Parameter(fresh) if isinstance(old, nn.Parameter) else fresh)
    module.reset_parameters()  # type: ignore[operator]


def _shapes(module: Any, name: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a module's widths ask for."""
    if isinstance(module, nn.BatchNorm2d):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (module.num_features,))
    if isinstance(module, nn.Linear):
        return {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}
    if module.in_channels % module.groups or module.out_channels % module.groups:
        raise ValueError(f"`widths:` gives {name} channels that its {module.groups} groups do not divide")
    first, second = module.out_channels, module.in_channels
    if isinstance(module, nn.ConvTranspose2d):
        first, second = second, first
    return {"weight": (first, second // module.groups, *module.kernel_size), "bias": (module.out_channels,)}
