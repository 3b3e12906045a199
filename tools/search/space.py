"""What may vary: hyper-parameters and their ranges (behaviour.md 3.14)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.core.hyp import SPACE_KEY, Hyp
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

    def clipped(self, value: float) -> float:
        """Return the nearest value inside the range, rounded as files show it."""
        return min(max(round(value, 5), self.low), self.high)

    def including(self, value: Any) -> Gene:
        """Return the gene with a range that has `value` in it, so that the search can begin with it."""
        if self.choices:
            return self if value in self.choices else replace(self, choices=(value, *self.choices))
        low, high = min(self.low, value), max(self.high, value)
        return replace(self, low=low, high=high, log=self.log and low > 0)


_TABLE: dict[str, tuple[float, float, float]] = {  # gain, low, high; a gain of 0: only when asked for
    "lr0": (1, 1e-5, 0.1), "lrf": (1, 0.01, 1.0), "momentum": (0.3, 0.6, 0.98), "weight_decay": (1, 0.0, 0.001),
    "warmup_epochs": (1, 0.0, 5.0), "warmup_momentum": (1, 0.0, 0.95), "warmup_bias_lr": (1, 0.0, 0.2),
    "box": (1, 0.02, 0.2), "cls": (1, 0.2, 4.0), "cls_pw": (1, 0.5, 2.0), "obj": (1, 0.2, 4.0),
    "obj_pw": (1, 0.5, 2.0), "anchor_t": (1, 2.0, 8.0), "anchors": (2, 2.0, 10.0), "fl_gamma": (0, 0.0, 2.0),
    "hsv_h": (1, 0.0, 0.1), "hsv_s": (1, 0.0, 0.9), "hsv_v": (1, 0.0, 0.9), "degrees": (1, 0.0, 45.0),
    "translate": (1, 0.0, 0.9), "scale": (1, 0.0, 0.9), "shear": (1, 0.0, 10.0), "perspective": (0, 0.0, 0.001),
    "flipud": (1, 0.0, 1.0), "fliplr": (0, 0.0, 1.0), "mosaic": (1, 0.0, 1.0), "mixup": (1, 0.0, 1.0),
    "copy_paste": (1, 0.0, 1.0),
    # ours
    "mosaic9": (0, 0.0, 1.0), "label_smoothing": (0, 0.0, 0.2), "crop": (0, 0.05, 1.0), "jitter": (0, 0.0, 0.8),
    "seg": (0, 0.1, 1.0), "det": (0, 0.2, 1.0), "seg_label_smoothing": (0, 0.0, 0.2), "seg_dice": (0, 0.0, 1.0),
    "seg_lovasz": (0, 0.0, 1.0), "nominal_batch": (0, 1.0, 128.0),
}  # fmt: skip
_IN_LOGARITHM = ("lr0", "lrf")
_RATES = ("lr0", "lrf", "momentum", "weight_decay", "warmup_epochs", "warmup_momentum", "warmup_bias_lr")
_OF_TASKS = {
    "classify": (*_RATES, "label_smoothing", "crop", "jitter", "fliplr"),
    "semantic": (*_RATES, "seg_label_smoothing", "seg_dice"),
}
_POLYGONS = "copy_paste"  # pastes objects along their outlines: boxes have none
_START_ANCHORS = 3.0  # per level, where the hyper-parameters leave them to the network (behaviour.md 3.14)


def _gene(name: str) -> Gene:
    gain, low, high = _TABLE[name]
    return Gene(name, low, high, gain or 1.0, log=name in _IN_LOGARITHM)


def default_genes(task: str, hyp: Hyp) -> list[Gene]:
    """Return what varies for a task where the user does not say: what its loss and augmentation read."""
    if task in _OF_TASKS:
        return [_gene(name) for name in _OF_TASKS[task]]
    names = [name for name, (gain, _, _) in _TABLE.items() if gain]
    if hyp.anchors is None:
        names.remove("anchors")
    return [_gene(name) for name in names if task == "segment" or name != _POLYGONS]


def choose_genes(task: str, hyp: Hyp, hyp_file: Path, space: str = "", keys: Sequence[str] = ()) -> list[Gene]:
    """Return what varies, in ranges that have the values of `hyp` in them.

    The ranges are those of the file `space`, else of the block `search:` in the hyper-parameter file, else the usual
    ones of the task. `keys` picks some of them, and may name others, which then have their usual range.
    """
    if space:
        genes = _read_space(read_yaml(Path(space), "file of ranges"), space)
    else:
        block = read_yaml(hyp_file, "hyper-parameter file").get(SPACE_KEY)
        if block is not None and not isinstance(block, dict):
            raise UserError(f"{hyp_file}: `{SPACE_KEY}:` is a table of ranges by hyper-parameter, not {block!r:.60}")
        genes = _read_space(block, f"{hyp_file}: {SPACE_KEY}") if block else default_genes(task, hyp)
    if keys:
        given = {gene.name: gene for gene in genes}
        genes = [given.get(name) or _gene(_known(name, _TABLE, "--keys")) for name in dict.fromkeys(keys)]
    return [gene.including(start_value(hyp, gene)) for gene in genes]


def _known(name: str, among: Iterable[str], source: str) -> str:
    names = list(among)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f", did you mean {close[0]!r}?" if close else f" (known: {', '.join(names)})"
        raise UserError(f"{source}: no hyper-parameter {name!r} that can vary{hint}")
    return name


def _read_space(values: Mapping[str, Any], source: str) -> list[Gene]:
    """Return the ranges of a table: `lr0: [0.001, 0.1]`, `lr0: {low: 0.001, high: 0.1, log: true}`, `x: {choices: []}`.

    A mistake is a UserError that names source and key.
    """
    genes, names = [], [field.name for field in fields(Hyp)]
    for name, value in values.items():
        _known(name, names, source)
        given = {"low": value[0], "high": value[1]} if isinstance(value, list) and len(value) == 2 else value
        if not isinstance(given, dict) or given.keys() - {"low", "high", "log", "choices"}:
            raise UserError(f"{source}: {name}: [low, high], or low, high and log, or choices; not {value!r:.60}")
        genes.append(_read_gene(name, given, source))
    return genes


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_range(low: Any, high: Any, positive: bool) -> bool:
    return _is_number(low) and _is_number(high) and low < high and (low > 0 or not positive)


def _read_gene(name: str, given: Mapping[str, Any], source: str) -> Gene:
    usual = _gene(name) if name in _TABLE else Gene(name)
    choices = given.get("choices")
    if choices is not None:
        fits = isinstance(choices, list) and choices and all(isinstance(c, str) or _is_number(c) for c in choices)
        if not fits or given.keys() != {"choices"}:
            raise UserError(f"{source}: {name}: choices is a list of numbers or words, without a range beside it")
        gene = Gene(name, choices=tuple(choices))
    else:
        low: Any = given.get("low")
        high: Any = given.get("high")
        if not _is_range(low, high, positive=bool(given.get("log"))):
            raise UserError(
                f"{source}: {name}: low must be a number below high, above 0 with log; got {low} and {high}"
            )
        log = bool(given.get("log", usual.log)) and low > 0
        gene = Gene(name, float(low), float(high), usual.gain, log)
    for value in gene.choices or (gene.low, gene.high):
        with_values(Hyp(), {name: value}, source)  # a range that no hyper-parameter may have fails here
    return gene


def with_values(hyp: Hyp, values: Mapping[str, Any], source: str = "search") -> Hyp:
    """Return `hyp` with other values; one that it does not take is a UserError."""
    try:
        return replace(hyp, **values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}") from error


def start_value(hyp: Hyp, gene: Gene) -> Any:
    """Return what `hyp` says for a gene: where the search begins."""
    value = getattr(hyp, gene.name)
    if value is None and gene.name == "anchors":
        return _START_ANCHORS
    if value is None and not gene.choices:
        return (gene.low + gene.high) / 2
    return value if gene.choices else float(value)
