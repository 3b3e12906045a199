"""A lock on a file that dies with its process: it tells whether whoever was at work somewhere still lives."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_PAUSE = 0.05  # seconds between attempts


class FileLock:
    """Hold `path` for this process alone, not its children. The file stays; what counts is who holds it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def take(self) -> bool:
        """Return whether the lock is ours now; somebody else may hold it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+", encoding="utf-8")
        try:
            if sys.platform == "win32":
                import msvcrt

                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock no business of forked children
        except OSError:
            file.close()
            return False
        self._file = file
        return True

    def drop(self) -> None:
        """Let go."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait until the lock is ours, and let go at the end of the `with` block."""
        while not self.take():
            time.sleep(_PAUSE)
        try:
            yield
        finally:
            self.drop()
