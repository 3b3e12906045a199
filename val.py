"""Validate a checkpoint on a data set.

    python val.py                                               (newest run, on its training data set)
    python val.py --weights yolov5n.pt --data coco128.yaml --img 640
    python val.py --weights yolov5s.pt yolov5m.pt               (ensemble)
    torchrun --nproc-per-node 2 val.py --weights yolov5n.pt --data coco.yaml
    python val.py --task study --weights yolov5n.pt --data coco128.yaml

The loop is utils/engine/evaluate.py.
"""

import argparse

from utils.core.cli import explicit_options, run_script
from utils.programs.val import val_parser, validate_task


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser of this script."""
    return val_parser(__doc__)


def run(**options: object) -> dict[str, float]:
    """Validate from Python.

    Args:
        **options: Options of the script, with underscores for dashes.

    Returns:
        Metrics by name.
    """
    return validate_task("detect", build_parser(), options, "runs/train")


if __name__ == "__main__":
    run_script(lambda: run(**explicit_options(build_parser())))
