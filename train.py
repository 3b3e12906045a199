"""Train a detector.

    python train.py                                             (generated shapes data, no download)
    python train.py --data coco128.yaml --weights yolov5n.pt --img 640 --epochs 10
    python train.py --resume runs/train/exp/weights/last.pt
    torchrun --nproc-per-node 2 train.py --batch 32

The training loop is utils/engine/fit.py.
"""

import argparse
from collections.abc import Sequence

from utils.core.cli import explicit_options, run_script, to_namespace
from utils.core.contracts import Logger
from utils.programs.train import add_evolution, task_parser, train_task, wants_evolution


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser of this script."""
    return add_evolution(task_parser("detect", __doc__))


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
    if wants_evolution(options):
        from tools.search.search_options import evolve  # not loaded by other training runs

        return evolve("detect", parser, options, loggers)
    return train_task("detect", parser, options, loggers)


if __name__ == "__main__":
    run_script(lambda: run(**explicit_options(build_parser())))
