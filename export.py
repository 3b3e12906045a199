"""Write a checkpoint in formats of other runtimes, and check that they compute the same.

    python export.py --weights yolov5n.pt --include onnx                      (beside the checkpoint)
    python export.py --weights best.pt --include torchscript onnx openvino --dynamic
    python export.py --weights best.pt --include onnx --nms --conf-thres 0.25 --iou-thres 0.45
    python export.py --weights best.pt --include openvino --int8 --data coco128.yaml

Every file is loaded in its runtime and run on images before it gets its name; what differed stands in a JSON beside it.
val.py, detect.py and the other scripts take the files as --weights. The formats are in utils/backends/.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from utils.core.cli import run_script, to_namespace
from utils.programs.export import export_parser, export_task


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    return export_parser(__doc__)


def run(**overrides: Any) -> list[Path]:
    """Export from Python with the same names and defaults as the command line; return the files."""
    return main(to_namespace(build_parser(), overrides))


def main(options: argparse.Namespace) -> list[Path]:
    """Export as `options` say; return the files."""
    return export_task(options)


if __name__ == "__main__":
    run_script(lambda: main(build_parser().parse_args()))
