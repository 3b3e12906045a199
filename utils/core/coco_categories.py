"""Which class of the data set a category of a COCO JSON is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.core.errors import UserError


def match_categories(path: Path, names: Sequence[str], categories: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the category id of each class: by name if all are found, else by order if the numbers agree."""
    by_name = {str(category.get("name", "")).strip().casefold(): int(category["id"]) for category in categories}
    wanted = [name.strip().casefold() for name in names]
    if len(set(wanted)) == len(wanted) and all(name in by_name for name in wanted):
        return tuple(by_name[name] for name in wanted)
    if len(categories) == len(names):
        return tuple(int(category["id"]) for category in categories)
    missing = next((name for name, key in zip(names, wanted, strict=True) if key not in by_name), names[0])
    raise UserError(
        f"{path}: has {len(categories)} categories for {len(names)} classes and none called {missing!r}; "
        "correct `names` in the data file or pass other annotations"
    )
