"""Names, files and texts of model YAMLs to a description: a plain dictionary for a network of one size."""

from __future__ import annotations

import copy
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

from models.channel_widths import check_widths
from utils.core.errors import UserError, did_you_mean
from utils.core.yaml_file import parse_yaml, read_yaml

CONFIGS = Path(__file__).parent / "configs"
MULTIPLES = ("depth_multiple", "width_multiple")
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_FAMILY_KEYS = ("base", "pattern", "scale", "scales", "rows")  # resolved here, absent from descriptions
MAX_MULTIPLE, MAX_COUNT, MAX_ANCHORS = 100, 1_000_000, 100  # bound what a damaged file can ask for


@cache
def known_names() -> dict[str, tuple[str, str]]:
    """Map every name of the families in models/configs to its (file stem, scale)."""
    names = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        family = _family(path.stem)
        for scale in family["scales"]:
            names[str(family["pattern"]).format(scale)] = (path.stem, str(scale))
    for path in CONFIGS.glob("*.yaml"):
        names.setdefault(path.stem, (path.stem, str(_family(path.stem)["scale"])))
    return names


@cache
def _family(stem: str) -> dict[str, Any]:
    """Read a family's YAML merged with its base; cached, so callers must not change it."""
    return _with_base(read_yaml(CONFIGS / f"{stem}.yaml", "model YAML"), f"{stem}.yaml")


def _with_base(values: dict[str, Any], source: str) -> dict[str, Any]:
    if "base" not in values:
        return values
    stem = str(values["base"])
    if not (CONFIGS / f"{stem}.yaml").is_file():
        raise UserError(f"{source}: `base: {stem}`: models/configs has no such family")
    merged = {**copy.deepcopy(_family(stem)), **values}
    rows = [*merged["backbone"], *merged["head"]]
    split = len(merged["backbone"])
    for index, row in sorted((values.get("rows") or {}).items(), key=lambda entry: str(entry[0]).zfill(9)):
        if not isinstance(index, int) or not 0 <= index <= len(rows):
            raise UserError(f"{source}: `rows:` replaces row {index!r}, but {stem} has rows 0 to {len(rows) - 1}")
        rows[index : index + 1] = [row]  # the number after the last row adds one
    while rows and rows[-1] is None:  # `24: null` removes the last row
        rows.pop()
    merged["backbone"], merged["head"] = rows[:split], rows[split:]
    del merged["base"]
    return merged


def read_architecture(source: str | Path | dict[str, Any], scale: str | None = None) -> dict[str, Any]:
    """Read the description of one network.

    Args:
        source: a dictionary, the text of a YAML, its path, or a name (`yolov5s`, `yolov5s.yaml`,
            `models/segment/yolov5s-seg.yaml`, a torchvision classifier, …). An existing file takes precedence.
        scale: key of the `scales:` table; None for the name's or the file's default.

    Returns:
        Plain values: `backbone` and `head` rows, multiples, `nc`, `anchors`, … (docs/reference/network.md).

    Raises:
        UserError: The source does not exist or a key is invalid; rows are checked by `build_network`.
    """
    if isinstance(source, dict):
        return _resolved(source, str(source.get("source") or "model description"), None, scale)
    text = str(source)
    if "\n" in text:
        values = parse_yaml(text, "model YAML")
        if not isinstance(values, dict):
            raise UserError("model YAML: expected lines of `key: value`")
        return _resolved(values, "model YAML", None, scale)
    path = Path(text)
    if path.is_file():
        return _resolved(read_yaml(path, "model YAML"), text, path.stem, scale)
    name = re.sub(r"\.ya?ml$", "", path.name.strip())
    if name not in known_names():
        classifiers = _torchvision_names()
        if name in classifiers:
            return _resolved(_torchvision(name), name, name, None)
        hint = did_you_mean(name, [*known_names(), *classifiers])
        raise UserError(f"{text}: no such model YAML and no model of this name{hint}")
    stem, found_scale = known_names()[name]
    return _resolved(_family(stem), f"{stem}.yaml", name, scale or found_scale)


def _torchvision_names() -> list[str]:
    from models.heads.torchvision import classifier_names  # only where the name is not that of a file

    try:
        return classifier_names()
    except UserError:  # torchvision is missing
        return []


def _torchvision(name: str) -> dict[str, Any]:
    """Describe a complete torchvision network."""
    return {"nc": 1000, "normalise": IMAGENET, "backbone": [], "head": [[-1, 1, "Torchvision", [name, "nc"]]]}


def _resolved(values: dict[str, Any], source: str, name: str | None, scale: str | None) -> dict[str, Any]:
    """Copy and check a description, with one size chosen from its `scales:` table, if any."""
    values = _with_base({str(key): copy.deepcopy(value) for key, value in values.items()}, source)
    if "scales" in values:
        _choose_scale(values, source, scale)
    for key in _FAMILY_KEYS:
        values.pop(key, None)
    values["name"] = str(values.get("name") or name or "network")
    values["source"] = source
    for key in MULTIPLES:
        values[key] = _number(values.get(key, 1.0), key, source)
    _check_keys(values, source)
    return values


def _choose_scale(values: dict[str, Any], source: str, scale: str | None) -> None:
    scales = values["scales"]
    if not isinstance(scales, dict) or not scales:
        raise UserError(f"{source}: `scales:` must be a table like {{n: [depth, width], s: [depth, width]}}")
    chosen = scale or values.get("scale") or next(iter(scales))
    multiples = {str(key): value for key, value in scales.items()}.get(str(chosen))
    if not isinstance(multiples, list) or len(multiples) != 2:
        raise UserError(
            f"{source}: `scales:` has no [depth, width] for {chosen!r}; it has {', '.join(map(str, scales))}"
        )
    values.update(zip(MULTIPLES, multiples, strict=True))
    values.setdefault("exempt_output_width", False)


def _number(value: Any, key: str, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_MULTIPLE:
        raise UserError(f"{source}: `{key}: {value}` must be a number above 0 and at most {MAX_MULTIPLE}")
    return float(value)


def _check_keys(values: dict[str, Any], source: str) -> None:
    for key in ("backbone", "head"):
        if not isinstance(values.get(key), list):
            raise UserError(f"{source}: the key `{key}:` is missing or not a list of rows")
    for key, default in (("nc", values.get("n_segcls")), ("ch", 3), ("channel_multiple", 8)):
        value = values.setdefault(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
            raise UserError(f"{source}: `{key}: {value}` must be a whole number of at least 1")
    if "widths" in values:
        values["widths"] = check_widths(values["widths"], source)
    if "anchors" in values:
        _check_anchors(values["anchors"], source)
    if "normalise" in values:
        _check_normalise(values["normalise"], values["ch"], source)
    dropout = values.get("dropout", 0.0)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise UserError(f"{source}: `dropout: {dropout}` must be a probability of at least 0 and below 1")
    if not isinstance(values.get("activation", ""), str):
        raise UserError(f"{source}: `activation: {values['activation']}` must be a name like nn.LeakyReLU(0.1)")


def _check_normalise(given: Any, channels: int, source: str) -> None:
    """Check for a finite mean and a positive standard deviation per channel."""
    valid = isinstance(given, dict) and given.keys() == {"mean", "std"}
    for values in given.values() if valid else ():
        numbers = isinstance(values, (list, tuple)) and all(type(value) in (int, float) for value in values)
        valid = valid and numbers and len(values) == channels and all(map(math.isfinite, values))
    if not valid or min(given["std"]) <= 0:
        raise UserError(f"{source}: `normalise:` must be {{mean: [...], std: [...]}}, {channels} numbers each")


def _check_anchors(anchors: Any, source: str) -> None:
    if isinstance(anchors, int) and not isinstance(anchors, bool) and 1 <= anchors <= MAX_ANCHORS:
        return
    if not isinstance(anchors, list) or not anchors:
        raise UserError(
            f"{source}: `anchors:` must be a number of anchors per level, or a list [w, h, w, h, …] for each level"
        )
    for index, level in enumerate(anchors):
        numbers = isinstance(level, list) and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v < math.inf for v in level
        )
        if not numbers or len(level) < 2 or len(level) % 2:
            raise UserError(f"{source}: anchors of level {index} must be pairs of numbers above 0, [w, h, w, h, …]")
        if len(level) != len(anchors[0]):
            raise UserError(
                f"{source}: level {index} has {len(level) // 2} anchors, level 0 has {len(anchors[0]) // 2}"
            )
