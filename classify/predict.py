"""Name the class of images, videos or streams.

    python classify/predict.py                                  the newest training run, on its own data
    python classify/predict.py --weights runs/train-cls/exp/weights/best.pt --source photo.jpg
    python classify/predict.py --weights yolov5s-cls.pt --source folder --save-txt

Everything detect.py takes as --source is taken here. The loop itself is utils/engine/predict.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from typing import TYPE_CHECKING, Any

from utils.core.cli import run_script, to_namespace
from utils.programs.predict import class_prediction_parser, predict_classes

if TYPE_CHECKING:
    from utils.engine.predict import PredictReport


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    return class_prediction_parser(__doc__)


def run(**overrides: Any) -> PredictReport:
    """Classify from Python with the same names and defaults as the command line."""
    return main(to_namespace(build_parser(), overrides))


def main(options: argparse.Namespace) -> PredictReport:
    """Classify as `options` say; return what was done."""
    return predict_classes(options, runs="runs/train-cls")


if __name__ == "__main__":
    run_script(lambda: main(build_parser().parse_args()))
