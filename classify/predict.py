"""Classify whole images, videos or streams.

    python classify/predict.py                                  newest training run, on its own data set
    python classify/predict.py --weights runs/train-cls/exp/weights/best.pt --source photo.jpg
    python classify/predict.py --weights yolov5s-cls.pt --source folder --save-txt

--source accepts what detect.py accepts. The prediction loop is in utils/engine/predict.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from typing import TYPE_CHECKING, Any

from utils.core.cli import run_script, to_namespace, to_settings
from utils.programs.predict import run_prediction
from utils.programs.predict_options import CLASSIFICATION, PredictOptions, class_prediction_parser

if TYPE_CHECKING:
    from utils.engine.predict import PredictReport


def build_parser() -> argparse.ArgumentParser:
    """Create the parser of this program."""
    return class_prediction_parser(__doc__)


def run(**overrides: Any) -> PredictReport:
    """Classify from Python; names and defaults are those of the command line.

    Args:
        **overrides: Options by name, `weights=["best.pt"]`.

    Returns:
        Counts and times.
    """
    return main(to_namespace(build_parser(), overrides))


def main(options: argparse.Namespace) -> PredictReport:
    """Classify with parsed options."""
    return run_prediction(to_settings(PredictOptions, options), CLASSIFICATION)


if __name__ == "__main__":
    run_script(lambda: main(build_parser().parse_args()))
