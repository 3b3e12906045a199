"""The data YAML that is written beside converted labels."""

from __future__ import annotations

from typing import Any

import yaml

from tools.converters.convert_settings import LabelSettings
from utils.core.log import LOGGER


def data_yaml(
    places: dict[str, str],
    names: tuple[str, ...],
    form: str,
    settings: LabelSettings,
    annotations: dict[str, str] | None = None,
) -> str:
    """Return a data YAML. A split called valid is `val` to training; others than train, val, test are named in full."""
    known = {"valid": "val"}
    keys = {split: known.get(_usual(split), _usual(split)) for split in places}
    if settings.images == "none":
        LOGGER.info("data.yaml names places of images that were not copied (--images none): put them there")
    values: dict[str, Any] = {keys[split]: place for split, place in places.items()}
    if len(set(keys.values())) < len(keys):
        values = dict(places)
    first = next(iter(values.values()))
    values = {"train": values.get("train", first), "val": values.get("val", first)} | values
    if annotations:
        files = {keys[split]: file for split, file in annotations.items()}
        values["annotations"] = {key: file for key, file in files.items()}
        only = next(iter(files.values()))
        values["annotations"] = {"train": files.get("train", only), "val": files.get("val", only)} | files
    values = {"format": form, **values, "names": dict(enumerate(names))}
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))


def _usual(split: str) -> str:
    """Return train, val or test for train2017 and the like."""
    return next((name for name in ("train", "valid", "val", "test") if split.startswith(name)), split)
