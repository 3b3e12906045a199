"""Score a classification checkpoint on a data set: how often the right class is the surest, or among five.

    python classify/val.py                                      (the newest run, on the data it was trained on)
    python classify/val.py --weights yolov5s-cls.pt --data folder --img 224
    torchrun --nproc-per-node 2 classify/val.py --weights yolov5s-cls.pt --data folder

The loop itself is utils/engine/evaluate.py.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.core.cli import explicit_options, run_script
from utils.programs.classification_options import class_scoring_parser
from utils.programs.val import score_task


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    return class_scoring_parser(__doc__)


def run(**overrides: object) -> dict[str, float]:
    """Score from Python with the options' names and defaults; return the numbers."""
    return score_task("classify", build_parser(), dict(overrides), "runs/train-cls")


if __name__ == "__main__":
    run_script(lambda: run(**explicit_options(build_parser())))
