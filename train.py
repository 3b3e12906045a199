"""Train a detector.

    python train.py                                             (the embedded shapes data, no download)
    python train.py --data coco128.yaml --weights yolov5n.pt --img 640 --epochs 10
    python train.py --resume runs/train/exp/weights/last.pt
    torchrun --nproc-per-node 2 train.py --batch 32

The loop itself is utils/engine/fit.py.
"""

import argparse

from utils.core.cli import explain, given, resolve_training, run_script, to_namespace, training_parser
from utils.core.config import load_data
from utils.core.log import LOGGER


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    return training_parser(__doc__)


def run(**overrides: object) -> dict[str, float]:
    """Train from Python with the options' names and defaults; return the final numbers."""
    to_namespace(build_parser(), dict(overrides))
    return _train(dict(overrides))


def _train(chosen: dict[str, object]) -> dict[str, float]:
    parser = build_parser()
    data = load_data(str(chosen.get("data", parser.get_default("data"))))
    settings, origin = resolve_training(parser, chosen, data.defaults, data.source)
    if not settings.resume:
        LOGGER.info(explain(settings, origin))

    from utils.engine.fit import fit  # torch is loaded here, so that --help answers at once
    from utils.tasks import TASKS

    return fit(TASKS.get("detect"), settings)


if __name__ == "__main__":
    run_script(lambda: _train(given(build_parser())))
