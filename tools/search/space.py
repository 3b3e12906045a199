"""Search space: which hyperparameters vary, and in which ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from utils.core.errors import UserError, did_you_mean
from utils.core.hyp import SPACE_KEY, Hyp
from utils.core.yaml_file import read_yaml


@dataclass(frozen=True)
class SearchRange:
    """Range of one hyperparameter: an interval or a list of choices."""

    name: str
    low: float = 0.0
    high: float = 0.0
    gain: float = 1.0  # strength of mutation
    log: bool = False  # sample uniformly in the logarithm
    choices: tuple[Any, ...] = ()

    def clip(self, value: float) -> float:
        """Clip `value` to the interval, rounded to the precision of the files."""
        return min(max(round(value, 5), self.low), self.high)

    def including(self, value: Any) -> SearchRange:
        """Widen the range to contain `value`, so that the search can start there."""
        if self.choices:
            return self if value in self.choices else replace(self, choices=(value, *self.choices))
        low, high = min(self.low, value), max(self.high, value)
        return replace(self, low=low, high=high, log=self.log and low > 0)


_DEFAULTS: dict[str, tuple[float, float, float]] = {  # gain, low, high; gain 0: varies only on request
    "lr0": (1, 1e-5, 0.1), "lrf": (1, 0.01, 1.0), "momentum": (0.3, 0.6, 0.98), "weight_decay": (1, 0.0, 0.001),
    "warmup_epochs": (1, 0.0, 5.0), "warmup_momentum": (1, 0.0, 0.95), "warmup_bias_lr": (1, 0.0, 0.2),
    "box": (1, 0.02, 0.2), "cls": (1, 0.2, 4.0), "cls_pw": (1, 0.5, 2.0), "obj": (1, 0.2, 4.0),
    "obj_pw": (1, 0.5, 2.0), "anchor_t": (1, 2.0, 8.0), "anchors": (2, 2.0, 10.0), "fl_gamma": (0, 0.0, 2.0),
    "hsv_h": (1, 0.0, 0.1), "hsv_s": (1, 0.0, 0.9), "hsv_v": (1, 0.0, 0.9), "degrees": (1, 0.0, 45.0),
    "translate": (1, 0.0, 0.9), "scale": (1, 0.0, 0.9), "shear": (1, 0.0, 10.0), "perspective": (0, 0.0, 0.001),
    "flipud": (1, 0.0, 1.0), "fliplr": (0, 0.0, 1.0), "mosaic": (1, 0.0, 1.0), "mixup": (1, 0.0, 1.0),
    "copy_paste": (1, 0.0, 1.0),
    # hyperparameters that YOLOv5 does not have
    "mosaic9": (0, 0.0, 1.0), "label_smoothing": (0, 0.0, 0.2), "crop": (0, 0.05, 1.0), "jitter": (0, 0.0, 0.8),
    "seg": (0, 0.1, 1.0), "det": (0, 0.2, 1.0), "seg_label_smoothing": (0, 0.0, 0.2), "seg_dice": (0, 0.0, 1.0),
    "seg_lovasz": (0, 0.0, 1.0), "nominal_batch": (0, 1.0, 128.0),
}  # fmt: skip
_LOG_SCALE = ("lr0", "lrf")
_RATES = ("lr0", "lrf", "momentum", "weight_decay", "warmup_epochs", "warmup_momentum", "warmup_bias_lr")
_TASK_KEYS = {
    "classify": (*_RATES, "label_smoothing", "crop", "jitter", "fliplr"),
    "semantic": (*_RATES, "seg_label_smoothing", "seg_dice"),
}
_NEEDS_POLYGONS = "copy_paste"  # pastes objects along their outlines
_START_ANCHORS = 3.0  # per level, if the hyperparameter file does not set them


def _default_range(name: str) -> SearchRange:
    gain, low, high = _DEFAULTS[name]
    return SearchRange(name, low, high, gain or 1.0, log=name in _LOG_SCALE)


def default_space(task: str, hyp: Hyp) -> list[SearchRange]:
    """Build the default search space of a task: hyperparameters that its losses and augmentation use."""
    if task in _TASK_KEYS:
        return [_default_range(name) for name in _TASK_KEYS[task]]
    names = [name for name, (gain, _, _) in _DEFAULTS.items() if gain]
    if hyp.anchors is None:
        names.remove("anchors")
    return [_default_range(name) for name in names if task == "segment" or name != _NEEDS_POLYGONS]


def build_space(task: str, hyp: Hyp, hyp_file: Path, space: str = "", keys: Sequence[str] = ()) -> list[SearchRange]:
    """Build the search space, widened to contain the values of `hyp`.

    Args:
        task: Name of the task.
        hyp: Start of the search.
        hyp_file: Hyperparameter file; its block `search:` may define the ranges.
        space: YAML of ranges that replaces the block (`--space`).
        keys: Hyperparameters that vary (`--keys`); those without a range have their default range.

    Raises:
        UserError: If a name is unknown or a range is invalid.
    """
    if space:
        ranges = _read_space(read_yaml(Path(space), "search space"), space)
    else:
        block = read_yaml(hyp_file, "hyperparameter file").get(SPACE_KEY)
        if block is not None and not isinstance(block, dict):
            raise UserError(f"{hyp_file}: `{SPACE_KEY}:` must be a table of ranges by name, not {block!r:.60}")
        ranges = _read_space(block, f"{hyp_file}: {SPACE_KEY}") if block else default_space(task, hyp)
    if keys:
        given = {one.name: one for one in ranges}
        ranges = [
            given.get(name) or _default_range(_check_name(name, _DEFAULTS, "--keys")) for name in dict.fromkeys(keys)
        ]
    return [one.including(start_value(hyp, one)) for one in ranges]


def _check_name(name: str, known: Iterable[str], source: str) -> str:
    names = list(known)
    if name not in names:
        raise UserError(f"{source}: unknown hyperparameter {name!r}{did_you_mean(name, names)}")
    return name


def _read_space(values: Mapping[str, Any], source: str) -> list[SearchRange]:
    """Read a table of ranges.

    A range is `lr0: [0.001, 0.1]`, `lr0: {low: 0.001, high: 0.1, log: true}` or `seg_loss: {choices: [ce, ohem]}`.
    """
    ranges, names = [], [field.name for field in fields(Hyp)]
    for name, value in values.items():
        _check_name(name, names, source)
        given = {"low": value[0], "high": value[1]} if isinstance(value, list) and len(value) == 2 else value
        if not isinstance(given, dict) or given.keys() - {"low", "high", "log", "choices"}:
            raise UserError(
                f"{source}: {name}: must be [low, high], or low, high and log, or choices; got {value!r:.60}"
            )
        ranges.append(_read_range(name, given, source))
    return ranges


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_interval(low: Any, high: Any, positive: bool) -> bool:
    return _is_number(low) and _is_number(high) and low < high and (low > 0 or not positive)


def _read_range(name: str, given: Mapping[str, Any], source: str) -> SearchRange:
    default = _default_range(name) if name in _DEFAULTS else SearchRange(name)
    choices = given.get("choices")
    if choices is not None:
        valid = isinstance(choices, list) and choices and all(isinstance(c, str) or _is_number(c) for c in choices)
        if not valid or given.keys() != {"choices"}:
            raise UserError(f"{source}: {name}: choices must be a list of numbers or words, without a range beside it")
        result = SearchRange(name, choices=tuple(choices))
    else:
        low: Any = given.get("low")
        high: Any = given.get("high")
        if not _is_interval(low, high, positive=bool(given.get("log"))):
            raise UserError(
                f"{source}: {name}: low must be a number below high, above 0 with log; got {low} and {high}"
            )
        log = bool(given.get("log", default.log)) and low > 0
        result = SearchRange(name, float(low), float(high), default.gain, log)
    for value in result.choices or (result.low, result.high):
        with_values(Hyp(), {name: value}, source)  # the ends of the range must be valid hyperparameters
    return result


def with_values(hyp: Hyp, values: Mapping[str, Any], source: str = "search") -> Hyp:
    """Replace values of `hyp`.

    Raises:
        UserError: If a value is invalid.
    """
    try:
        return replace(hyp, **values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}") from error


def start_value(hyp: Hyp, search_range: SearchRange) -> Any:
    """Return the value of `hyp` that the search starts from; if it is not set, a default."""
    value = getattr(hyp, search_range.name)
    if value is None and search_range.name == "anchors":
        return _START_ANCHORS
    if value is None and not search_range.choices:
        return (search_range.low + search_range.high) / 2
    return value if search_range.choices else float(value)
