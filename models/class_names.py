"""How many classes each head of a network has, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.layer_plan import find_kind
from utils.core.contracts import HeadSpec
from utils.core.errors import UserError


def is_head(kind: Any) -> bool:
    """Tell whether a class that a row names is a head."""
    return hasattr(kind, "decode")


def head_kinds(rows: Sequence[Any]) -> list[Any]:
    """Return the classes of the heads among the rows, in their order; rows that cannot be right are passed over."""
    kinds = []
    for row in rows:
        try:
            kind = find_kind(row[2])
        except (UserError, ValueError, TypeError, LookupError):  # the builder will say what is wrong with it
            continue
        if is_head(kind):
            kinds.append(kind)
    return kinds


def described_heads(description: Mapping[str, Any]) -> list[str]:
    """Return the names of the heads that a description has."""
    return [str(kind.name) for kind in head_kinds([*description["backbone"], *description["head"]])]


def in_words(specs: Mapping[str, HeadSpec]) -> str:
    """Return `80 classes`, or of several heads `80 classes of detect, 19 classes of semantic`."""
    if len(specs) == 1:
        return f"{next(iter(specs.values())).num_classes} classes"
    return ", ".join(f"{spec.num_classes} classes of {name}" for name, spec in specs.items())


def main_head(heads: Sequence[Any]) -> Any:
    """Return which of several heads (or their classes) gives a network its names: one with anchors, else the first."""
    return next((head for head in heads if hasattr(head, "set_anchors")), heads[0])


def settle_classes(
    description: dict[str, Any],
    kinds: Sequence[Any],
    num_classes: int | None,
    names: Sequence[str] | None,
    head_names: Mapping[str, Sequence[str]] | None,
) -> dict[str, tuple[str, ...]]:
    """Return the names of each head's classes, and write counts and names into `description`.

    Names come from `head_names`, for the main head from `names`, else from the description where they fit; the last
    resort is numbers. Faults raise UserError.
    """
    source = description["source"]
    if not kinds:
        return {}
    given = {name: tuple(map(str, classes)) for name, classes in (head_names or {}).items() if classes}
    stored, main = _stored_names(description), main_head(kinds)
    settled: dict[str, tuple[str, ...]] = {}
    for kind in kinds:
        counted = num_classes if kind is main else None
        called = given.get(kind.name, tuple(names) if kind is main and names is not None else None)
        if called is not None and kind.name in given:
            counted = len(called)
        if counted is not None:
            description[kind.classes_key] = counted
        count = description.get(kind.classes_key)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(f"{source}: `{kind.classes_key}: {count}` must be a whole number from 1 up")
        if called is None:
            known = stored.get(kind.name, ())
            called = known if len(known) == count else tuple(str(index) for index in range(count))
        if len(called) != count:  # names of another data set
            raise UserError(f"{source}: {count} classes, but {len(called)} names")
        settled[kind.name] = called
    own = {kind.name: list(settled[kind.name]) for kind in kinds if kind.classes_key != "nc"}
    description.pop("head_names", None)
    if own:
        description["head_names"] = own
    return settled


def _stored_names(description: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the description's own names of heads' classes."""
    stored = description.get("head_names", {})
    lists = stored.values() if isinstance(stored, dict) else [None]
    if any(not isinstance(entry, (list, tuple)) or not all(isinstance(name, str) for name in entry) for entry in lists):
        raise UserError(f"{description['source']}: `head_names:` must be a table like {{semantic: [road, sky]}}")
    return {str(head): tuple(entry) for head, entry in stored.items()}
