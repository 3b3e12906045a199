"""The command `polyolo`: `polyolo train --data coco128.yaml`, `polyolo segment predict --source photo.jpg`.

In a clone, `python -m polyolo train` is the same as `python train.py`.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Sequence

from utils.core.cli import run_script
from utils.core.errors import UserError, did_you_mean
from utils.core.version import VERSION

COMMANDS = {  # command: (module, what it does)
    "train": ("train", "train a detector"),
    "val": ("val", "validate a detector"),
    "detect": ("detect", "predict with any network on images, videos or streams"),
    "segment train": ("segment.train", "train an instance segmentation network"),
    "segment val": ("segment.val", "validate an instance segmentation network"),
    "segment predict": ("segment.predict", "predict instance masks"),
    "classify train": ("classify.train", "train a classifier"),
    "classify val": ("classify.val", "validate a classifier"),
    "classify predict": ("classify.predict", "classify images"),
    "export": ("export", "export to ONNX, OpenVINO, TensorRT and other formats"),
    "benchmark": ("benchmark", "compare the exported formats in accuracy and speed"),
    "serve": ("serve", "answer over HTTP"),
    "check": ("check", "find faults in a data set, or download it"),
    "convert": ("convert", "convert labels and weights"),
    "tune": ("tune", "search hyperparameters"),
    "prune": ("prune", "remove channels of a network"),
    "summary": ("models.summary", "print the layers of a network"),
}
_WIDTH = max(map(len, COMMANDS))


def usage() -> str:
    """Format the list of commands."""
    rows = "\n".join(f"  {name:<{_WIDTH}}  {text}" for name, (_, text) in COMMANDS.items())
    return f"usage: polyolo COMMAND [options]\n\n{rows}\n\npolyolo COMMAND --help lists the options of a command\n"


def find_command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Split a command line into the command and its own arguments.

    Raises:
        UserError: The command is unknown.
    """
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name, list(arguments[words:])
    given = " ".join(word for word in arguments[:2] if not word.startswith("-")) or arguments[0]
    hint = did_you_mean(given, COMMANDS) or did_you_mean(arguments[0], COMMANDS)
    raise UserError(f"polyolo {given}: unknown command{hint or '; polyolo --help lists the commands'}")


def is_installed() -> bool:
    """Check whether this package contains the programs, as after `pip install`; in a clone they lie beside it."""
    return importlib.util.find_spec("polyolo.utils") is not None


def run_command(arguments: Sequence[str]) -> None:
    """Run the program of a command in this process."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return
    if arguments[0] in ("-V", "--version"):
        sys.stdout.write(f"polyolo {VERSION}\n")
        return
    name, rest = find_command(arguments)
    module = COMMANDS[name][0]
    sys.argv = [f"polyolo {name}", *rest]  # the first word is the program's name in its help
    runpy.run_module(f"polyolo.{module}" if is_installed() else module, run_name="__main__")


def main() -> None:
    """Run the command line."""
    run_script(lambda: run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
