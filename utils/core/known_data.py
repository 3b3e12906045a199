"""Find the data set of a checkpoint that names none: by its class names, among the data-set YAMLs of the project."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.files import ROOT
from utils.core.yaml_file import read_yaml

_NAMES_SHOWN = 3


def data_of_classes(model: str, names: Sequence[str]) -> str:
    """Choose the data set whose classes a checkpoint was trained on, if its images are on this machine.

    Args:
        model: Name of the checkpoint, for messages.
        names: Its class names.

    Returns:
        Name of a YAML in data/: the smallest data set with these classes whose validation images exist.

    Raises:
        UserError: No data set has these classes, or none of their images are here; the message names them.
    """
    found = [path for path in sorted((ROOT / "data").glob("*.yaml")) if _class_names(path) == tuple(names)]
    found.sort(key=lambda path: "128" not in path.stem)  # coco128 before coco
    for path in found:
        if all(part.exists() for part in load_data(str(path)).splits.get("val", (Path("missing"),))):
            return path.name
    classes = f"its {len(names)} classes ({', '.join(names[:_NAMES_SHOWN])}, …)"
    if not found:
        raise UserError(f"{model}: names no data set, and {classes} are those of none in data/; give --data")
    known = ", ".join(path.name for path in found)
    raise UserError(
        f"{model}: names no data set; {classes} are those of {known}, whose images are not here; "
        f"give --data {found[0].name} --download"
    )


def _class_names(path: Path) -> tuple[str, ...]:
    names = read_yaml(path, "data-set YAML").get("names") or ()
    return tuple(str(name) for name in (names.values() if isinstance(names, dict) else names))
