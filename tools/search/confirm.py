"""Compare the best trial with the defaults over several seeds (`--confirm`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from tools.search.report import TrialRecord
from tools.search.space import with_values
from tools.search.trial import PruningLogger, Search, Train, train_trial
from utils.core.files import write_text
from utils.core.hyp import Hyp
from utils.core.log import LOGGER

_METRICS_FILE = "numbers.json"  # in the folder of a finished run


def confirm_best(
    search: Search,
    train_with: Callable[[int], Train],
    defaults: TrialRecord,
    best: TrialRecord,
    seeds: Sequence[int],
) -> str:
    """Train the defaults and the best trial with every seed and compare them.

    Args:
        search: The search; its folder receives the runs. Finished runs are not repeated.
        train_with: Returns the training function of a seed.
        defaults: Trial of the defaults.
        best: Trial to confirm.
        seeds: Seeds to train with.

    Returns:
        A sentence about the difference.
    """
    objective, pairs = search.settings.maximize[0], []
    for index, seed in enumerate(seeds, 1):
        values = []
        for trial in (defaults, best):
            LOGGER.info(f"training trial {trial.number} with seed {seed} ({index} of {len(seeds)})")
            folder = search.folder / "confirm" / f"trial{trial.number}-seed{seed}"
            values.append(_train_once(train_with(seed), with_values(search.hyp, trial.hyps), folder, objective))
        pairs.append((values[0], values[1]))
    return compare_pairs(pairs, objective)


def _train_once(train: Train, hyp: Hyp, folder: Path, objective: str) -> float:
    path = folder / _METRICS_FILE
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # other processes may confirm the same search
        if not path.is_file():
            write_text(path, json.dumps(train_trial(train, hyp, folder, PruningLogger(None, "")), indent=2) + "\n")
    return float(json.loads(path.read_text(encoding="utf-8"))[objective])


def compare_pairs(pairs: Sequence[tuple[float, float]], objective: str) -> str:
    """Describe the mean difference of paired runs; it counts as real above two standard errors.

    Args:
        pairs: Values (defaults, best) with the same seed each.
        objective: Name of the metric.
    """
    differences = [new - old for old, new in pairs]
    count = len(differences)
    mean = sum(differences) / count
    higher = sum(difference > 0 for difference in differences)
    text = f"over {count} seeds, {objective} of the best trial is {mean:+.4g} on average, higher in {higher} of {count}"
    if count == 1:
        return f"{text}; a single seed is not conclusive"
    error = (sum((difference - mean) ** 2 for difference in differences) / (count - 1) / count) ** 0.5
    conclusion = "better" if mean > 2 * error else "worse" if mean < -2 * error else "no significant difference"
    return f"{text} (standard error {error:.2g}): {conclusion}"
