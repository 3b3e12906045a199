"""The best trial against the defaults with other seeds: one run of each may be luck."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from tools.search.report import Tried
from tools.search.space import with_values
from tools.search.trial import Search, Train, Watcher, trained
from utils.core.files import write_text
from utils.core.hyp import Hyp
from utils.core.log import LOGGER

_NUMBERS = "numbers.json"  # in the folder of a training that is over


def confirmed(
    search: Search, train_with: Callable[[int], Train], defaults: Tried, best: Tried, seeds: Sequence[int]
) -> str:
    """Train both with every seed, in folders of their own; return what that shows. What is there already stays."""
    goal, pairs = search.settings.maximize[0], []
    for place, seed in enumerate(seeds, 1):
        found = []
        for trial in (defaults, best):
            LOGGER.info(f"trial {trial.number} again with seed {seed} ({place} of {len(seeds)})")
            folder = search.folder / "confirm" / f"trial{trial.number}-seed{seed}"
            found.append(_measured(train_with(seed), with_values(search.hyp, trial.hyps), folder, goal))
        pairs.append((found[0], found[1]))
    return compared(pairs, goal)


def _measured(train: Train, hyp: Hyp, folder: Path, goal: str) -> float:
    path = folder / _NUMBERS
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # another process may be at it
        if not path.is_file():
            write_text(path, json.dumps(trained(train, hyp, folder, Watcher(None, "")), indent=2) + "\n")
    return float(json.loads(path.read_text(encoding="utf-8"))[goal])


def compared(pairs: Sequence[tuple[float, float]], goal: str) -> str:
    """Return what repeated trainings say: (defaults, best) with the same seed each."""
    differences = [new - old for old, new in pairs]
    count = len(differences)
    mean = sum(differences) / count
    ahead = sum(difference > 0 for difference in differences)
    text = f"with {count} other seeds, the best trial's {goal} is {mean:+.4g} on average, higher in {ahead} of {count}"
    if count == 1:
        return f"{text}; one more seed proves little"
    error = (sum((difference - mean) ** 2 for difference in differences) / (count - 1) / count) ** 0.5
    sure = "better" if mean > 2 * error else "worse" if mean < -2 * error else "not told apart from the defaults"
    return f"{text} (standard error {error:.2g}): {sure}"
