"""Search process with instant training runs: `tune_worker.py FOLDER TRIALS HANG`, where trial HANG never ends."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

from tools.search.shared_study import SearchSettings, open_study
from tools.search.space import build_space, start_value
from tools.search.trial import Search
from utils.core.hyp import Hyp
from utils.core.yaml_file import read_yaml

TASK = SimpleNamespace(fitness={"score": 1.0}, columns={"metrics/score": "score"})


def build(folder: Path, trials: int, train, **options: object) -> Search:
    """Return a search for lr0 and momentum in `folder`."""
    settings = SearchSettings(trials=trials, **{"pruner": "none", **options})
    folder.mkdir(exist_ok=True)
    (folder / "hyp.yaml").write_text("lr0: 0.01\n")
    hyp = Hyp.from_file(folder / "hyp.yaml")
    space = build_space("detect", hyp, folder / "hyp.yaml", keys=("lr0", "momentum"))
    first = [{one.name: start_value(hyp, one) for one in space}]
    return Search(open_study(settings, folder, space, first, 10, 0), settings, hyp, space, folder, train)


def score(hyp_file: Path) -> float:
    """Compute the score of a simulated training, best at lr0 0.03 and momentum 0.8."""
    hyp = read_yaml(hyp_file)
    return 1.0 - abs(hyp["lr0"] - 0.03) * 10 - abs(hyp["momentum"] - 0.8)


def main() -> None:
    """Search; a training that is to hang says so in a file and never ends."""
    folder, trials, hang = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

    def train(hyp_file: Path, place: Path, logger) -> dict[str, float]:
        logger.task = TASK
        with (place / "begun").open("a") as file:
            file.write(f"{hyp_file.read_text()!r}\n")
        time.sleep(0.2)
        while place.name == hang:
            (folder / "hangs").touch()
            time.sleep(0.05)
        return {"score": score(hyp_file)}

    build(folder, trials, train).run()


if __name__ == "__main__":
    main()
