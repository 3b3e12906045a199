"""Export one checkpoint to every format and compare size, accuracy and speed side by side.

    python benchmark.py --weights yolov5n.pt --data coco128.yaml
    python benchmark.py --weights yolov5n.pt --include torchscript onnx openvino --speed-only
    python benchmark.py --weights yolov5n.pt --data coco128.yaml --hard-fail 0.3

Times are medians of runs that take turns, so that a busy moment of the machine meets all formats alike.
"""

from __future__ import annotations

import argparse
from typing import Any

from utils.core.cli import run_script, to_namespace
from utils.programs.benchmark import benchmark_parser, benchmark_task


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    return benchmark_parser(__doc__)


def run(**overrides: Any) -> list[dict[str, Any]]:
    """Benchmark from Python with the same names and defaults as the command line; return a row per format."""
    return main(to_namespace(build_parser(), overrides))


def main(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Benchmark as `options` say; return a row per format."""
    return benchmark_task(options)


if __name__ == "__main__":
    run_script(lambda: main(build_parser().parse_args()))
