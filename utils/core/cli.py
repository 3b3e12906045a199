"""Command-line parsers, the options that programs share, and the wrapper that runs a program.

The options of training programs are in `train_options.py`.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from utils.core import distributed as dist
from utils.core.errors import UserError, did_you_mean
from utils.core.interrupt import StopSignal, handle_signals, raise_stop_signal
from utils.core.log import LOGGER, set_up_console

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = argparse._ActionsContainer  # a parser or a group of options
SettingsT = TypeVar("SettingsT", bound="DataclassInstance")
_NOT_GIVEN = object()
MAX_MESSAGE_CHARACTERS = 5000
_USER_ERRORS = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EMFILE, errno.ENAMETOOLONG}
_USER_ERRORS |= {errno.EFBIG}  # the limit of `ulimit -f`


# ----------------------------------------------------------------------------------------------------------------------
# Parsers


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Append `(default: …)` to help texts that do not state a default themselves."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        shown = "" if default is argparse.SUPPRESS else format_default(default)
        if text is None or "(default:" in text or not shown:
            return text
        return f"{text} (default: {shown.replace('%', '%%')})"

    def _format_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], groups: Any, prefix: str | None
    ) -> str:
        """Write `[options]` for the options, which the groups below list."""
        actions = list(actions)
        positional = [action for action in actions if not action.option_strings]
        text = super()._format_usage(usage, positional, groups, prefix)
        if usage is not None or len(positional) == len(actions):
            return text
        program, rest = text.split(self._prog, 1)
        return f"{program}{self._prog} [options]{rest}"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Fit the description into the terminal: long commands continue on a second line, sentences are wrapped."""
        lines: list[str] = []
        for line in text.splitlines():
            start = line[: len(line) - len(line.lstrip())]
            if len(line) <= width:
                lines.append(line)
            elif start:
                joined = re.sub(r"(\S) {3,}\(", r"\1  (", line)
                lines += textwrap.wrap(
                    joined, width, subsequent_indent=start + "  ", break_long_words=False, break_on_hyphens=False
                )
            else:
                lines += textwrap.wrap(line, width, break_on_hyphens=False)
        return "\n".join(indent + line for line in lines)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        values = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {values}"  # the values once, not after each spelling


class _Parser(argparse.ArgumentParser):
    """Parser that reports a wrong command line as a UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def format_default(value: object) -> str:
    """Format the default of an option as one would type it: lists without brackets, nothing for an empty value."""
    if value is None or value is False or value in ("", [], ()):
        return ""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """Create an empty parser in the layout of all programs; it accepts abbreviated options.

    Help texts are noun phrases, those of flags imperatives. The parser appends `(default: …)`; an option whose
    default is empty or needs words has `(default: from the checkpoint)` or the like in its text.

    Args:
        description: Usually the module docstring of the program.

    Returns:
        A parser that raises UserError for a wrong command line.
    """
    return _Parser(description=description, formatter_class=_HelpFormatter)


def add_subparser(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """Add the parser of a command in the layout of all programs.

    Args:
        commands: The object returned by `parser.add_subparsers`.
        name: The command.
        text: Its help and description.
    """
    added: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, formatter_class=_HelpFormatter
    )
    return added


def add_flag(options: Options, spellings: str, text: str) -> None:
    """Add an option without a value; it may have several spellings, separated by spaces."""
    options.add_argument(*spellings.split(), action="store_true", help=text)


def add_alias(options: Options, name: str, dest: str, value: object, text: str) -> None:
    """Add an option that sets another option to a fixed value."""
    options.add_argument(
        name, dest=dest, action="store_const", const=value, default=argparse.SUPPRESS, help=text
    )  # fmt: skip


def explicit_options(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse a command line and return only the options that it contains, without the defaults."""
    blank = argparse.Namespace(**{action.dest: _NOT_GIVEN for action in parser._actions if action.dest != "help"})
    found = vars(parser.parse_args(arguments, namespace=blank))
    return {name: value for name, value in found.items() if value is not _NOT_GIVEN}


def to_namespace(parser: argparse.ArgumentParser, overrides: dict[str, Any]) -> argparse.Namespace:
    """Build the namespace of a call from Python: the parser's defaults, replaced by `overrides`.

    Raises:
        TypeError: If a name in `overrides` is not the destination of an option.
    """
    known = {action.dest for action in parser._actions} - {"help"}
    if unknown := sorted(overrides.keys() - known):
        raise TypeError(f"unknown option {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    parser.set_defaults(**overrides)
    return parser.parse_args([])


def to_settings(kind: type[SettingsT], options: argparse.Namespace) -> SettingsT:
    """Convert parsed options to the settings of a program.

    Args:
        kind: Dataclass whose fields are named like the options.
        options: Parsed options; fields without an option keep their default, and lists become tuples.

    Raises:
        UserError: If an option is out of range or contradicts another.
    """
    given = {one.name: getattr(options, one.name) for one in fields(kind) if hasattr(options, one.name)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


# ----------------------------------------------------------------------------------------------------------------------
# Options that several programs have


def add_image_size(options: Options, default: Sequence[int], text: str) -> None:
    """Add --imgsz, which takes one or two numbers, and its older spellings."""
    options.add_argument(
        "--imgsz", "--img", "--img-size", nargs="+", type=int, default=default, metavar="PX", help=text
    )  # fmt: skip


def add_device(options: Options) -> None:
    """Add --device."""
    text = "cpu, mps, or GPU indices such as 0 or 0,1 (default: the first GPU, else the CPU)"
    options.add_argument("--device", default="", help=text)


def add_compile(options: Options) -> None:
    """Add --compile."""
    add_flag(options, "--compile", "compile the network with torch.compile, which takes a minute or more at the start")


def add_no_tf32(options: Options) -> None:
    """Add --no-tf32."""
    text = "compute fp32 on GPUs with full precision instead of TF32 (10-bit mantissa), which is several times slower"
    add_flag(options, "--no-tf32", text)


def add_runtime(options: Options, half: str) -> None:
    """Add the options that choose how `--weights` are computed.

    Args:
        options: The parser or group to extend.
        half: Help of --half, which differs between programs.
    """
    add_flag(options, "--half", half)
    add_flag(options, "--dnn", "run .onnx files with OpenCV DNN instead of ONNX Runtime")
    add_compile(options)
    add_no_tf32(options)


def add_run_folder(options: Options, project: str) -> None:
    """Add the options that name the folder of results, below `project` by default."""
    options.add_argument("--project", default=project, metavar="FOLDER", help="parent folder of the run folder")
    options.add_argument("--name", default="exp", help="name of the run folder, numbered if it exists")
    add_flag(options, "--exist-ok", "write into an existing run folder instead of a new numbered one")


def add_download(options: Options, what: str = "official weights") -> None:
    """Add --download, the only option that lets a program fetch weights and data from the network."""
    add_flag(options, "--download", f"download {what} that are not on disk")


# ----------------------------------------------------------------------------------------------------------------------
# Running a program


def run_script(main: Callable[[], object]) -> None:
    """Run `main` as a program.

    A UserError, and an OSError that the user can correct (full disk, missing permission), becomes one line on stderr
    and exit status 2; Ctrl-C becomes status 130, SIGTERM 143 and SIGHUP 129. One process of several ends without
    finalizing the interpreter, because threads of the communication library can then abort a complete training.
    """
    ended: list[bool] = []
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    atexit.register(gc.freeze)  # or the last collections would visit each object of torch, which takes a second
    try:
        set_up_console()
        if dist.is_launched():  # while a rank waits for others in native code, only signals' default action ends it
            atexit.register(lambda: _exit(0) if ended else None)  # after the functions that `main` registers
        else:
            handle_signals(raise_stop_signal)
        main()
        dist.stop()
        ended.append(True)
    except UserError as error:
        LOGGER.error(one_line(str(error)))
        _exit(2)
    except StopSignal as stop:
        LOGGER.error(stop.text)
        _exit(stop.status)
    except KeyboardInterrupt:
        LOGGER.error("interrupted")
        _exit(130)
    except RuntimeError as error:
        if not dist.is_launched():
            raise
        dist.await_verdict()  # the cause may be that another rank is gone
        LOGGER.error(one_line(f"rank {dist.rank()}: {error}")[:300])
        traceback.print_exception(error)
        _exit(1)
    except OSError as error:
        if error.errno not in _USER_ERRORS:
            raise
        LOGGER.error(one_line(f"{error.filename or 'files'}: {error.strerror}"))
        _exit(2)


def one_line(text: str) -> str:
    """Escape line breaks and control characters, so that the text stays on one line of a terminal; cut long texts."""
    if len(text) > MAX_MESSAGE_CHARACTERS:  # as with a file name of 100,000 characters in a label file
        text = f"{text[: MAX_MESSAGE_CHARACTERS - 500]} … {text[-500:]}"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if dist.is_launched():
        os._exit(status)  # other ranks may wait in a collective; the launcher ends them once this process is gone
    sys.exit(status)
