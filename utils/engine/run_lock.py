"""Lock on the folder of a run, so that two processes never write into one folder."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from utils.core import distributed as dist
from utils.core.errors import UserError
from utils.core.log import LOGGER

LOCK_FILE = ".lock"
WAIT_S = 8.0  # the children of a process that has just been killed hold its lock for a moment


class RunLock:
    """Lock of the first rank on the folder of a run; the other ranks hold none.

    Attributes:
        path: The locked folder, None if none is locked.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._lock: FileLock | None = None

    def acquire(self, folder: Path) -> None:
        """Lock `folder`. All ranks must call this.

        Raises:
            UserError: On every rank, if another process has locked it.
        """
        dist.run_on_main(lambda: self._acquire(folder))

    def _acquire(self, folder: Path) -> None:
        lock = FileLock(folder / LOCK_FILE, timeout=WAIT_S)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"{folder}: another training writes into this folder; wait until it ends, or choose another --name"
            ) from error
        except (NotImplementedError, OSError) as error:  # network file systems without locks
            LOGGER.warning(f"{folder}: cannot be locked ({error}); start no second training in it")
            return
        self.path, self._lock = folder, lock

    def release(self) -> None:
        """Release the lock; no-op if there is none."""
        if self._lock is not None:
            self._lock.release()
        self.path = self._lock = None
