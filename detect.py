"""Run a detector on images, videos or streams.

python detect.py                                          the newest training run, on its own data
python detect.py --weights runs/train/exp/weights/best.pt --source photo.jpg
                                                   --source folder   'folder/**/*.jpg'   list.txt   film.mp4   film.gif
                                                   --source 0   rtsp://address   list.streams   screen   'screen 1'
python detect.py --weights a.pt b.pt --source folder --save-txt --save-conf --save-crop --save-csv

The loop itself is utils/engine/predict.py.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from utils.core.cli import run_script, to_namespace
from utils.programs.predict import predict_task, prediction_parser

if TYPE_CHECKING:
    from utils.engine.predict import PredictReport


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    return prediction_parser(__doc__)


def run(**overrides: Any) -> PredictReport:
    """Detect from Python with the same names and defaults as the command line."""
    return main(to_namespace(build_parser(), overrides))


def main(options: argparse.Namespace) -> PredictReport:
    """Detect as `options` say; return what was done."""
    return predict_task(options, runs="runs/train")


if __name__ == "__main__":
    run_script(lambda: main(build_parser().parse_args()))
