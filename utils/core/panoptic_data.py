"""Panoptic data sets in a data-set YAML: `names` are the things, `stuff` the other classes of the semantic maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.core.data_config import MAX_SEMANTIC_CLASSES, PANOPTIC, SPLITS, SemanticConfig
from utils.core.errors import UserError


def panoptic_semantic(
    path: Path, checked: Any, names: tuple[str, ...], splits: Mapping[str, tuple[Path, ...]], root: Path
) -> SemanticConfig:
    """Describe the semantic maps of a panoptic data set: of the same images, with the things first.

    Args:
        path: The YAML, for messages.
        checked: Its checked content.
        names: Names of the things.
        splits: Images of each split.
        root: Folder that the paths are relative to.

    Raises:
        UserError: If a name occurs twice, there are too many, or there is a `semantic:` block.
    """
    if checked.semantic is not None:
        raise UserError(f"{path}: `format: {PANOPTIC}` has semantic maps of its own; remove `semantic:`")
    every = (*names, *(str(name) for name in checked.stuff))
    if twice := next((name for name in every if every.count(name) > 1), None):
        raise UserError(f"{path}: the class {twice!r} occurs twice in `names:` and `stuff:`; name every class once")
    if len(every) > MAX_SEMANTIC_CLASSES:
        raise UserError(f"{path}: {len(every)} classes of things and stuff; {MAX_SEMANTIC_CLASSES} at most")
    present = {split: splits[split] for split in SPLITS if split in splits}
    return SemanticConfig(names=every, splits=present, format=PANOPTIC, root=root)
