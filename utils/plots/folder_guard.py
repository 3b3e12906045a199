"""Sink that watches the output folder, so that results never go to a folder that was removed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from utils.core.contracts import Frame, Results, Sink
from utils.core.errors import UserError


class FolderGuard(Sink):
    """Stop a prediction whose output folder is removed or replaced while the program runs.

    Files are written under temporary names in folders that are created on demand, so that without this check a removed
    folder would come back with the later files only. This sink must be the first.

    Args:
        folder: The existing output folder.
    """

    stopped = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle: int | None = None  # while it is open, no other folder gets the same number
        with suppress(OSError):  # on systems that cannot open folders
            self._handle = os.open(folder, os.O_RDONLY)
        self._identity = self._current()

    def _current(self) -> tuple[int, int] | None:
        try:
            state = self.folder.stat()
        except OSError:
            return None
        return state.st_dev, state.st_ino

    def release(self) -> None:
        """Stop to watch the folder."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def check(self) -> None:
        """Raise UserError if the folder is not the one of the start."""
        if self._identity is None or self._current() != self._identity:
            raise UserError(
                f"{self.folder}: was removed or replaced while results were written to it; they are lost; run it again"
            )

    def write(self, frame: Frame, results: Results, annotated: Callable[[], np.ndarray]) -> None:
        """Check the folder before the other sinks write to it."""
        self.check()

    def close(self) -> str:
        """Do nothing: the folder is watched until the other sinks are closed, too; see `release`."""
        return ""
