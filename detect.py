"""Predict with a detector, or any other network, on images, videos or streams.

python detect.py                                          newest training run, on its own data set
python detect.py --weights runs/train/exp/weights/best.pt --source photo.jpg
                                                   --source folder   'folder/**/*.jpg'   list.txt   video.mp4   a.gif
                                                   --source 0   rtsp://address   list.streams   screen   'screen 1'
python detect.py --weights a.pt b.pt --source folder --save-txt --save-conf --save-crop --save-csv

The prediction loop is in utils/engine/predict.py.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from utils.core.cli import run_script, to_namespace, to_settings
from utils.programs.predict import run_prediction
from utils.programs.predict_options import DETECTION, PredictOptions, prediction_parser

if TYPE_CHECKING:
    from utils.engine.predict import PredictReport


def build_parser() -> argparse.ArgumentParser:
    """Create the parser of this program."""
    return prediction_parser(__doc__)


def run(**overrides: Any) -> PredictReport:
    """Predict from Python; names and defaults are those of the command line.

    Args:
        **overrides: Options by name, `conf_thres=0.5`.

    Returns:
        Counts and times.
    """
    return main(to_namespace(build_parser(), overrides))


def main(options: argparse.Namespace) -> PredictReport:
    """Predict with parsed options."""
    return run_prediction(to_settings(PredictOptions, options), DETECTION)


if __name__ == "__main__":
    run_script(lambda: main(build_parser().parse_args()))
