"""Class names of panoptic data sets: `names` are the things, `stuff` the other classes of the semantic maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.core.errors import UserError


def panoptic_names(path: Path, checked: Any, names: tuple[str, ...], limit: int) -> tuple[str, ...]:
    """List the classes of the semantic maps of a panoptic data set: the things, then the stuff.

    Args:
        path: The YAML, for messages.
        checked: Its checked content.
        names: Names of the things.
        limit: Largest number of classes.

    Raises:
        UserError: If a name occurs twice, there are too many, or there is a `semantic:` block.
    """
    if checked.semantic is not None:
        raise UserError(f"{path}: `format: {checked.format}` has semantic maps of its own; remove `semantic:`")
    every = (*names, *(str(name) for name in checked.stuff))
    if twice := next((name for name in every if every.count(name) > 1), None):
        raise UserError(f"{path}: the class {twice!r} occurs twice in `names:` and `stuff:`; name every class once")
    if len(every) > limit:
        raise UserError(f"{path}: {len(every)} classes of things and stuff; {limit} at most")
    return every
