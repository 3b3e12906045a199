"""Run an instance segmenter on images, videos or streams.

    python segment/predict.py                                 the newest training run, on its own data
    python segment/predict.py --weights runs/train-seg/exp/weights/best.pt --source photo.jpg
    python segment/predict.py --weights yolov5n-seg.pt --source folder --retina-masks --save-txt --save-crop

Everything detect.py takes as --source is taken here. The loop itself is utils/engine/predict.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from typing import TYPE_CHECKING, Any

from utils.core.cli import run_script, to_namespace
from utils.programs.predict import predict_task, prediction_parser

if TYPE_CHECKING:
    from utils.engine.predict import PredictReport


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    return prediction_parser(__doc__, masks=True, project="runs/predict-seg")


def run(**overrides: Any) -> PredictReport:
    """Segment from Python with the same names and defaults as the command line."""
    return main(to_namespace(build_parser(), overrides))


def main(options: argparse.Namespace) -> PredictReport:
    """Segment as `options` say; return what was done."""
    return predict_task(options, runs="runs/train-seg", masks=True)


if __name__ == "__main__":
    run_script(lambda: main(build_parser().parse_args()))
