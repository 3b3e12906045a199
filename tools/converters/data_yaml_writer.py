"""Formatting of the data YAML written beside converted labels."""

from __future__ import annotations

from typing import Any

import yaml

from tools.converters.convert_settings import LabelSettings
from utils.core.log import LOGGER


def format_data_yaml(
    splits: dict[str, str],
    names: tuple[str, ...],
    label_format: str,
    settings: LabelSettings,
    annotations: dict[str, str] | None = None,
) -> str:
    """Format a data YAML.

    Splits such as `train2017` are written as train, val or test, and `valid` as val, unless two of them would collide.

    Args:
        splits: Path of each split, relative to the YAML.
        names: Class names.
        label_format: Value of `format:`.
        settings: Settings of the conversion.
        annotations: Annotation file of each split, for formats with one file per split.

    Returns:
        Content of the YAML.
    """
    known = {"valid": "val"}
    keys = {split: known.get(_standard_name(split), _standard_name(split)) for split in splits}
    if settings.images == "none":
        LOGGER.info("data.yaml refers to images that were not copied (--images none); put them there before training")
    values: dict[str, Any] = {keys[split]: path for split, path in splits.items()}
    if len(set(keys.values())) < len(keys):
        values = dict(splits)
    first = next(iter(values.values()))
    values = {"train": values.get("train", first), "val": values.get("val", first)} | values
    if annotations:
        files = {keys[split]: file for split, file in annotations.items()}
        only = next(iter(files.values()))
        values["annotations"] = {"train": files.get("train", only), "val": files.get("val", only)} | files
    values = {"format": label_format, **values, "names": dict(enumerate(names))}
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))


def _standard_name(split: str) -> str:
    return next((name for name in ("train", "valid", "val", "test") if split.startswith(name)), split)
