"""The data-set YAML as a checked, frozen record (behaviour.md 4.1)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.core.cityscapes import NAMES as CITYSCAPES
from utils.core.coco_folder import category_names, coco_annotations
from utils.core.data_yaml_schema import expected, forms
from utils.core.errors import UserError
from utils.core.files import ROOT
from utils.core.yaml_file import read_text, read_yaml

PIXEL_HEAD = "semantic"  # the head that learns from the `semantic:` block; all others from the rest
SPLITS = ("train", "val", "test")
_SEGMENTED = {"segtrain": "train", "segval": "val", "segtest": "test"}  # multiyolov5's keys
_STREETS = ("cityscapes", "citybdd", "bdd100k")  # formats whose classes are known


@dataclass(frozen=True)
class SemanticConfig:
    """The images of a data set that have a class for each pixel: the same as those with boxes, or others."""

    names: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]  # folders of images or list files
    masks: dict[str, tuple[Path, ...]] = field(default_factory=dict)  # folders of maps beside them; empty: as usual
    format: str = "folders"  # a name in SEMANTIC_READERS
    palette: tuple[tuple[int, int, int], ...] = ()  # RGB of each class; empty: the usual colours
    options: dict[str, Any] = field(default_factory=dict)  # what else the format's reader takes
    root: Path | None = None  # of the places, where it is not the data set's


@dataclass(frozen=True)
class DataConfig:
    """One data set: where its images are and what its classes are called."""

    source: Path  # the YAML
    root: Path
    names: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]  # of those that the YAML names: folders of images or list files
    format: str = "auto"  # a name in READERS; this one looks at the files
    generate: dict[str, Any] = field(default_factory=dict)  # settings of a generated data set, with its `kind`
    annotations: dict[str, Path] = field(default_factory=dict)  # COCO JSON of a split: to score, for `coco` to train
    defaults: dict[str, Any] = field(default_factory=dict)  # training options recommended for this data
    label_names: tuple[str, ...] = ()  # what the classes in the labels are called, where `names` are others
    semantic: SemanticConfig | None = None
    download: Any = None  # as the YAML has it; utils/datasets/fetch/dataset_download.py knows what it means

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
        return self.source == self.root and self.format == "folders"

    def split(self, name: str) -> tuple[Path, ...]:
        """Return the places of a split; a split the YAML does not name, or that is not there, is a UserError."""
        if name not in self.splits:
            missing = f"folder {name}" if self.named_by_folders else f"`{name}:` key"
            if self.source == self.root and self.format == "coco":
                missing = f"annotations/instances_{name}*.json with a folder of images"
            raise UserError(f"{self.source}: no {missing}, so there is no {name} split to read")
        for place in self.splits[name]:
            if not place.exists():
                tried = ", ".join(str(path) for path in _tried(self.source, self.root, place))
                raise UserError(f"{self.source}: `{name}:` is not there; looked for {tried}{self._how_to_fetch()}")
        return self.splits[name]

    def semantic_split(self, name: str) -> tuple[Path, ...]:
        """Return where the images of a split lie that have a class per pixel; UserError as for `split`."""
        if self.semantic is None:
            raise UserError(f"{self.source}: no `semantic:` block, so its images have no class per pixel")
        if name not in self.semantic.splits:
            raise UserError(f"{self.source}: no `{name}:` key in `semantic:`, so there is no {name} split to read")
        root = self.semantic.root or self.root
        masks = self.semantic.masks.get(name, ())
        for what, places in ((name, self.semantic.splits[name]), (f"masks.{name}", masks)):
            for place in places:
                if not place.exists():
                    tried = ", ".join(str(path) for path in _tried(self.source, root, place, "semantic"))
                    where = f"{self.source}: `semantic.{what}:` is not there; looked for {tried}"
                    raise UserError(where + self._how_to_fetch())
        return self.semantic.splits[name]

    def _how_to_fetch(self) -> str:
        """Return the end of a message about missing data: the command that fetches it, if the YAML says from where."""
        if not isinstance(self.download, list) or not self.download:
            return ""
        name = self.source.name if self.source.parent == ROOT / "data" else self.source
        return f"; to fetch it: python check.py --data {name} --download"

    def single_class(self) -> DataConfig:
        """Return the same data with every object of one class (`--single-cls`)."""
        called = self.label_names or self.names
        return self if self.num_classes == 1 else replace(self, names=("item",), label_names=called)


def find_data(text: str) -> Path:
    """Return the data YAML that `--data text` names: a path, or a name in data/ with or without suffix.

    Else the folder it names, with a folder of images per class in each split, or in COCO's layout: a path, or below
    the data sets.
    """
    names = (Path(text).name, f"{text}.yaml")
    for path in (Path(text), ROOT / text, *(ROOT / "data" / name for name in names)):
        if path.is_file():
            return path
    folders = [Path(text), ROOT / text, datasets_folder() / text] if text.strip() else []
    for path in folders:
        if path.is_dir():
            return path
    files = sorted((ROOT / "data").glob("*.yaml"))
    alike = [path for path in files if path.name.lower() in (names[0].lower(), names[1].lower())]
    if alike:  # `imagenet`, `voc`
        return alike[0]
    known = ", ".join(path.name for path in files)
    tried = f"; no folder {', '.join(map(str, dict.fromkeys(folders)))}" if folders else ""
    raise UserError(f"{text}: no such data-set YAML (in data/: {known}){tried}")


def _load_folders(root: Path) -> DataConfig:
    """Return the data of a folder: COCO's own layout, or train, val and test with a folder of images per class.

    Of the latter the test images stand in for missing val; the classes are the training images' folders by name.
    """
    if parts := coco_annotations(root, SPLITS):
        return DataConfig(
            source=root,
            root=root,
            names=category_names([file for _, file in parts.values()]),
            splits={split: (folder,) for split, (folder, _) in parts.items()},
            format="coco",
            annotations={split: file for split, (_, file) in parts.items()},
        )
    splits: dict[str, tuple[Path, ...]] = {split: (root / split,) for split in SPLITS if (root / split).is_dir()}
    if "val" not in splits and "test" in splits:
        splits["val"] = splits["test"]
    first = splits.get("train") or splits.get("val")
    if first is None:
        raise UserError(
            f"{root}: a data-set YAML is expected, or a folder with train/<class>/ and val/<class>/, or COCO's layout"
        )
    names = sorted(entry.name for entry in first[0].iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{first[0]}: no folders of images there, one per class")
    return DataConfig(source=root, root=root, names=tuple(names), splits=splits, format="folders")


def load_data(text: str) -> DataConfig:
    """Read and check the data YAML, or the folder, that `text` names; its faults come in one UserError.

    A data set has boxes (`names`, `train`, `val`), pixels with classes (`semantic`, or multiyolov5's `segtrain` and
    `segval`), or both.
    """
    from pydantic import ValidationError

    path = find_data(text)
    if path.is_dir():
        return _load_folders(path)
    values = _with_semantic(path, read_yaml(path, "data-set YAML"))
    pixels = values.get("semantic") is not None
    boxed = not pixels or any(values.get(key) is not None for key in (*SPLITS, "names"))
    missing = ["names"] if boxed and values.get("names") is None else []
    try:
        checked = forms()[0].model_validate(values)
    except ValidationError as error:
        keys = dict.fromkeys(tuple(map(str, fault["loc"][:2])) for fault in error.errors())
        found = [expected((key,), values) for key in missing]
        found += [expected(key if key[0] == "semantic" else key[:1], values) for key in keys]
        raise UserError(f"{path}: " + "; ".join(dict.fromkeys(found))) from error
    if missing:
        raise UserError(f"{path}: {expected(('names',), values)}")
    names = _names(path, checked.names, checked.nc) if boxed else ()
    if boxed and checked.train is None and checked.val is None and checked.test is None:
        raise UserError(f"{path}: needs `train:` and `val:`, folders of images or list files")
    places = _places(checked)
    root = _root(path, checked.path, places, generated=bool(checked.generate))
    semantic = _semantic(path, checked, names) if pixels else None
    return DataConfig(
        source=path,
        root=root if boxed or semantic is None else semantic.root or root,
        names=names,
        splits={split: tuple(_place(root, text) for text in texts) for split, texts in places.items()},
        format=checked.format,
        generate=checked.generate,
        annotations={split: _place(root, text) for split, text in checked.annotations.items()},
        defaults=checked.defaults,
        label_names=_label_names(path, checked.label_names, names),
        download=checked.download,
        semantic=semantic,
    )


def _names(path: Path, given: list[Any] | dict[Any, Any], nc: int | None, block: str = "") -> tuple[str, ...]:
    if isinstance(given, dict):
        keys = [int(key) if str(key).isdigit() else key for key in given]
        if sorted(map(str, keys)) != sorted(map(str, range(len(keys)))):
            raise UserError(f"{path}: `{block}names` must number the classes 0, 1, 2, … without gaps, got {keys[:8]}")
        given = [name for _, name in sorted(zip(keys, given.values(), strict=True))]
    if not given:
        raise UserError(f"{path}: `{block}names` is empty")
    if nc is not None and nc != len(given):
        raise UserError(f"{path}: `{block}nc: {nc}` but `{block}names` lists {len(given)} classes")
    return tuple(str(name) for name in given)


def _label_names(path: Path, given: list[Any] | None, names: tuple[str, ...]) -> tuple[str, ...]:
    if given is not None and len(given) != len(names):
        raise UserError(f"{path}: `label_names` lists {len(given)} classes, `names` {len(names)}")
    return tuple(str(name) for name in given or ())


def _places(checked: Any) -> dict[str, tuple[str, ...]]:
    """Return the texts of the splits that are named."""
    return {
        split: tuple([value] if isinstance(value, str) else value)
        for split in SPLITS
        if (value := getattr(checked, split)) not in (None, "", [])
    }


# ----------------------------------------------------------------------------------------------------------------------
# Pixels


def _with_semantic(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with multiyolov5's `segtrain`, `segval` (and our `segnames`) as a `semantic:` block."""
    flat = {key: values[key] for key in (*_SEGMENTED, "segnames") if values.get(key) not in (None, "", [])}
    if not flat:
        return values
    block = values.get("semantic") or {}
    if not isinstance(block, dict):
        return values
    moved = {_SEGMENTED.get(key, "names"): value for key, value in flat.items()}
    if twice := sorted(moved.keys() & block.keys()):
        old = next(key for key in flat if _SEGMENTED.get(key, "names") == twice[0])
        raise UserError(f"{path}: `{old}:` and `semantic.{twice[0]}:` say the same thing twice; keep one")
    return values | {"semantic": block | moved}


def _semantic(path: Path, checked: Any, box_names: tuple[str, ...]) -> SemanticConfig:
    """Return the checked record of the `semantic:` block."""
    block = checked.semantic
    places = _places(block)
    if not places:
        raise UserError(f"{path}: `semantic:` needs `train:` and `val:`, folders of images or list files")
    generated = bool(checked.generate) and block.path is None
    root = _root(path, block.path or checked.path, places, generated)
    splits = {split: tuple(_place(root, text) for text in texts) for split, texts in places.items()}
    layout = block.format or _street_layout(splits) or "folders"
    masks = {split: (value,) if isinstance(value, str) else tuple(value) for split, value in block.masks.items()}
    names = _semantic_names(path, block, root, layout, box_names)
    if block.palette is not None and len(block.palette) != len(names):
        raise UserError(f"{path}: `semantic.palette` has {len(block.palette)} colours for {len(names)} classes")
    own = ("ignore", "ids", "base", "low", "high", "std", "flip", "jitter", "crop")
    options = {key: value for key in own if (value := getattr(block, key)) is not None}
    if wrong := [number for number in (block.ids or {}).values() if len(names) <= number < 255]:
        raise UserError(f"{path}: `semantic.ids` has class {wrong[0]}, but `semantic.names` ends at {len(names) - 1}")
    return SemanticConfig(
        names=names,
        splits=splits,
        masks={split: tuple(_place(root, text) for text in texts) for split, texts in masks.items()},
        format=layout,
        palette=tuple((r, g, b) for r, g, b in block.palette or ()),
        options=options,
        root=root,
    )


def _semantic_names(path: Path, block: Any, root: Path, layout: str, box_names: tuple[str, ...]) -> tuple[str, ...]:
    given = block.names
    if given is None and layout in _STREETS:
        given = list(CITYSCAPES)
    elif given is None and layout == "shapes" and box_names:
        given = [*box_names, "background"]
    elif given is None:
        raise UserError(
            f"{path}: the names of the pixels' classes are missing: give `segnames:` beside `segtrain:`, or `names:` "
            "in `semantic:`, in the order of the numbers in the masks (segnames: [background, crack])"
        )
    if isinstance(given, str):
        given = [line.strip() for line in read_text(_place(root, given), "list of names").splitlines() if line.strip()]
    names = _names(path, given, block.nc, "semantic.")
    if len(names) > 255:
        raise UserError(f"{path}: `semantic.names` lists {len(names)} classes; a mask's byte holds 255 at most")
    return names


def _street_layout(splits: dict[str, tuple[Path, ...]]) -> str | None:
    """Return the layout of a Cityscapes tree, with or without BDD100K's images in it; None if it is none."""
    for place in (place for places in splits.values() for place in places):
        tree = place / "leftImg8bit"
        below = [tree] if tree.is_dir() else [up for up in (place, *place.parents) if up.name == "leftImg8bit"]
        if below:
            mixed = next(below[0].glob("*/*/*.jpg"), None) is not None
            return "citybdd" if mixed else "cityscapes"
    return None


def segmented_folder(folder: Path) -> DataConfig:
    """Return the data set that a bare folder holds: a Cityscapes tree, as multiyolov5's `--segdata` names one."""
    splits: dict[str, tuple[Path, ...]] = {split: (folder,) for split in SPLITS}
    layout = _street_layout(splits)
    if layout is None:
        raise UserError(f"{folder}: holds no leftImg8bit folder; write a YAML with a `semantic:` block and name that")
    semantic = SemanticConfig(names=CITYSCAPES, splits=splits, format=layout, root=folder)
    return DataConfig(source=folder, root=folder, names=(), splits={}, semantic=semantic)


def find_semantic(text: str) -> SemanticConfig:
    """Return the images with a class per pixel that `text` names: a data-set YAML, or a folder like Cityscapes'."""
    folder = Path(text)
    data = segmented_folder(folder) if folder.is_dir() else load_data(text)
    if data.semantic is None:
        raise UserError(f"{data.source}: no `semantic:` block, so there are no classes of pixels")
    return data.semantic


# ----------------------------------------------------------------------------------------------------------------------
# Places


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


def _place(root: Path, text: str) -> Path:
    """Return where `text` of the YAML lies; a leading ../ that leads nowhere is tried without it (v5.0's layout)."""
    place = Path(os.path.normpath(root / text))
    if not place.exists() and text.startswith("../") and (root / text[3:]).exists():
        return Path(os.path.normpath(root / text[3:]))
    return place


def _tried(path: Path, root: Path, place: Path, block: str = "") -> list[Path]:
    try:
        below = place.relative_to(root)
    except ValueError:
        return [place]
    values = read_yaml(path) if path.is_file() else {}
    inner = values.get(block) if block else None
    given = (inner.get("path") if isinstance(inner, dict) else None) or values.get("path")
    roots = _roots(path, given if isinstance(given, str) else None)
    return list(dict.fromkeys([place, *(Path(os.path.normpath(other / below)) for other in roots)]))
