"""Validate a classification checkpoint on a data set: top-1 and top-5 accuracy.

    python classify/val.py                                      (newest run, on its training data set)
    python classify/val.py --weights yolov5s-cls.pt --data folder --img 224
    torchrun --nproc-per-node 2 classify/val.py --weights yolov5s-cls.pt --data folder

The loop is utils/engine/evaluate.py.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.core.cli import explicit_options, run_script
from utils.programs.classification_options import class_val_parser
from utils.programs.val import validate_task


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser of this script."""
    return class_val_parser(__doc__)


def run(**options: object) -> dict[str, float]:
    """Validate from Python.

    Args:
        **options: Options of the script, with underscores for dashes.

    Returns:
        Metrics by name.
    """
    return validate_task("classify", build_parser(), options, "runs/train-cls")


if __name__ == "__main__":
    run_script(lambda: run(**explicit_options(build_parser())))
