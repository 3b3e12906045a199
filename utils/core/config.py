"""The data-set YAML as a checked, frozen record (behaviour.md 4.1)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.core.files import ROOT
from utils.core.yaml_file import read_yaml

PIXEL_HEAD = "semantic"  # the head that learns from the `semantic:` block; all others from the rest
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SemanticConfig:
    """The images of a data set that have a class for each pixel: the same as those with boxes, or others."""

    names: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]  # folders of images or list files
    masks: dict[str, tuple[Path, ...]] = field(default_factory=dict)  # folders of maps beside them; empty: as usual
    format: str = "folders"  # a name in SEMANTIC_READERS
    palette: tuple[tuple[int, int, int], ...] = ()  # RGB of each class; empty: the usual colours
    options: dict[str, Any] = field(default_factory=dict)  # what else the format's reader takes


@dataclass(frozen=True)
class DataConfig:
    """One data set: where its images are and what its classes are called."""

    source: Path  # the YAML
    root: Path
    names: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]  # of those that the YAML names: folders of images or list files
    format: str = "yolo"  # a name in READERS
    generate: dict[str, Any] = field(default_factory=dict)  # settings of a generated data set, with its `kind`
    annotations: dict[str, Path] = field(default_factory=dict)  # COCO JSON of a split, for scoring
    defaults: dict[str, Any] = field(default_factory=dict)  # training options recommended for this data
    label_names: tuple[str, ...] = ()  # what the classes in the labels are called, where `names` are others
    semantic: SemanticConfig | None = None

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return len(self.names)

    def names_for(self, head: str) -> tuple[str, ...] | None:
        """Return the classes that a head learns here, None if there are no labels for it."""
        if head == PIXEL_HEAD:
            return None if self.semantic is None else self.semantic.names
        return self.names if self.splits else None

    @property
    def named_by_folders(self) -> bool:
        """Tell whether there is no YAML, and the classes are called as the folders of images are."""
        return self.source == self.root

    def split(self, name: str) -> tuple[Path, ...]:
        """Return the places of a split; a split the YAML does not name, or that is not there, is a UserError."""
        if name not in self.splits:
            missing = f"folder {name}" if self.named_by_folders else f"`{name}:` key"
            raise UserError(f"{self.source}: no {missing}, so there is no {name} split to read")
        for place in self.splits[name]:
            if not place.exists():
                tried = ", ".join(str(path) for path in _tried(self.source, self.root, place))
                raise UserError(f"{self.source}: `{name}:` is not there; looked for {tried}")
        return self.splits[name]

    def single_class(self) -> DataConfig:
        """Return the same data with every object of one class (`--single-cls`)."""
        return self if self.num_classes == 1 else replace(self, names=("item",), label_names=self.names)


def find_data(text: str) -> Path:
    """Return the data YAML that `--data text` names: a path, or a name in data/ with or without suffix.

    Else the folder it names, with a folder of images per class in each split: a path, or below the data sets.
    """
    names = (Path(text).name, f"{text}.yaml")
    for path in (Path(text), ROOT / text, *(ROOT / "data" / name for name in names)):
        if path.is_file():
            return path
    folders = [Path(text), ROOT / text, datasets_folder() / text] if text.strip() else []
    for path in folders:
        if path.is_dir():
            return path
    known = ", ".join(sorted(path.name for path in (ROOT / "data").glob("*.yaml")))
    tried = f"; no folder {', '.join(map(str, dict.fromkeys(folders)))}" if folders else ""
    raise UserError(f"{text}: no such data-set YAML (in data/: {known}){tried}")


def _load_folders(root: Path) -> DataConfig:
    """Return the data of a folder with train, val and test, which have a folder of images per class.

    Without val the test images stand in. The classes are the training images' folders, sorted by name.
    """
    splits = {split: (root / split,) for split in SPLITS if (root / split).is_dir()}
    if "val" not in splits and "test" in splits:
        splits["val"] = splits["test"]
    first = splits.get("train") or splits.get("val")
    if first is None:
        raise UserError(f"{root}: a data-set YAML is expected, or a folder with train/<class>/ and val/<class>/ in it")
    names = sorted(entry.name for entry in first[0].iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{first[0]}: no folders of images there, one per class")
    return DataConfig(source=root, root=root, names=tuple(names), splits=splits, format="folders")


def load_data(text: str) -> DataConfig:
    """Read and check the data YAML, or the folder of classes, that `text` names; its faults come in one UserError."""
    from pydantic import BaseModel, ConfigDict, ValidationError

    class DataYaml(BaseModel):
        """The keys a data YAML may have; users' own extra keys are left alone."""

        model_config = ConfigDict(extra="allow", strict=True)
        path: str | None = None
        train: str | list[str] | None = None
        val: str | list[str] | None = None
        test: str | list[str] | None = None
        names: list[str | int | float | bool] | dict[str | int, str | int | float | bool]
        nc: int | None = None
        format: str = "yolo"
        generate: dict[str, Any] = {}
        annotations: dict[str, str] = {}
        defaults: dict[str, Any] = {}

    path = find_data(text)
    if path.is_dir():
        return _load_folders(path)
    values = read_yaml(path, "data-set YAML")
    try:
        checked = DataYaml.model_validate(values)
    except ValidationError as error:
        keys = dict.fromkeys(str(fault["loc"][0]) for fault in error.errors())
        raise UserError(f"{path}: " + "; ".join(_expected(key, values) for key in keys)) from error
    names = _names(path, checked.names, checked.nc)
    if checked.train is None and checked.val is None and checked.test is None:
        raise UserError(f"{path}: needs `train:` and `val:`, folders of images or list files")
    places = {
        split: tuple([value] if isinstance(value, str) else value)
        for split in SPLITS
        if (value := getattr(checked, split)) not in (None, "", [])
    }
    root = _root(path, checked.path, places, generated=bool(checked.generate))
    return DataConfig(
        source=path,
        root=root,
        names=names,
        splits={split: tuple(_place(path, root, text) for text in texts) for split, texts in places.items()},
        format=checked.format,
        generate=checked.generate,
        annotations={split: _place(path, root, text) for split, text in checked.annotations.items()},
        defaults=checked.defaults,
    )


def _expected(key: str, values: dict[str, Any]) -> str:
    """Return what stands at a key of the YAML and what should."""
    wanted = {
        "path": "a folder",
        "names": "a list of class names, or a table of them by number (0: person)",
        "nc": "the whole number of classes",
        "format": "the name of a label format",
        "generate": "a table of settings",
        "annotations": "a table of COCO JSON files by split (val: file.json)",
        "defaults": "a table of training options",
    }.get(key, "a folder of images, a list file, or a list of these")
    return f"`{key}:` must be {wanted}, got {values[key]!r:.60}" if key in values else f"`{key}:` is missing, {wanted}"


def _names(path: Path, given: list[Any] | dict[Any, Any], nc: int | None) -> tuple[str, ...]:
    if isinstance(given, dict):
        keys = [int(key) if str(key).isdigit() else key for key in given]
        if sorted(map(str, keys)) != sorted(map(str, range(len(keys)))):
            raise UserError(f"{path}: `names` must number the classes 0, 1, 2, … without gaps, got {keys[:8]}")
        given = [name for _, name in sorted(zip(keys, given.values(), strict=True))]
    if not given:
        raise UserError(f"{path}: `names` is empty")
    if nc is not None and nc != len(given):
        raise UserError(f"{path}: `nc: {nc}` but `names` lists {len(given)} classes")
    return tuple(str(name) for name in given)


def datasets_folder() -> Path:
    """Return where data sets lie beside the project: $YOLOv5_DATASETS_DIR, else ../datasets."""
    return Path(os.environ.get("YOLOv5_DATASETS_DIR") or ROOT.parent / "datasets")  # noqa: SIM112


def _roots(path: Path, given: str | None) -> list[Path]:
    """Return where the data could lie, best guess first: beside the YAML, below here, below the project."""
    bases = [path.resolve().parent, Path.cwd(), ROOT]
    if given is None:
        return bases
    if Path(given).is_absolute():
        return [Path(given)]
    return [*(base / given for base in bases), datasets_folder() / Path(given).name]


def _root(path: Path, given: str | None, places: dict[str, tuple[str, ...]], generated: bool) -> Path:
    candidates = [Path(os.path.normpath(root)) for root in _roots(path, given)]
    if generated:
        return candidates[0]
    texts = [text for group in places.values() for text in group]
    scores = [sum((root / text).exists() for text in texts) for root in candidates]
    return candidates[scores.index(max(scores))]


def _place(path: Path, root: Path, text: str) -> Path:
    """Return where `text` of the YAML lies; a leading ../ that leads nowhere is tried without it (v5.0's layout)."""
    place = Path(os.path.normpath(root / text))
    if not place.exists() and text.startswith("../") and (root / text[3:]).exists():
        return Path(os.path.normpath(root / text[3:]))
    return place


def _tried(path: Path, root: Path, place: Path) -> list[Path]:
    try:
        below = place.relative_to(root)
    except ValueError:
        return [place]
    given = read_yaml(path).get("path")
    roots = _roots(path, given if isinstance(given, str) else None)
    return list(dict.fromkeys([place, *(Path(os.path.normpath(other / below)) for other in roots)]))
