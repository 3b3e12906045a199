"""Export checkpoints to the formats of other runtimes, and check that they compute the same.

    python export.py --weights yolov5n.pt --include onnx                      (beside the checkpoint)
    python export.py --weights best.pt --include torchscript onnx openvino --dynamic
    python export.py --weights best.pt --include onnx --nms --conf-thres 0.25 --iou-thres 0.45
    python export.py --weights best.pt --include openvino --int8 --data coco128.yaml

Every file is run on images and compared with PyTorch before it is moved into place; a JSON file beside it has the
differences. val.py, detect.py and the other programs accept the files as --weights. Formats are in utils/backends/.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from utils.core.cli import run_script, to_namespace, to_settings
from utils.programs.export import export_checkpoints
from utils.programs.export_settings import ExportSettings, export_parser


def build_parser() -> argparse.ArgumentParser:
    """Create the parser of this program."""
    return export_parser(__doc__)


def run(**overrides: Any) -> list[Path]:
    """Export from Python; names and defaults are those of the command line.

    Args:
        **overrides: Options by name, `include=["onnx"]`.

    Returns:
        The exported files.
    """
    return main(to_namespace(build_parser(), overrides))


def main(options: argparse.Namespace) -> list[Path]:
    """Export with parsed options; return the files."""
    return export_checkpoints(to_settings(ExportSettings, options))


if __name__ == "__main__":
    run_script(lambda: main(build_parser().parse_args()))
