"""Data-set YAML as a validated, frozen record. The keys are described in docs/reference/data.md."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.core.cityscapes import NAMES as CITYSCAPES
from utils.core.data_paths import find_data, find_root, resolve, resolve_all, searched_paths
from utils.core.data_yaml_schema import describe_fault, schemas
from utils.core.errors import UserError
from utils.core.files import ROOT
from utils.core.yaml_file import read_text, read_yaml

PANOPTIC = "coco-panoptic"  # format of data sets with boxes, instance masks and semantic maps of the same images
SEMANTIC_HEAD = "semantic"  # the head that learns from the `semantic:` block; all others learn from the other keys
SPLITS = ("train", "val", "test")
MAX_NAME_CHARACTERS = 1000  # of a class; longer names come from a wrong file
MAX_SEMANTIC_CLASSES = 255  # semantic maps are uint8, and 255 marks ignored pixels
_MULTIYOLOV5_SPLITS = {"segtrain": "train", "segval": "val", "segtest": "test"}
_CITYSCAPES_FORMATS = ("cityscapes", "citybdd", "bdd100k")  # layouts with the 19 classes of Cityscapes
_SEMANTIC_OPTIONS = ("ignore", "ids", "base", "low", "high", "std", "flip", "jitter", "crop")


@dataclass(frozen=True)
class SemanticConfig:
    """Images with semantic labels: those of the detection data, or others.

    Attributes:
        names: Class names.
        splits: Image folders or list files of each split.
        masks: Mask folders of each split; empty: where the format has them.
        format: Name of a layout in SEMANTIC_READERS.
        palette: RGB colour of each class; empty: the default colours.
        options: Other settings of the `semantic:` block.
        root: Folder that the paths are relative to, if it is not the one of the data set.
    """

    names: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]
    masks: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    format: str = "folders"
    palette: tuple[tuple[int, int, int], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    root: Path | None = None


@dataclass(frozen=True)
class DataConfig:
    """Data set: its images, labels and class names.

    Attributes:
        source: The YAML file, or the folder of a data set without one.
        root: Folder that the paths are relative to.
        names: Class names; empty if the data set has semantic labels only.
        splits: Image folders or list files of each split.
        format: Name of a label format in READERS; "auto" detects it from the files.
        generate: Settings of a generated data set, with its `kind`.
        annotations: COCO JSON file of each split, for scoring, and for training with the format "coco".
        defaults: Recommended training options.
        label_names: Class names as the labels have them, if they differ from `names`.
        semantic: Images with semantic labels.
        shuffle_window: Number of successive images within which training shuffles; 0: all.
        download: The `download:` key as it is; `utils/datasets/fetch/dataset_download.py` interprets it.
    """

    source: Path
    root: Path
    names: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]
    format: str = "auto"
    generate: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, Path] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    semantic: SemanticConfig | None = None
    download: Any = None
    shuffle_window: int = 0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    def names_for(self, head: str) -> tuple[str, ...] | None:
        """Get the class names that a head learns from this data; None if there are no labels for it."""
        if head == SEMANTIC_HEAD:
            return None if self.semantic is None else self.semantic.names
        return self.names if self.splits else None

    @property
    def is_panoptic(self) -> bool:
        """Whether every pixel has a segment: an instance of a thing, or stuff."""
        return self.semantic is not None and self.format == PANOPTIC == self.semantic.format

    @property
    def is_class_folders(self) -> bool:
        """Whether this is a folder of image folders, one per class, without a YAML."""
        return self.source == self.root and self.format == "folders"

    def split(self, name: str) -> tuple[Path, ...]:
        """Get the image folders or list files of a split.

        Raises:
            UserError: If the data set has no such split or one of its paths does not exist.
        """
        if name not in self.splits:
            missing = f"folder {name}" if self.is_class_folders else f"`{name}:` key"
            if self.source == self.root and self.format == "coco":
                missing = f"annotations/instances_{name}*.json with a folder of images"
            raise UserError(f"{self.source}: no {missing}, so there is no {name} split to read")
        for path in self.splits[name]:
            if not path.exists():
                tried = ", ".join(map(str, searched_paths(self.source, self.root, path)))
                raise UserError(f"{self.source}: `{name}:` does not exist; looked for {tried}{self._download_hint()}")
        return self.splits[name]

    def semantic_split(self, name: str) -> tuple[Path, ...]:
        """Get the image folders or list files of a split with semantic labels.

        Raises:
            UserError: If the data set has no such split or one of its paths does not exist.
        """
        if self.semantic is None:
            raise UserError(f"{self.source}: no `semantic:` block, so there are no semantic labels")
        if name not in self.semantic.splits:
            raise UserError(f"{self.source}: no `{name}:` key in `semantic:`, so there is no {name} split to read")
        root = self.semantic.root or self.root
        masks = self.semantic.masks.get(name, ())
        for key, paths in ((name, self.semantic.splits[name]), (f"masks.{name}", masks)):
            for path in paths:
                if not path.exists():
                    tried = ", ".join(map(str, searched_paths(self.source, root, path, "semantic")))
                    fault = f"{self.source}: `semantic.{key}:` does not exist; looked for {tried}"
                    raise UserError(fault + self._download_hint())
        return self.semantic.splits[name]

    def _download_hint(self) -> str:
        """Format the command that downloads missing data, if the YAML has its addresses."""
        if not isinstance(self.download, list) or not self.download:
            return ""
        name = self.source.name if self.source.parent == ROOT / "data" else self.source
        return f"; to download it: python check.py --data {name} --download"

    def single_class(self) -> DataConfig:
        """Copy the data set with all objects in one class (`--single-cls`)."""
        if self.is_panoptic:
            raise UserError(
                f"--single-cls: the panoptic data set {self.source} needs its classes; leave the option out"
            )
        original = self.label_names or self.names
        return self if self.num_classes == 1 else replace(self, names=("item",), label_names=original)


def _load_folder(root: Path) -> DataConfig:
    """Load a folder without a YAML; see `data_folder.read_folder`."""
    from utils.core.data_folder import read_folder  # few data sets are such a folder

    found = read_folder(root, SPLITS)
    return DataConfig(
        source=root,
        root=found.root,
        names=_checked_names(root, found.names),
        splits=found.splits,
        format=found.format,
        annotations=found.annotations,
    )


def _load_shards(text: str) -> DataConfig | Path | None:
    """Load tar files that `--data` gives as a file, pattern or folder, or find their data.yaml; None for other data."""
    folder = Path(text)
    if folder.suffix != ".tar" and not (folder.is_dir() and any(folder.glob("*.tar"))):
        return None
    from utils.core.shard_patterns import find_shards, names_beside, shard_splits

    shards, listed = find_shards(text), folder / "data.yaml"
    if not shards:
        raise UserError(f"--data {text}: no such tar file")
    if folder.is_dir() and listed.is_file():
        return listed
    folder = folder if folder.is_dir() else shards[0].parent
    listed = folder / "data.yaml"
    names = load_data(str(listed)).names if listed.is_file() else names_beside(folder)
    return DataConfig(source=Path(text), root=folder, names=names, splits=shard_splits(shards), format="shards")


def load_data(text: str) -> DataConfig:
    """Load and validate the data set that `--data` names.

    A data set has boxes or whole-image classes (`names`, `train`, `val`), semantic labels (`semantic`, or
    multiyolov5's `segtrain` and `segval`), or both.

    Args:
        text: A data-set YAML or folder, as for `find_data`.

    Raises:
        UserError: If it does not exist or is invalid; the message lists all faults of the YAML.
    """
    from pydantic import ValidationError

    shards = _load_shards(text)
    if isinstance(shards, DataConfig):
        return shards
    path = shards or find_data(text)
    if path.is_dir() and (path / "data.yaml").is_file():  # as exports of labelling tools have it
        path = path / "data.yaml"
    if path.is_dir():
        return _load_folder(path)
    values = _with_semantic_block(path, read_yaml(path, "data-set YAML"))
    has_semantic = values.get("semantic") is not None
    has_classes = not has_semantic or any(values.get(key) is not None for key in (*SPLITS, "names"))
    missing = ["names"] if has_classes and values.get("names") is None else []
    try:
        checked = schemas()[0].model_validate(values)
    except ValidationError as error:
        keys = dict.fromkeys(tuple(map(str, fault["loc"][:2])) for fault in error.errors())
        faults = [describe_fault((key,), values) for key in missing]
        faults += [describe_fault(key if key[0] == "semantic" else key[:1], values) for key in keys]
        raise UserError(f"{path}: " + "; ".join(dict.fromkeys(faults))) from error
    if missing:
        raise UserError(f"{path}: {describe_fault(('names',), values)}")
    names = _class_names(path, checked.names, checked.nc) if has_classes else ()
    if has_classes and checked.train is None and checked.val is None and checked.test is None:
        raise UserError(f"{path}: needs `train:` and `val:`, folders of images or list files")
    texts = _split_texts(checked)
    root = find_root(path, checked.path, texts, generated=bool(checked.generate))
    splits = resolve_all(root, texts)
    semantic = _load_semantic(path, checked, names) if has_semantic else None
    if checked.format == PANOPTIC:
        from utils.core.panoptic_data import panoptic_names  # rarely needed

        classes = panoptic_names(path, checked, names, MAX_SEMANTIC_CLASSES)
        semantic = SemanticConfig(names=classes, splits=splits, format=PANOPTIC, root=root)
    return DataConfig(
        source=path,
        root=root if has_classes or semantic is None else semantic.root or root,
        names=names,
        splits=splits,
        format=checked.format,
        generate=checked.generate,
        annotations={split: resolve(root, text) for split, text in checked.annotations.items()},
        defaults=checked.defaults,
        label_names=_label_names(path, checked.label_names, names),
        download=checked.download,
        shuffle_window=checked.shuffle_window,
        semantic=semantic,
    )


def _class_names(path: Path, given: list[Any] | dict[Any, Any], nc: int | None, block: str = "") -> tuple[str, ...]:
    if isinstance(given, dict):
        keys = [int(key) if str(key).isdigit() else key for key in given]
        if sorted(map(str, keys)) != sorted(map(str, range(len(keys)))):
            raise UserError(f"{path}: `{block}names` must number the classes 0, 1, 2, … without gaps, got {keys[:8]}")
        given = [name for _, name in sorted(zip(keys, given.values(), strict=True))]
    if not given:
        raise UserError(f"{path}: `{block}names` is empty")
    if nc is not None and nc != len(given):
        raise UserError(f"{path}: `{block}nc: {nc}` but `{block}names` lists {len(given)} classes")
    return _checked_names(path, tuple(str(name) for name in given))


def _checked_names(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse class names that are too long."""
    for number, name in enumerate(names):
        if len(name) > MAX_NAME_CHARACTERS:
            fault = f"name of class {number} has {len(name)} characters ({name[:20]!r}…)"
            raise UserError(f"{path}: the {fault}; at most {MAX_NAME_CHARACTERS} are supported")
    return names


def _label_names(path: Path, given: list[Any] | None, names: tuple[str, ...]) -> tuple[str, ...]:
    if given is not None and len(given) != len(names):
        raise UserError(f"{path}: `label_names` lists {len(given)} classes, `names` {len(names)}")
    return tuple(str(name) for name in given or ())


def _split_texts(checked: Any) -> dict[str, tuple[str, ...]]:
    """Collect the paths of each split as the YAML has them."""
    return {
        split: tuple([value] if isinstance(value, str) else value)
        for split in SPLITS
        if (value := getattr(checked, split)) not in (None, "", [])
    }


# ----------------------------------------------------------------------------------------------------------------------
# Semantic labels


def _with_semantic_block(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Move multiyolov5's `segtrain`, `segval` and our `segnames` into the `semantic:` block."""
    flat = {key: values[key] for key in (*_MULTIYOLOV5_SPLITS, "segnames") if values.get(key) not in (None, "", [])}
    if not flat:
        return values
    block = values.get("semantic") or {}
    if not isinstance(block, dict):
        return values
    moved = {_MULTIYOLOV5_SPLITS.get(key, "names"): value for key, value in flat.items()}
    if twice := sorted(moved.keys() & block.keys()):
        old = next(key for key in flat if _MULTIYOLOV5_SPLITS.get(key, "names") == twice[0])
        raise UserError(f"{path}: `{old}:` and `semantic.{twice[0]}:` are the same setting; remove one of them")
    return values | {"semantic": block | moved}


def _load_semantic(path: Path, checked: Any, box_names: tuple[str, ...]) -> SemanticConfig:
    """Build the record of the `semantic:` block."""
    block = checked.semantic
    texts = _split_texts(block)
    if not texts:
        raise UserError(f"{path}: `semantic:` needs `train:` and `val:`, folders of images or list files")
    generated = bool(checked.generate) and block.path is None
    root = find_root(path, block.path or checked.path, texts, generated)
    splits = resolve_all(root, texts)
    tars = all(path.suffix == ".tar" for paths in splits.values() for path in paths)
    layout = block.format or ("shards" if tars else _cityscapes_layout(splits)) or "folders"
    masks = {split: (value,) if isinstance(value, str) else tuple(value) for split, value in block.masks.items()}
    names = _semantic_names(path, block, root, layout, box_names)
    if block.palette is not None and len(block.palette) != len(names):
        raise UserError(f"{path}: `semantic.palette` has {len(block.palette)} colours for {len(names)} classes")
    if wrong := [number for number in (block.ids or {}).values() if len(names) <= number < 255]:
        raise UserError(f"{path}: `semantic.ids` has class {wrong[0]}, but `semantic.names` ends at {len(names) - 1}")
    return SemanticConfig(
        names=names,
        splits=splits,
        masks=resolve_all(root, masks),
        format=layout,
        palette=tuple((r, g, b) for r, g, b in block.palette or ()),
        options={key: value for key in _SEMANTIC_OPTIONS if (value := getattr(block, key)) is not None},
        root=root,
    )


def _semantic_names(path: Path, block: Any, root: Path, layout: str, box_names: tuple[str, ...]) -> tuple[str, ...]:
    given = block.names
    if given is None and layout in _CITYSCAPES_FORMATS:
        given = list(CITYSCAPES)
    elif given is None and layout == "shapes" and box_names:
        given = [*box_names, "background"]
    elif given is None:
        raise UserError(
            f"{path}: the names of the semantic classes are missing; add `segnames:` beside `segtrain:`, or `names:` "
            "in `semantic:`, in the order of the mask values (segnames: [background, crack])"
        )
    if isinstance(given, str):
        lines = read_text(resolve(root, given), "list of names").splitlines()
        given = [line.strip() for line in lines if line.strip()]
    names = _class_names(path, given, block.nc, "semantic.")
    if len(names) > MAX_SEMANTIC_CLASSES:
        raise UserError(f"{path}: `semantic.names` lists {len(names)} classes; {MAX_SEMANTIC_CLASSES} at most")
    return names


def _cityscapes_layout(splits: dict[str, tuple[Path, ...]]) -> str | None:
    """Detect a Cityscapes tree, with or without images of BDD100K in it; None for anything else."""
    for path in (path for paths in splits.values() for path in paths):
        tree = path / "leftImg8bit"
        found = [tree] if tree.is_dir() else [up for up in (path, *path.parents) if up.name == "leftImg8bit"]
        if found:
            has_bdd100k = next(found[0].glob("*/*/*.jpg"), None) is not None
            return "citybdd" if has_bdd100k else "cityscapes"
    return None


def load_cityscapes_folder(folder: Path) -> DataConfig:
    """Load a Cityscapes tree without a YAML, as multiyolov5's `--segdata` accepts it."""
    splits: dict[str, tuple[Path, ...]] = {split: (folder,) for split in SPLITS}
    layout = _cityscapes_layout(splits)
    if layout is None:
        raise UserError(f"{folder}: no leftImg8bit folder in it; use a YAML with a `semantic:` block")
    semantic = SemanticConfig(names=CITYSCAPES, splits=splits, format=layout, root=folder)
    return DataConfig(source=folder, root=folder, names=(), splits={}, semantic=semantic)


def load_semantic_data(text: str) -> SemanticConfig:
    """Load the semantic labels that `--segdata` names: those of a data-set YAML, or a Cityscapes tree."""
    folder = Path(text)
    data = load_cityscapes_folder(folder) if folder.is_dir() else load_data(text)
    if data.semantic is None:
        raise UserError(f"{data.source}: no `semantic:` block, so there are no semantic labels")
    return data.semantic
