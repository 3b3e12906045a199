"""Check a data set before training on it, and download one.

    python check.py --data data/animals.yaml
    python check.py --data coco128.yaml --anchors --imgsz 1280
    python check.py --data data/animals.yaml --fix animals-clean
    python check.py --data VOC.yaml --download

Writes report.html and report.json. The exit status is 1 if there are errors or, with --strict, warnings, and 2 if
nothing can be checked.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.dataset_check.check_settings import CheckSettings
from utils.core.cli import add_flag, add_run_folder, new_parser, run_script


def build_parser() -> argparse.ArgumentParser:
    """Build the command-line parser of this program."""
    parser = new_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--data", required=True, help="data YAML, or a folder with one folder of images per class")
    add_flag(data, "--download", "download what is missing from the addresses in the data YAML")

    checks = parser.add_argument_group("checks")
    text = "image size in pixels at which object sizes are measured"
    checks.add_argument("--imgsz", "--img", "--img-size", type=int, default=640, metavar="PX", help=text)
    add_flag(checks, "--fast", "read headers and labels only: finds no duplicates and no damaged pixels")
    add_flag(checks, "--strict", "exit with status 1 for warnings as well")

    anchors = parser.add_argument_group("anchors")
    text = "fit N anchors to the labels, 9 if N is omitted (default: none)"
    anchors.add_argument("--anchors", nargs="?", type=int, const=9, default=0, metavar="N", help=text)
    text = "largest ratio of sides at which an anchor matches a label"
    anchors.add_argument("--anchor-t", type=float, default=4.0, metavar="X", help=text)

    output = parser.add_argument_group("output")
    output.add_argument("--fix", type=Path, default=None, metavar="FOLDER", help="new folder for a cleaned copy")
    add_run_folder(output, "runs/check")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    options = vars(build_parser().parse_args(arguments))
    from tools.dataset_check.program import check_dataset

    settings = CheckSettings(**options | {"project": Path(options["project"])})
    counts = check_dataset(settings).counts
    if counts["error"] or (settings.strict and counts["warning"]):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
