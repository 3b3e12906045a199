"""Train an instance segmentation network.

    python segment/train.py                                     (generated shapes data, no download)
    python segment/train.py --data my-polygons.yaml --weights yolov5n-seg.pt --img 640 --epochs 10
    python segment/train.py --resume runs/train-seg/exp/weights/last.pt
    torchrun --nproc-per-node 2 segment/train.py --batch 32

The training loop is utils/engine/fit.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.core.cli import explicit_options, run_script, to_namespace
from utils.core.contracts import Logger
from utils.programs.train import add_evolution, task_parser, train_task, wants_evolution


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser of this script."""
    return add_evolution(task_parser("segment", __doc__))


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

        return evolve("segment", parser, options, loggers)
    return train_task("segment", parser, options, loggers)


if __name__ == "__main__":
    run_script(lambda: run(**explicit_options(build_parser())))
