"""What the user reads: one logger, progress bars, quiet on every rank but the first."""

import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from utils.core.distributed import is_main

LOGGER = logging.getLogger("polyolo")


class _Console(logging.Handler):
    """Write through tqdm, so that a message does not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; warnings carry their level."""
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(prefix + record.getMessage(), file=sys.stderr if record.levelno > logging.INFO else sys.stdout)
        sys.stdout.flush()


def set_up_console(verbose: bool = True) -> None:
    """Send the logger's messages to the terminal; ranks other than the first show errors only. Scripts call this."""
    LOGGER.handlers = [_Console()]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO if verbose and is_main() else logging.ERROR)


def progress(items: Iterable[Any] | None = None, total: int | None = None, text: str = "", unit: str = "it") -> tqdm:
    """Return a progress bar over `items` (or one moved by hand), shown on the first rank only.

    Where the output is no terminal the bar is refreshed rarely, so that log files stay short.
    """
    interval = 0.1 if sys.stderr.isatty() else 30.0
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
    """Warn about something the first time it happens."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def warn(self, text: str) -> None:
        """Log `text` as a warning unless it has been said."""
        if text not in self._said:
            self._said.add(text)
            LOGGER.warning(text)
