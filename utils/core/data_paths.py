"""Search for data-set YAML files and for the images and labels they name."""

from __future__ import annotations

import os
from pathlib import Path

from utils.core.errors import UserError, did_you_mean
from utils.core.files import INSTALLED, ROOT
from utils.core.log import LOGGER
from utils.core.yaml_file import read_yaml


def find_data(text: str) -> Path:
    """Find the data-set YAML or folder that `--data` names.

    Searched in this order: a YAML by its path, a YAML in data/ with or without suffix, a folder by its path or below
    the data-sets folder, a YAML in data/ ignoring case. `name/` and `./name` are never YAMLs without suffix.

    Raises:
        UserError: If there is none.
    """
    names = (Path(text).name, f"{text}.yaml")
    for path in (Path(text), ROOT / text, *(ROOT / "data" / name for name in names[: 1 + (names[0] == text)])):
        if path.exists() and not path.is_dir():  # a pipe or device is refused where it is read
            if Path(text).is_dir():
                LOGGER.warning(f"--data {text}: using {path}, not the folder {text}; write {text}/ for the folder")
            return path
    folders = [Path(text), ROOT / text, datasets_folder() / text] if text.strip() else []
    if existing := [path for path in folders if path.is_dir()]:
        return existing[0]
    files = sorted((ROOT / "data").glob("*.yaml"))
    if alike := [path for path in files if path.name.lower() in (names[0].lower(), names[1].lower())]:
        return alike[0]
    tried = f"; no folder {', '.join(map(str, dict.fromkeys(folders)))}" if folders else ""
    hint = did_you_mean(Path(text).stem, [path.stem for path in files]) or "; data/ has the shipped ones"
    raise UserError(f"--data {text}: no such data-set YAML{tried}{hint}")


def datasets_folder() -> Path:
    """Get the parent folder of data sets: $YOLOv5_DATASETS_DIR, else ../datasets beside the project.

    An installed package has no project folder: data sets are in `datasets` of the current folder.
    """
    default = Path.cwd() / "datasets" if INSTALLED else ROOT.parent / "datasets"
    return Path(os.environ.get("YOLOv5_DATASETS_DIR") or default)  # noqa: SIM112


def _root_candidates(path: Path, given: str | None) -> list[Path]:
    """List possible roots of the data, the most likely first: relative to the YAML, the current folder, the project."""
    shipped = INSTALLED and path.resolve().parent == ROOT / "data"  # no data sets beside installed files
    bases = [Path.cwd() / "data" if shipped else path.resolve().parent, Path.cwd(), ROOT]
    if given is None:
        return bases
    if Path(given).is_absolute():
        return [Path(given)]
    return [*(base / given for base in bases), datasets_folder() / Path(given).name]


def find_root(path: Path, given: str | None, splits: dict[str, tuple[str, ...]], generated: bool) -> Path:
    """Choose the root below which most of the paths exist; the first candidate for generated data."""
    candidates = [Path(os.path.normpath(root)) for root in _root_candidates(path, given)]
    if generated:
        return candidates[0]
    texts = [text for group in splits.values() for text in group]
    scores = [sum(_expanded(root / text)[0].exists() for text in texts) for root in candidates]
    return candidates[scores.index(max(scores))]


def resolve(root: Path, text: str) -> Path:
    """Resolve a path of the YAML; a leading ../ that leads nowhere is dropped, as in data files of YOLOv5 5.0."""
    path = Path(os.path.normpath(root / text))
    if not path.exists() and text.startswith("../") and (root / text[3:]).exists():
        return Path(os.path.normpath(root / text[3:]))
    return path


def resolve_all(root: Path, splits: dict[str, tuple[str, ...]]) -> dict[str, tuple[Path, ...]]:
    """Resolve the paths of all splits, and patterns of tar files to the files."""
    found: dict[str, list[Path]] = {split: [] for split in splits}
    for split, texts in splits.items():
        for text in texts:
            found[split] += _expanded(resolve(root, text))
    return {split: tuple(paths) for split, paths in found.items()}


def _expanded(path: Path) -> list[Path]:
    """Expand a pattern of tar files; other paths are returned as they are."""
    if path.suffix != ".tar" or path.exists():
        return [path]
    from utils.core.shard_patterns import expand

    return expand(path)


def searched_paths(source: Path, root: Path, path: Path, block: str = "") -> list[Path]:
    """List where a missing path was searched, for the error message."""
    try:
        relative = path.relative_to(root)
    except ValueError:
        return [path]
    values = read_yaml(source) if source.is_file() else {}
    inner = values.get(block) if block else None
    given = (inner.get("path") if isinstance(inner, dict) else None) or values.get("path")
    roots = _root_candidates(source, given if isinstance(given, str) else None)
    return list(dict.fromkeys([path, *(Path(os.path.normpath(other / relative)) for other in roots)]))
