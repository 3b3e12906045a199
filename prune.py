"""Prune a checkpoint: remove channels from its layers, and optionally fine-tune it.

    python prune.py --weights yolov5n.pt --data coco128.yaml --target-flops 0.7
    python prune.py --weights best.pt --data data/animals.yaml --target-flops 0.7 --epochs 20
    python prune.py --weights best.pt --target-latency 0.8 --importance l2
    python prune.py --weights best.pt --sparsity 0.3

Writes pruned.pt, prune.json and prune.png. The implementation is in tools/pruning.
"""

from __future__ import annotations

import argparse
from typing import Any

from tools.pruning.program import prune_task
from tools.pruning.settings import PruneSettings, prune_parser
from utils.core.cli import run_script, to_namespace, to_settings


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser of this script."""
    return prune_parser(__doc__)


def run(**overrides: Any) -> list[dict[str, Any]]:
    """Prune from Python.

    Args:
        **overrides: Options of the script, with underscores for dashes.

    Returns:
        A row per network: before, pruned, fine-tuned.
    """
    return prune_task(to_settings(PruneSettings, to_namespace(build_parser(), overrides)))


if __name__ == "__main__":
    run_script(lambda: prune_task(to_settings(PruneSettings, build_parser().parse_args())))
