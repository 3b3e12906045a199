"""Paths and files: run folders, writing in one step, the user's cache."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds train.py


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed over it, else removed.

    A crash at any moment leaves either the old file or the new one, never half of one.
    """
    path = Path(path)
    handle = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise UserError(f"{path}: cannot write there ({getattr(error, 'strerror', None) or error})") from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes it private
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot write there ({error.strerror or error})") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def run_folder(project: Path, name: str, exist_ok: bool = False) -> Path:
    """Make and return `project/name`, or the first free of name2, name3, … (behaviour.md 3.10).

    `exist_ok` reuses a folder that is there. A project that cannot be written raises UserError.
    """
    project = Path(project)
    try:
        for number in range(1, 100_000):
            folder = project / (name if number == 1 else f"{name}{number}")
            try:
                folder.mkdir(parents=True, exist_ok=exist_ok)
            except FileExistsError:
                if exist_ok:  # the name is a file's
                    raise
                continue
            with tempfile.TemporaryFile(dir=folder):  # a folder that exists may still refuse files
                return folder
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{project / name}: cannot write there ({reason})") from error
    raise UserError(f"{project}: no free name for a run called {name!r}")


def drop_if_empty(folder: Path) -> None:
    """Remove `folder` and what is below it if there is no file in it, the remains of a run that came to nothing."""
    if folder.is_dir() and not any(path.is_file() or path.is_symlink() for path in folder.rglob("*")):
        with suppress(OSError):
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir()
            folder.rmdir()


def newest(folder: Path, pattern: str) -> Path | None:
    """Return the most recently changed file that matches `pattern` under `folder`, None if there is none."""
    found = [path for path in Path(folder).rglob(pattern) if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def user_cache() -> Path:
    """Return the folder for things that can be made again: $POLYOLO_CACHE, else the platform's usual place."""
    if given := os.environ.get("POLYOLO_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "polyolo"


def is_url(text: str) -> bool:
    """Tell whether `text` starts with a scheme that would need the network."""
    return re.match(r"^(https?|rtsp|rtmp|rtsps|tcp|udp|grpc)://", text, re.IGNORECASE) is not None
