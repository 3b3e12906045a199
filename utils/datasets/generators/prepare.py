"""Write a generated data set once: whole, unchanged by restarts, touching no file but its own."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.core.data_config import DataConfig
from utils.core.distributed import main_first
from utils.core.errors import UserError
from utils.core.file_lock import FileLock
from utils.core.files import write_text
from utils.core.log import LOGGER, progress
from utils.datasets import GENERATORS

MARKER = "complete.json"  # written last: the settings of the files beside it
_MAKING = ".making"  # holds the one file being written, so that a kill leaves no half file among the data
_LOCK = ".lock"
_ABANDONED_S = 5  # no file takes nearly as long


@dataclass(frozen=True)
class Recipe:
    """What a generator, built as `GENERATORS.get(kind)(data)`, promises.

    The files depend on `settings` alone. Every file of step i comes from `make(i)`, as paths below the data root
    (with /) and contents; no two steps share a path. `owned` are glob patterns that match these paths and nobody
    else's files.
    """

    settings: dict[str, Any]
    steps: int
    make: Callable[[int], dict[str, bytes]]
    owned: tuple[str, ...]


def ensure(data: DataConfig) -> None:
    """Make the files of a generated data set unless they are there; other data sets are left alone.

    A marker written last says that the set is whole. Without it, after a change of the settings in the YAML, or with
    files missing, everything is written again. Files that another recipe of the same kind left are removed.
    """
    if not data.generate:
        return
    kind = data.generate.get("kind")
    if not isinstance(kind, str):
        raise UserError(f"{data.source}: `generate:` needs `kind:`, one of {', '.join(GENERATORS.names())}")
    recipe: Recipe = GENERATORS.get(kind, data.source)(data)
    with main_first():
        if not _is_complete(data.root, recipe):
            try:
                with FileLock(data.root / _LOCK).held():  # others may have begun as well
                    if not _is_complete(data.root, recipe):
                        _write_all(data.root, recipe, f"making the {data.source.stem} images")
            except OSError as error:
                reason = f"cannot write the generated data there ({error.strerror or error})"
                raise UserError(f"{data.root}: {reason}; set another `path:` in {data.source}") from error


def _counts(paths: list[str]) -> dict[str, int]:
    return dict(sorted(Counter(path.rpartition("/")[0] for path in paths).items()))


def _owned_files(root: Path, recipe: Recipe) -> list[str]:
    return [path.relative_to(root).as_posix() for pattern in recipe.owned for path in root.glob(pattern)]


def _is_complete(root: Path, recipe: Recipe) -> bool:
    try:
        marker = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or not ours
        return False
    if not isinstance(marker, dict) or marker.get("settings") != recipe.settings:
        return False
    return marker.get("files") == _counts(_owned_files(root, recipe))


def _write_all(root: Path, recipe: Recipe, text: str) -> None:
    LOGGER.info(f"{root}: {text}")
    making = root / _MAKING
    making.mkdir(parents=True, exist_ok=True)
    (root / MARKER).unlink(missing_ok=True)  # from here on the folder is not whole
    written: list[str] = []
    folders: set[Path] = set()
    for step in progress(range(recipe.steps), text=text, unit="img"):
        for name, content in recipe.make(step).items():
            path = root / name
            if path.parent not in folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                folders.add(path.parent)
            _replace(path, content, making)
            written.append(name)
    for name in set(_owned_files(root, recipe)) - set(written):
        (root / name).unlink(missing_ok=True)
    _tidy(making)
    marker = {"settings": recipe.settings, "files": _counts(written)}
    write_text(root / MARKER, json.dumps(marker, indent=1) + "\n")


def _tidy(making: Path) -> None:
    """Remove what a killed process left, but not the file of one that is making the same set just now."""
    with suppress(OSError):
        for path in making.iterdir():
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)
        making.rmdir()


def _replace(path: Path, content: bytes, making: Path) -> None:
    """Put `content` at `path` in one step. Not flushed to the disk: the set can be made again, and is big."""
    temporary = making / f"{os.getpid()}{path.suffix}"
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
