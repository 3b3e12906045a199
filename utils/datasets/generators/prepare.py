"""Writing of generated data sets: once, completely, and without touching files of others."""

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

from filelock import FileLock

from utils.core.data_config import DataConfig
from utils.core.distributed import main_first
from utils.core.errors import UserError
from utils.core.files import write_text
from utils.core.log import LOGGER, progress
from utils.datasets import GENERATORS

MARKER = "complete.json"  # written last: the settings that the files beside it come from
_PARTIAL = ".partial"  # folder of the file being written, so that a killed process leaves no partial file in the data
_LOCK = ".lock"
_ABANDONED_S = 5  # age after which a partial file is not being written any more


@dataclass(frozen=True)
class Recipe:
    """Description of a generated data set, the result of `GENERATORS.get(kind)(data)`.

    The files depend on `settings` alone, and no two steps write the same path.
    """

    settings: dict[str, Any]
    steps: int
    make: Callable[[int], dict[str, bytes]]  # step -> contents by path below the data set's root, with /
    owned: tuple[str, ...]  # glob patterns that match all of these paths and no files of others


def ensure_generated(data: DataConfig) -> None:
    """Write the files of a generated data set unless they exist; other data sets are left alone.

    A marker file written last states that the set is complete. Without it, with other settings in the YAML, or with
    files missing, everything is written again, and files left by other settings are removed.

    Args:
        data: Configuration of the data set; `data.generate` is empty for data sets that are not generated.

    Raises:
        UserError: `generate:` is invalid, or the folder cannot be written.
    """
    if not data.generate:
        return
    kind = data.generate.get("kind")
    if not isinstance(kind, str):
        raise UserError(f"{data.source}: `generate:` requires `kind:`; choose {', '.join(GENERATORS.names())}")
    recipe: Recipe = GENERATORS.get(kind, data.source)(data)
    with main_first():
        if not _is_complete(data.root, recipe):
            try:
                data.root.mkdir(parents=True, exist_ok=True)
                with FileLock(data.root / _LOCK):  # another process may have started as well
                    if not _is_complete(data.root, recipe):
                        _write_all(data.root, recipe, f"generating the {data.source.stem} data set")
            except OSError as error:
                reason = f"cannot write the generated data ({error.strerror or error})"
                raise UserError(f"{data.root}: {reason}; set another `path:` in {data.source}") from error


def _counts(paths: list[str]) -> dict[str, int]:
    """Count files per folder."""
    return dict(sorted(Counter(path.rpartition("/")[0] for path in paths).items()))


def _owned_files(root: Path, recipe: Recipe) -> list[str]:
    return [path.relative_to(root).as_posix() for pattern in recipe.owned for path in root.glob(pattern)]


def _is_complete(root: Path, recipe: Recipe) -> bool:
    try:
        marker = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, or not a marker
        return False
    if not isinstance(marker, dict) or marker.get("settings") != recipe.settings:
        return False
    return marker.get("files") == _counts(_owned_files(root, recipe))


def _write_all(root: Path, recipe: Recipe, text: str) -> None:
    """Write all files of a recipe, then its marker."""
    LOGGER.info(f"{root}: {text}")
    partial = root / _PARTIAL
    partial.mkdir(parents=True, exist_ok=True)
    (root / MARKER).unlink(missing_ok=True)  # incomplete from here on
    written: list[str] = []
    folders: set[Path] = set()
    for step in progress(range(recipe.steps), text=text, unit="img"):
        for name, content in recipe.make(step).items():
            path = root / name
            if path.parent not in folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                folders.add(path.parent)
            _replace(path, content, partial)
            written.append(name)
    for name in set(_owned_files(root, recipe)) - set(written):
        (root / name).unlink(missing_ok=True)
    _remove_abandoned(partial)
    marker = {"settings": recipe.settings, "files": _counts(written)}
    write_text(root / MARKER, json.dumps(marker, indent=1) + "\n")


def _remove_abandoned(partial: Path) -> None:
    """Remove what killed processes left, but not the file that another process is writing now."""
    with suppress(OSError):
        for path in partial.iterdir():
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)
        partial.rmdir()


def _replace(path: Path, content: bytes, partial: Path) -> None:
    """Write `content` to `path` atomically; not flushed to disk, because the set can be generated again."""
    temporary = partial / f"{os.getpid()}{path.suffix}"
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
