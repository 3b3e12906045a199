"""Search hyperparameters, in one process or several that share the search.

    python tune.py --data coco128.yaml --weights yolov5n.pt --epochs 20 --trials 50
    python tune.py --task segment --data my-polygons.yaml --weights yolov5n-seg.pt --keys lr0 momentum --trials 20
    python tune.py --resume                                     (resume; a second process joins in the same way)
    python tune.py --storage postgresql://host/db --study hunt --data coco.yaml     (on every machine)

Each trial is a training run; options of the training script apply to all of them. The search is in tools/search/.
"""

import argparse
import sys

from tools.search.search_options import find_task, tune, tuning_parser
from utils.core.cli import explicit_options, run_script, to_namespace


def build_parser(task: str = "detect") -> argparse.ArgumentParser:
    """Create the command-line parser of this script, with the training options of `task`."""
    return tuning_parser(__doc__, task)


def run(**options: object) -> dict[str, float]:
    """Search from Python.

    Args:
        **options: Options of the script, with underscores for dashes.

    Returns:
        Metrics of the best trial by name.
    """
    task = str(options.get("task", "detect"))
    to_namespace(build_parser(task), options)  # checks the names
    return tune(build_parser(task), options)


def main() -> None:
    """Search as the command line says."""
    parser = build_parser(find_task(sys.argv[1:]))
    tune(parser, explicit_options(parser))


if __name__ == "__main__":
    run_script(main)
