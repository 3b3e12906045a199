"""Score a segmentation checkpoint on a data set: boxes and masks.

    python segment/val.py                                       (the newest run, on the data it was trained on)
    python segment/val.py --weights yolov5n-seg.pt --data coco.yaml --img 640
    python segment/val.py --weights yolov5n-seg.pt --data coco.yaml --save-json
    torchrun --nproc-per-node 2 segment/val.py --weights yolov5n-seg.pt --data coco.yaml

Masks are compared at a quarter of the network's resolution, with --save-json at all of it.
The loop itself is utils/engine/evaluate.py.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.core.cli import explicit_options, run_script
from utils.programs.val import score_task, scoring_parser


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    return scoring_parser(__doc__, project="runs/val-seg")


def run(**overrides: object) -> dict[str, float]:
    """Score from Python with the options' names and defaults; return the numbers."""
    return score_task("segment", build_parser(), dict(overrides), "runs/train-seg")


if __name__ == "__main__":
    run_script(lambda: run(**explicit_options(build_parser())))
