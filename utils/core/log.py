"""Console output: the project's logger and progress bars, quiet on every rank but the first."""

import logging
import os
import shutil
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

from utils.core.distributed import is_main

LOGGER = logging.getLogger("polyolo")
MAX_COLUMNS = 80  # of tables and of lines with many numbers
_RED, _YELLOW = "31", "33"  # ANSI codes
_WIDE = 120  # columns of a terminal that has room for every column of the training table
_BAR_FORMATS = {  # by their width in columns; the widest that fits beside the text is used
    58: "{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]",
    46: "{desc} {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]",
    0: "{desc} {percentage:3.0f}% {remaining} {rate_fmt}",
}


class _ConsoleHandler(logging.Handler):
    """Log handler that writes through tqdm to keep progress bars intact."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record: up to INFO to stdout, higher levels with their name to stderr."""
        if record.levelno <= logging.INFO:
            tqdm.write(record.getMessage(), file=sys.stdout)
        else:
            colour = _RED if record.levelno >= logging.ERROR else _YELLOW
            prefix = coloured(f"{record.levelname.lower()}:", colour, sys.stderr)
            tqdm.write(f"{prefix} {record.getMessage()}", file=sys.stderr)
        sys.stdout.flush()


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """Colour a text with an ANSI code if `stream` is a terminal and neither NO_COLOR nor TERM=dumb forbids it."""
    allowed = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\033[{colour}m{text}\033[0m" if allowed else text


def set_up_console(verbose: bool = True) -> None:
    """Attach the logger to the terminal; called by programs, not by the library.

    Args:
        verbose: Show messages from INFO up in the main process; all other processes show only errors.
    """
    LOGGER.handlers = [_ConsoleHandler()]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO if verbose and is_main() else logging.ERROR)


def terminal_columns() -> int:
    """Return the width of the terminal in columns; a file or pipe has room for every column."""
    return shutil.get_terminal_size().columns if sys.stderr.isatty() else _WIDE


def is_narrow() -> bool:
    """Check whether the terminal is too narrow for every column of the training table."""
    return terminal_columns() < _WIDE


def bar_format(text_columns: int) -> str:
    """Choose the format of a progress bar beside a text of `text_columns`; rate and remaining time are in all."""
    room = terminal_columns() - text_columns
    return next(text for width, text in _BAR_FORMATS.items() if width <= max(room, 0))


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
        bar_format=bar_format(len(text)),
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
