"""File helpers: atomic writes, run folders and the user's cache."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # the folder of train.py
INSTALLED = not __name__.startswith("utils.")  # in site-packages, as part of the package polyolo


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path beside `path` and rename it into place at the end.

    The temporary file is flushed to disk before the rename and removed after an error, so that a crash at any moment
    leaves either the old file or the complete new one.

    Raises:
        UserError: If the folder or the file cannot be written.
    """
    path = Path(path)
    handle = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except (OSError, ValueError) as error:  # ValueError: null byte in the path
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp creates private files
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def run_folder(project: Path, name: str, exist_ok: bool = False) -> Path:
    """Create the folder of a run: `project/name`, or the first free one of name2, name3 and so on.

    Args:
        project: Parent folder of the runs.
        name: Name of the run.
        exist_ok: Return `project/name` even if it exists.

    Raises:
        UserError: If the folder cannot be created or refuses files.
    """
    project = Path(project)
    try:
        for number in range(1, 100_000):
            folder = project / (name if number == 1 else f"{name}{number}")
            try:
                folder.mkdir(parents=True, exist_ok=exist_ok)
            except FileExistsError:
                if exist_ok:  # a file has this name
                    raise
                continue
            with tempfile.TemporaryFile(dir=folder):  # an existing folder may still be read-only
                return folder
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{project / name}: cannot be written ({reason})") from error
    raise UserError(f"{project}: no free folder name for run {name!r}; remove old runs or choose another --name")


def remove_if_empty(folder: Path) -> None:
    """Remove a folder and its subfolders if they contain no files, as after a run that failed early."""
    if folder.is_dir() and not any(path.is_file() or path.is_symlink() for path in folder.rglob("*")):
        with suppress(OSError):
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir()
            folder.rmdir()


def newest_file(folder: Path, pattern: str) -> Path | None:
    """Find the most recently modified file below `folder` that matches a glob pattern; None if there is none."""
    found = [path for path in Path(folder).rglob(pattern) if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def user_cache() -> Path:
    """Get the folder for files that can be recreated: $POLYOLO_CACHE, else `polyolo` in the XDG cache folder."""
    if given := os.environ.get("POLYOLO_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "polyolo"


def is_url(text: str) -> bool:
    """Check whether `text` starts with a URL scheme that needs the network."""
    return re.match(r"^(https?|rtsp|rtmp|rtsps|tcp|udp|grpc)://", text, re.IGNORECASE) is not None


def format_bytes(count: float) -> str:
    """Format a number of bytes in MB, from 1 GB up in GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
