"""Numbers and names of the classes of each head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.layer_plan import find_class
from utils.core.contracts import HeadSpec
from utils.core.errors import UserError


def is_head(kind: Any) -> bool:
    """Check whether a layer or class is a head."""
    return hasattr(kind, "decode")


def head_classes(rows: Sequence[Any]) -> list[Any]:
    """Find the Python classes of the heads among the rows, in order; invalid rows are left to the builder."""
    kinds = []
    for row in rows:
        try:
            kind = find_class(row[2])
        except (UserError, ValueError, TypeError, LookupError):
            continue
        if is_head(kind):
            kinds.append(kind)
    return kinds


def list_heads(description: Mapping[str, Any]) -> list[str]:
    """List the names of an architecture's heads."""
    return [str(kind.name) for kind in head_classes([*description["backbone"], *description["head"]])]


def count_text(specs: Mapping[str, HeadSpec]) -> str:
    """Format class counts: `80 classes`, or for several heads `80 classes (detect), 19 classes (semantic)`."""
    if len(specs) == 1:
        return f"{next(iter(specs.values())).num_classes} classes"
    return ", ".join(f"{spec.num_classes} classes ({name})" for name, spec in specs.items())


def main_head(heads: Sequence[Any]) -> Any:
    """Choose the head (or class of a head) that names the network: one with boxes, else the first."""
    return next((head for head in heads if getattr(head, "predicts_boxes", False)), heads[0])


def resolve_class_names(
    description: dict[str, Any],
    kinds: Sequence[Any],
    num_classes: int | None,
    names: Sequence[str] | None,
    head_names: Mapping[str, Sequence[str]] | None,
) -> dict[str, tuple[str, ...]]:
    """Determine the class names of each head and write counts and names into `description`.

    Names come from `head_names`, for the main head then from `names`, then from the description where their number
    fits; the last resort is numbers.

    Args:
        description: of the network; changed in place.
        kinds: Python classes of its heads.
        num_classes: of the main head; None for the description's.
        names: of the main head's classes, or None.
        head_names: of any head's classes, by the head's name, or None.

    Returns:
        Class names by head.

    Raises:
        UserError: A count is invalid, or names and counts differ.
    """
    source = description["source"]
    if not kinds:
        return {}
    given = {name: tuple(map(str, classes)) for name, classes in (head_names or {}).items() if classes}
    stored, main = _stored_names(description), main_head(kinds)
    resolved: dict[str, tuple[str, ...]] = {}
    for kind in kinds:
        new_count = num_classes if kind is main else None
        chosen = given.get(kind.name, tuple(names) if kind is main and names is not None else None)
        if chosen is not None and kind.name in given:
            new_count = len(chosen)
        if new_count is not None:
            description[kind.classes_key] = new_count
        count = description.get(kind.classes_key)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(f"{source}: `{kind.classes_key}: {count}` must be a whole number of at least 1")
        if chosen is None:
            known = stored.get(kind.name, ())
            chosen = known if len(known) == count else tuple(str(index) for index in range(count))
        if len(chosen) != count:  # names of another data set
            raise UserError(f"{source}: {count} classes, but {len(chosen)} names")
        resolved[kind.name] = chosen
    own = {kind.name: list(resolved[kind.name]) for kind in kinds if kind.classes_key != "nc"}
    description.pop("head_names", None)
    if own:
        description["head_names"] = own
    return resolved


def _stored_names(description: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Read the class names in a description, by head."""
    stored = description.get("head_names", {})
    lists = stored.values() if isinstance(stored, dict) else [None]
    if any(not isinstance(entry, (list, tuple)) or not all(isinstance(name, str) for name in entry) for entry in lists):
        raise UserError(f"{description['source']}: `head_names:` must be a table like {{semantic: [road, sky]}}")
    return {str(head): tuple(entry) for head, entry in stored.items()}
