"""What may vary: hyper-parameters and their ranges (behaviour.md 3.14)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.yaml_file import read_yaml


@dataclass(frozen=True)
class Gene:
    """A hyper-parameter that varies: between two numbers, or among some values."""

    name: str
    low: float = 0.0
    high: float = 0.0
    gain: float = 1.0  # how strongly mutation changes it
    log: bool = False  # proposals are even in the logarithm
    choices: tuple[Any, ...] = ()

    def clipped(self, value: Any) -> Any:
        """Return the nearest value inside the range, rounded as files show it."""
        if self.choices:
            return value if value in self.choices else self.choices[0]
        return round(min(max(float(value), self.low), self.high), 5)


_TABLE: dict[str, tuple[float, float, float]] = {  # gain, low, high; a gain of 0: only when asked for
    "lr0": (1, 1e-5, 0.1), "lrf": (1, 0.01, 1.0), "momentum": (0.3, 0.6, 0.98), "weight_decay": (1, 0.0, 0.001),
    "warmup_epochs": (1, 0.0, 5.0), "warmup_momentum": (1, 0.0, 0.95), "warmup_bias_lr": (1, 0.0, 0.2),
    "box": (1, 0.02, 0.2), "cls": (1, 0.2, 4.0), "cls_pw": (1, 0.5, 2.0), "obj": (1, 0.2, 4.0),
    "obj_pw": (1, 0.5, 2.0), "anchor_t": (1, 2.0, 8.0), "anchors": (2, 2.0, 10.0), "fl_gamma": (0, 0.0, 2.0),
    "hsv_h": (1, 0.0, 0.1), "hsv_s": (1, 0.0, 0.9), "hsv_v": (1, 0.0, 0.9), "degrees": (1, 0.0, 45.0),
    "translate": (1, 0.0, 0.9), "scale": (1, 0.0, 0.9), "shear": (1, 0.0, 10.0), "perspective": (0, 0.0, 0.001),
    "flipud": (1, 0.0, 1.0), "fliplr": (0, 0.0, 1.0), "mosaic": (1, 0.0, 1.0), "mixup": (1, 0.0, 1.0),
    "copy_paste": (1, 0.0, 1.0), "mosaic9": (0, 0.0, 1.0), "label_smoothing": (0, 0.0, 0.2),
    "crop": (0, 0.05, 1.0), "jitter": (0, 0.0, 0.8), "seg": (0, 0.1, 1.0), "det": (0, 0.2, 1.0),
}  # fmt: skip
_IN_LOGARITHM = ("lr0", "lrf")
_OF_CLASSIFIERS = (
    "lr0", "lrf", "momentum", "weight_decay", "warmup_epochs", "warmup_momentum", "warmup_bias_lr", "label_smoothing",
    "crop", "jitter", "fliplr",
)  # fmt: skip
_POLYGONS = "copy_paste"  # pastes objects along their outlines: boxes have none


def _gene(name: str) -> Gene:
    gain, low, high = _TABLE[name]
    return Gene(name, low, high, gain or 1.0, log=name in _IN_LOGARITHM)


def default_genes(task: str, hyp: Hyp) -> list[Gene]:
    """Return what varies for a task where the user does not say: what its loss and augmentation read."""
    if task == "classify":
        return [_gene(name) for name in _OF_CLASSIFIERS]
    names = [name for name, (gain, _, _) in _TABLE.items() if gain]
    if hyp.anchors is None:
        names.remove("anchors")
    return [_gene(name) for name in names if task == "segment" or name != _POLYGONS]


def chosen_genes(names: Sequence[str]) -> list[Gene]:
    """Return the genes with these names, in the ranges of the table."""
    return [_gene(_known(name, _TABLE, "--keys")) for name in dict.fromkeys(names)]


def _known(name: str, among: Mapping[str, Any] | Sequence[str], source: str) -> str:
    if name not in among:
        close = difflib.get_close_matches(name, list(among), n=1)
        hint = f", did you mean {close[0]!r}?" if close else f" (known: {', '.join(among)})"
        raise UserError(f"{source}: no hyper-parameter {name!r} that can vary{hint}")
    return name


def read_space(path: Path) -> list[Gene]:
    """Read ranges from YAML: `lr0: [0.001, 0.1]`, `lr0: {low: 0.001, high: 0.1, log: true}`, `seg_loss: {choices: [...]}`.

    A mistake is a UserError that names file and key.
    """
    values, genes = read_yaml(path, "file of ranges"), []
    names = [field.name for field in fields(Hyp)]
    for name, value in values.items():
        _known(name, names, str(path))
        given = {"low": value[0], "high": value[1]} if isinstance(value, list) and len(value) == 2 else value
        if not isinstance(given, dict) or given.keys() - {"low", "high", "log", "choices"}:
            raise UserError(f"{path}: {name}: [low, high], or low, high and log, or choices; not {value!r}")
        genes.append(_read_gene(name, given, path))
    return genes


def _read_gene(name: str, given: dict[str, Any], path: Path) -> Gene:
    choices = given.get("choices")
    if choices is not None:
        if not isinstance(choices, list) or not choices or given.keys() != {"choices"}:
            raise UserError(f"{path}: {name}: choices is a list of values, without a range beside it")
        gene = Gene(name, choices=tuple(choices))
    else:
        low, high, log = given.get("low"), given.get("high"), bool(given.get("log", False))
        numbers = isinstance(low, (int, float)) and isinstance(high, (int, float))
        if not numbers or not low < high or (log and low <= 0):  # type: ignore[operator]
            raise UserError(f"{path}: {name}: low must be a number below high, above 0 with log; got {low} and {high}")
        gene = Gene(name, float(low), float(high), _TABLE.get(name, (1, 0, 0))[0] or 1.0, log)  # type: ignore[arg-type]
    for value in gene.choices or (gene.low, gene.high):
        with_values(Hyp(), {name: value}, f"{path}: {name}")  # a range that no hyper-parameter may have fails here
    return gene


def with_values(hyp: Hyp, values: Mapping[str, Any], source: str = "search") -> Hyp:
    """Return `hyp` with other values; one that it does not take is a UserError."""
    try:
        return replace(hyp, **values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}") from error


def start_values(hyp: Hyp, genes: Sequence[Gene]) -> dict[str, Any]:
    """Return what `hyp` says for every gene, inside its range: the first proposal."""
    return {gene.name: gene.clipped(_start(hyp, gene)) for gene in genes}


def _start(hyp: Hyp, gene: Gene) -> Any:
    value = getattr(hyp, gene.name)
    return (gene.low + gene.high) / 2 if value is None and not gene.choices else value
