"""Matching of COCO categories to classes, for training labels (datasets) and evaluation (metrics)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.core.errors import UserError


def require_unique_ids(path: Path, categories: Iterable[Mapping[str, Any]]) -> None:
    """Refuse a COCO JSON in which two categories have one id, since its annotations are ambiguous.

    Args:
        path: the JSON, for messages.
        categories: `id` and `name` of each category.

    Raises:
        UserError: two categories have the same id.
    """
    seen: dict[Any, Any] = {}
    for category in categories:
        key, name = category.get("id"), category.get("name")
        if key in seen:
            raise UserError(f"{path}: two categories have the id {key!r}: {seen[key]!r} and {name!r}; correct the ids")
        seen[key] = name


def match_categories(path: Path, names: Sequence[str], categories: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Match the categories of a COCO JSON to classes: by name if all are found, otherwise by order.

    Args:
        path: the JSON, for messages.
        names: class names; case is ignored.
        categories: `id` and `name` of each category, in ascending order of ids.

    Returns:
        The category id of each class.

    Raises:
        UserError: a name is missing and the numbers of classes and categories differ.
    """
    by_name = {str(category.get("name", "")).strip().casefold(): int(category["id"]) for category in categories}
    wanted = [name.strip().casefold() for name in names]
    if len(set(wanted)) == len(wanted) and all(name in by_name for name in wanted):
        return tuple(by_name[name] for name in wanted)
    if len(categories) == len(names):
        return tuple(int(category["id"]) for category in categories)
    missing = next((name for name, key in zip(names, wanted, strict=True) if key not in by_name), names[0])
    raise UserError(
        f"{path}: {len(categories)} categories for {len(names)} classes, and none is named {missing!r}; "
        "correct `names` in the data YAML or use other annotations"
    )
