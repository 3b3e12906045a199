"""Console output: the project's logger and progress bars, quiet on every rank but the first."""

import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from utils.core.distributed import is_main

LOGGER = logging.getLogger("polyolo")


class _ConsoleHandler(logging.Handler):
    """Log handler that writes through tqdm to keep progress bars intact."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record: up to INFO to stdout, higher levels with their name to stderr."""
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(prefix + record.getMessage(), file=sys.stderr if record.levelno > logging.INFO else sys.stdout)
        sys.stdout.flush()


def set_up_console(verbose: bool = True) -> None:
    """Attach the logger to the terminal; called by programs, not by the library.

    Args:
        verbose: Show messages from INFO up in the main process; all other processes show only errors.
    """
    LOGGER.handlers = [_ConsoleHandler()]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO if verbose and is_main() else logging.ERROR)


def progress(items: Iterable[Any] | None = None, total: int | None = None, text: str = "", unit: str = "it") -> tqdm:
    """Create a progress bar, visible in the main process only.

    Args:
        items: What to iterate over; None for a bar that is updated by hand.
        total: Number of items, if `items` does not know it.
        text: Label in front of the bar.
        unit: Name of one item, for the rate.
    """
    interval = 0.1 if sys.stderr.isatty() else 30.0  # seconds; a rare refresh keeps log files short
    return tqdm(
        items,
        total=total,
        desc=text,
        unit=unit,
        disable=not is_main() or LOGGER.level > logging.INFO,
        mininterval=interval,
        maxinterval=max(10.0, interval),
        dynamic_ncols=True,
        bar_format="{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]",
    )


class Once:
    """Logger of warnings that repeats none of them."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def warn(self, text: str) -> None:
        """Log `text` as a warning unless it was logged before."""
        if text not in self._logged:
            self._logged.add(text)
            LOGGER.warning(text)
