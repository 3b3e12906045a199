"""Search for hyper-parameters: trainings with others each, the best kept, shared by any number of processes.

    python tune.py --data coco128.yaml --weights yolov5n.pt --epochs 20 --trials 50
    python tune.py --task segment --data my-polygons.yaml --weights yolov5n-seg.pt --keys lr0 momentum --trials 20
    python tune.py --resume                                     (goes on; a second process that joins: the same)
    python tune.py --storage postgresql://host/db --study hunt --data coco.yaml     (on every machine)

Options that a training script has are those of its trainings. The search is in tools/search/.
"""

import argparse
import sys

from tools.search.search_options import task_in, tune, tuning_parser
from utils.core.cli import explicit_options, run_script, to_namespace


def build_parser(task: str = "detect") -> argparse.ArgumentParser:
    """Return the options of this script, with those of a training of `task`."""
    return tuning_parser(__doc__, task)


def run(**overrides: object) -> dict[str, float]:
    """Search from Python with the options' names and defaults; return the numbers of the best trial."""
    parser = build_parser(str(overrides.get("task", "detect")))
    to_namespace(parser, dict(overrides))
    return tune(parser, dict(overrides))


def main() -> None:
    """Search as the command line says."""
    parser = build_parser(task_in(sys.argv[1:]))
    tune(parser, explicit_options(parser))


if __name__ == "__main__":
    run_script(main)
