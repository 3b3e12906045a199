"""Train an instance segmenter: boxes, and a mask for each.

    python segment/train.py                                     (the embedded shapes data, no download)
    python segment/train.py --data my-polygons.yaml --weights yolov5n-seg.pt --img 640 --epochs 10
    python segment/train.py --resume runs/train-seg/exp/weights/last.pt
    torchrun --nproc-per-node 2 segment/train.py --batch 32

The loop itself is utils/engine/fit.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.search.search_options import add_evolution, train_or_evolve
from utils.core.cli import explicit_options, run_script, to_namespace
from utils.core.contracts import Logger
from utils.programs.train import task_parser


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    return add_evolution(task_parser("segment", __doc__))


def run(loggers: Sequence[Logger] = (), **overrides: object) -> dict[str, float]:
    """Train from Python with the options' names and defaults, and loggers of your own; return the final numbers."""
    to_namespace(build_parser(), dict(overrides))
    return train_or_evolve("segment", build_parser(), dict(overrides), loggers)


if __name__ == "__main__":
    run_script(lambda: train_or_evolve("segment", build_parser(), explicit_options(build_parser())))
