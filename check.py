"""Check a data set before training on it, and fetch one.

    python check.py --data data/animals.yaml
    python check.py --data coco128.yaml --anchors --imgsz 1280
    python check.py --data data/animals.yaml --fix animals-clean
    python check.py --data VOC.yaml --download

Writes report.html and report.json. The status is 1 if there are errors, with --strict also if there are warnings. The
work is done by tools/dataset_check.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.dataset_check.check_settings import GateSettings
from utils.core.cli import add_run_folder, new_parser, run_script


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--data", required=True, help="data-set YAML, or a folder with a folder of images per class")
    add("--imgsz", "--img", "--img-size", type=int, default=640, metavar="PX", help="size at which objects are judged")
    add("--fast", action="store_true", help="look at headers and labels only: no duplicates, no damaged pixels")
    add("--strict", action="store_true", help="leave with status 1 for warnings, too")
    add("--fix", type=Path, default=None, metavar="OUT", help="new folder for a cleaned copy")
    add("--anchors", nargs="?", type=int, const=9, default=0, metavar="N", help="fit so many anchors; alone: 9")
    add("--anchor-t", type=float, default=4.0, help="ratio of sides up to which an anchor matches a label")
    add("--download", action="store_true", help="fetch what the YAML's download: names and is not there")
    add_run_folder(parser, "runs/check")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    options = vars(build_parser().parse_args(arguments))
    from tools.dataset_check.program import run_gate

    counts = run_gate(GateSettings(**options | {"project": Path(options["project"])})).counts
    if counts["error"] or (options["strict"] and counts["warning"]):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
