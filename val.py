"""Score a checkpoint on a data set.

    python val.py                                               (the newest run, on the data it was trained on)
    python val.py --weights yolov5n.pt --data coco128.yaml --img 640
    python val.py --weights yolov5s.pt yolov5m.pt               (an ensemble)
    torchrun --nproc-per-node 2 val.py --weights yolov5n.pt --data coco.yaml
    python val.py --task study --weights yolov5n.pt --data coco128.yaml

The loop itself is utils/engine/evaluate.py.
"""

import argparse

from utils.core.cli import explicit_options, run_script
from utils.programs.val import score_task, scoring_parser


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    return scoring_parser(__doc__)


def run(**overrides: object) -> dict[str, float]:
    """Score from Python with the options' names and defaults; return the numbers."""
    return score_task("detect", build_parser(), dict(overrides), "runs/train")


if __name__ == "__main__":
    run_script(lambda: run(**explicit_options(build_parser())))
