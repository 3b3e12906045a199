"""One logger per file, found by name; `Loggers` calls those a run asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.core.contracts import Logger
from utils.core.dist import is_main
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.core.registry import Registry

LOGGERS = Registry("logger", "utils.loggers")

_FAILURES = (OSError, RuntimeError, ValueError)


class Loggers:
    """Several loggers as one, on the first rank only.

    A logger that fails is named in one warning and switched off; the others and the run go on. The exception is
    `start`, where what the user can put right, such as a missing package, is a UserError: nothing is lost yet.
    A logger may name failures of its package in an attribute `errors`, a tuple of exception classes.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._active: dict[str, Logger] = {}
        for name in dict.fromkeys(names):  # an unknown name is an error on every rank
            make = LOGGERS.get(name)
            if is_main():
                self._active[name] = make()

    def _each(self, call: Callable[[Logger], None], passed_on: tuple[type[Exception], ...] = ()) -> None:
        for name, logger in list(self._active.items()):
            try:
                call(logger)
            except passed_on:
                raise
            except (*_FAILURES, UserError, *getattr(logger, "errors", ())) as error:
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                LOGGER.warning(f"logger {name} failed and is switched off: {reason}")
                del self._active[name]

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Tell every logger where the run writes and what its settings are."""
        self._each(lambda logger: logger.start(run_dir, settings), passed_on=(UserError,))

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Pass on the numbers of an epoch, counted from 0."""
        self._each(lambda logger: logger.epoch(epoch, numbers))

    def picture(self, path: Path, epoch: int) -> None:
        """Pass on a picture that was written to `path`."""
        self._each(lambda logger: logger.picture(path, epoch))

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Pass on the final numbers and checkpoints, and close everything."""
        self._each(lambda logger: logger.finish(numbers, checkpoints))
