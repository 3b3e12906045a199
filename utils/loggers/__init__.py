"""Training loggers: one destination per file, found by name in `LOGGERS`; `Loggers` calls those selected for a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.core.contracts import Logger, StopTraining
from utils.core.distributed import broadcast, is_main
from utils.core.errors import UserError
from utils.core.registry import Registry
from utils.loggers.async_logger import AsyncLogger, LoggerCall, log_failure

LOGGERS: Registry[type[Logger]] = Registry("logger", "utils.loggers")

_EXPECTED_ERRORS = (OSError, RuntimeError, ValueError)  # of loggers that run in the training's own thread


class Loggers:
    """All loggers of a run, called on rank 0 only.

    Loggers selected by name run in background threads (`AsyncLogger`) unless their class sets `direct = True`; the
    loggers in `own` run in the calling thread. A logger that fails is reported once and disabled, while the others and
    the run continue. The only errors that stop the run are a `UserError` raised by `start`, and one raised by a logger
    whose class sets `essential = True`.

    Args:
        names: Names in the registry `LOGGERS`, as given by `--log`.
        own: Logger objects of the caller.

    Raises:
        UserError: If a name is unknown.
    """

    def __init__(self, names: Iterable[str], own: Sequence[Logger] = ()) -> None:
        self._direct: dict[str, Logger] = {}
        self._async: list[AsyncLogger] = []
        self._stop_reason = ""
        for name in dict.fromkeys(names):  # an unknown name is an error on every rank
            make = LOGGERS.get(name)
            if is_main():
                self._add(name, make())
        if is_main():
            self._direct |= {f"{type(logger).__name__} {index}": logger for index, logger in enumerate(own, 1)}

    def _add(self, name: str, logger: Logger) -> None:
        if getattr(logger, "direct", False):
            self._direct[name] = logger
        else:
            self._async.append(AsyncLogger(name, logger))

    @property
    def active(self) -> list[str]:
        """Names of the loggers that have not failed."""
        return [*self._direct, *(worker.name for worker in self._async if worker.active)]

    def _call_all(
        self, call: LoggerCall, dispatch: Callable[[AsyncLogger, LoggerCall], None] = AsyncLogger.send
    ) -> None:
        for name, logger in list(self._direct.items()):
            try:
                call(logger)
            except StopTraining as stop:
                self._stop_reason = str(stop) or name
            except (*_EXPECTED_ERRORS, UserError) as error:
                essential = dispatch is AsyncLogger.start or getattr(logger, "essential", False)
                if isinstance(error, UserError) and essential:
                    raise
                log_failure(name, error)
                del self._direct[name]
        for worker in self._async:
            dispatch(worker, call)

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Start every logger.

        Args:
            run_dir: Folder of the run.
            settings: Options of the run.

        Raises:
            UserError: If a logger cannot start for a reason the user can fix, such as a missing package.
        """
        self._call_all(lambda logger: logger.start(run_dir, settings), AsyncLogger.start)

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Log the results of an epoch, counted from 0."""
        self._call_all(lambda logger: logger.epoch(epoch, numbers))

    def image(self, path: Path, epoch: int) -> None:
        """Log the image file at `path`."""
        self._call_all(lambda logger: logger.image(path, epoch))

    @property
    def wants_batches(self) -> bool:
        """Whether an active logger has a `batch` method."""
        active = [*self._direct.values(), *(worker.logger for worker in self._async if worker.active)]
        return any(hasattr(logger, "batch") for logger in active)

    def batch(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the loss terms of a batch, counted from 1 over the run, with the loggers that have a `batch` method."""
        self._call_all(lambda logger: _call_optional(logger, "batch", step, numbers))

    def checkpoint(self, path: Path, epoch: int, best: bool) -> None:
        """Log a checkpoint that was written after an epoch, with the loggers that have a `checkpoint` method."""
        self._call_all(lambda logger: _call_optional(logger, "checkpoint", path, epoch, best))

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Log the final results and checkpoints and close every logger; both are empty if the run was interrupted."""
        self._call_all(lambda logger: logger.finish(numbers, checkpoints), AsyncLogger.finish)

    def stop_requested(self) -> str:
        """Return why a logger raised `StopTraining`, empty if none did; the same on every rank."""
        return str(broadcast(self._stop_reason))


def _call_optional(logger: Logger, method: str, *args: Any) -> None:
    if function := getattr(logger, method, None):
        function(*args)
