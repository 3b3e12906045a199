"""One logger per file, found by name; `Loggers` calls those a run asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.core.contracts import Logger, StopTraining
from utils.core.distributed import from_main, is_main
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.core.registry import Registry
from utils.loggers.async_logger import Call, Courier, reason_of

LOGGERS: Registry[type[Logger]] = Registry("logger", "utils.loggers")

_FAILURES = (OSError, RuntimeError, ValueError)


class Loggers:
    """Several loggers as one, on the first rank only.

    Loggers by name work in threads of their own (`Courier`), but those with an attribute `direct`, and those that are
    given in `own`: these are called where the run is. A logger that fails is named in one warning and switched off; the
    others and the run go on. The exception is `start`, where what the user can put right, such as a missing package,
    is a UserError: nothing is lost yet.
    """

    def __init__(self, names: Iterable[str], own: Sequence[Logger] = ()) -> None:
        self._direct: dict[str, Logger] = {}
        self._couriers: list[Courier] = []
        self._stop = ""
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
            self._couriers.append(Courier(name, logger))

    @property
    def active(self) -> list[str]:
        """Return the names of the loggers that have not failed."""
        return [*self._direct, *(courier.name for courier in self._couriers if courier.active)]

    def _all(self) -> list[Logger]:
        return [*self._direct.values(), *(courier.logger for courier in self._couriers if courier.active)]

    def _each(self, call: Call, hand_over: Callable[[Courier, Call], None] = Courier.send) -> None:
        for name, logger in list(self._direct.items()):
            try:
                call(logger)
            except StopTraining as stop:
                self._stop = str(stop) or name
            except (*_FAILURES, UserError) as error:
                if isinstance(error, UserError) and hand_over is Courier.start:
                    raise
                LOGGER.warning(f"logger {name} failed and is switched off: {reason_of(error)}")
                del self._direct[name]
        for courier in self._couriers:
            hand_over(courier, call)

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Tell every logger where the run writes and what its settings are."""
        self._each(lambda logger: logger.start(run_dir, settings), Courier.start)

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Pass on the numbers of an epoch, counted from 0."""
        self._each(lambda logger: logger.epoch(epoch, numbers))

    def image(self, path: Path, epoch: int) -> None:
        """Pass on a picture that was written to `path`."""
        self._each(lambda logger: logger.image(path, epoch))

    @property
    def follows_batches(self) -> bool:
        """Tell whether somebody wants the numbers of every batch."""
        return any(hasattr(logger, "batch") for logger in self._all())

    def batch(self, step: int, numbers: Mapping[str, float]) -> None:
        """Pass on the loss terms of a batch, counted from 1 over the run, to those who want them."""
        self._each(lambda logger: _told(logger, "batch", step, numbers))

    def checkpoint(self, path: Path, epoch: int, best: bool) -> None:
        """Pass on that a checkpoint was written after an epoch, counted from 0, to those who want to know."""
        self._each(lambda logger: _told(logger, "checkpoint", path, epoch, best))

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Pass on the final numbers and checkpoints, and close everything; without any, the run was interrupted."""
        self._each(lambda logger: logger.finish(numbers, checkpoints), Courier.finish)

    def stop_wanted(self) -> str:
        """Return why a logger wants the training to end, empty if none does; the same on every rank."""
        return str(from_main(self._stop))


def _told(logger: Logger, hook: str, *what: Any) -> None:
    """Call a method that a logger may have."""
    if method := getattr(logger, hook, None):
        method(*what)
