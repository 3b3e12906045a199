"""Train a classifier of whole images.

    python classify/train.py                                    (the embedded shapes data, no download)
    python classify/train.py --data folder --model yolov5n.pt --epochs 20 --batch 16
    python classify/train.py --data folder --model resnet50 --download
    python classify/train.py --resume runs/train-cls/exp/weights/last.pt
    torchrun --nproc-per-node 2 classify/train.py --data folder --model yolov5s-cls.pt

The folder has train/<class>/ and val/<class>/ with images. The loop itself is utils/engine/fit.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.core.cli import explicit_options, run_script, to_namespace
from utils.core.contracts import Logger
from utils.programs.classification_options import class_training_options, class_training_parser
from utils.programs.train import train_task


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    return class_training_parser(__doc__)


def run(loggers: Sequence[Logger] = (), **overrides: object) -> dict[str, float]:
    """Train from Python with the options' names and defaults, and loggers of your own; return the final numbers."""
    to_namespace(build_parser(), dict(overrides))
    return train_task("classify", build_parser(), class_training_options(dict(overrides)), loggers)


if __name__ == "__main__":
    run_script(lambda: train_task("classify", build_parser(), class_training_options(explicit_options(build_parser()))))
