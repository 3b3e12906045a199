"""Validate an instance segmentation checkpoint on a data set.

    python segment/val.py                                       (newest run, on its training data set)
    python segment/val.py --weights yolov5n-seg.pt --data coco.yaml --img 640
    python segment/val.py --weights yolov5n-seg.pt --data coco.yaml --save-json
    python segment/val.py --weights runs/train-seg/exp/weights/best.pt --data coco128-panoptic.yaml
    torchrun --nproc-per-node 2 segment/val.py --weights yolov5n-seg.pt --data coco.yaml

Masks are compared at a quarter of the input size, with --save-json at the input size. On panoptic data, networks with
masks and a semantic head get panoptic quality as well.
The loop is utils/engine/evaluate.py.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.core.cli import explicit_options, run_script
from utils.programs.panoptic_options import add_merge_constants
from utils.programs.val import val_parser, validate_task


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser of this script."""
    parser = val_parser(__doc__, project="runs/val-seg")
    add_merge_constants(parser.add_argument_group("panoptic segmentation (on panoptic data)"))
    return parser


def run(**options: object) -> dict[str, float]:
    """Validate from Python.

    Args:
        **options: Options of the script, with underscores for dashes.

    Returns:
        Metrics by name.
    """
    return validate_task("segment", build_parser(), options, "runs/train-seg")


if __name__ == "__main__":
    run_script(lambda: run(**explicit_options(build_parser())))
