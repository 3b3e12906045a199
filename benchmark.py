"""Export one checkpoint to every format and compare size, accuracy and speed.

    python benchmark.py --weights yolov5n.pt --data coco128.yaml
    python benchmark.py --weights yolov5n.pt --include torchscript onnx openvino --speed-only
    python benchmark.py --weights yolov5n.pt --data coco128.yaml --hard-fail 0.3

Times are medians of interleaved runs, so that other load on the machine affects all formats alike.
"""

from __future__ import annotations

import argparse
from typing import Any

from utils.core.cli import run_script, to_namespace, to_settings
from utils.programs.benchmark import BenchmarkSettings, benchmark_formats, benchmark_parser


def build_parser() -> argparse.ArgumentParser:
    """Create the parser of this program."""
    return benchmark_parser(__doc__)


def run(**overrides: Any) -> list[dict[str, Any]]:
    """Benchmark from Python; names and defaults are those of the command line.

    Args:
        **overrides: Options by name, `include=["onnx"]`.

    Returns:
        A row per format, that of the checkpoint first.
    """
    return main(to_namespace(build_parser(), overrides))


def main(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Benchmark with parsed options; return a row per format."""
    return benchmark_formats(to_settings(BenchmarkSettings, options))


if __name__ == "__main__":
    run_script(lambda: main(build_parser().parse_args()))
