"""Train an image classifier.

    python classify/train.py                                    (generated shapes data, no download)
    python classify/train.py --data folder --model yolov5n.pt --epochs 20 --batch 16
    python classify/train.py --data folder --model resnet50 --download
    python classify/train.py --resume runs/train-cls/exp/weights/last.pt
    torchrun --nproc-per-node 2 classify/train.py --data folder --model yolov5s-cls.pt

The folder has train/<class>/ and val/<class>/ with images. The training loop is utils/engine/fit.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.core.cli import explicit_options, run_script, to_namespace
from utils.core.contracts import Logger
from utils.programs.train import task_parser, train_task


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser of this script."""
    return task_parser("classify", __doc__)


def run(loggers: Sequence[Logger] = (), **options: object) -> dict[str, float]:
    """Train from Python.

    Args:
        loggers: Loggers beside those of `--log`.
        **options: Options of the script, with underscores for dashes.

    Returns:
        Metrics of the best checkpoint by name.
    """
    parser = build_parser()
    to_namespace(build_parser(), options)  # checks the names
    return train_task("classify", parser, options, loggers)


if __name__ == "__main__":
    run_script(lambda: run(**explicit_options(build_parser())))
