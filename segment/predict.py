"""Predict instance masks on images, videos or streams.

    python segment/predict.py                                 newest training run, on its own data set
    python segment/predict.py --weights runs/train-seg/exp/weights/best.pt --source photo.jpg
    python segment/predict.py --weights yolov5n-seg.pt --source folder --retina-masks --save-txt --save-crop

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
from utils.programs.predict_options import SEGMENTATION, PredictOptions, prediction_parser

if TYPE_CHECKING:
    from utils.engine.predict import PredictReport


def build_parser() -> argparse.ArgumentParser:
    """Create the parser of this program."""
    return prediction_parser(__doc__, masks=True, project="runs/predict-seg")


def run(**overrides: Any) -> PredictReport:
    """Predict masks from Python; names and defaults are those of the command line.

    Args:
        **overrides: Options by name, `weights=["best.pt"]`.

    Returns:
        Counts and times.
    """
    return main(to_namespace(build_parser(), overrides))


def main(options: argparse.Namespace) -> PredictReport:
    """Predict masks with parsed options."""
    return run_prediction(to_settings(PredictOptions, options), SEGMENTATION)


if __name__ == "__main__":
    run_script(lambda: main(build_parser().parse_args()))
