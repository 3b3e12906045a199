"""What a search found, as files and text."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.search.shared_study import DEFAULTS, FITNESS, GOALS
from tools.search.space import with_values
from tools.search.trial import COLUMNS, NUMBERS, best_numbers
from utils.core.files import write_text
from utils.core.hyp import Hyp
from utils.core.timing import duration
from utils.core.yaml_file import write_yaml

SHOWN = 10  # trials in the printed table
FEWEST = 10  # complete trials, before it is said which hyper-parameters matter


@dataclass(frozen=True)
class Tried:
    """A trial that is over, as plain values."""

    number: int
    state: str  # complete, pruned, failed
    values: tuple[float, ...]  # of the goals; of a pruned trial, where it was when it ended
    hyps: Mapping[str, Any]
    numbers: Mapping[str, float]  # everything that was measured
    seconds: float
    defaults: bool = False
    curve: Mapping[int, float] = field(default_factory=dict)  # the goal by epoch


@dataclass(frozen=True)
class Story:
    """A study as plain values: its trials in their order, and what ranks them."""

    goals: tuple[str, ...]
    trials: tuple[Tried, ...]
    columns: Mapping[str, str]  # numbers by their columns in results.csv
    front: tuple[int, ...]  # numbers of the best trials: one, or with several goals those that no other beats

    @property
    def complete(self) -> list[Tried]:
        """Return the complete trials, the best first."""
        return sorted((trial for trial in self.trials if trial.state == "complete"), key=lambda t: -t.values[0])

    @property
    def best(self) -> Tried | None:
        """Return the best trial; with several goals, the best of the first one."""
        return next(iter(self.complete), None)

    @property
    def defaults(self) -> Tried | None:
        """Return the complete trial of the hyper-parameter file itself."""
        return next((trial for trial in self.trials if trial.defaults and trial.state == "complete"), None)


def story_of(study: Any) -> Story:
    """Return what a study knows."""
    goals = tuple(study.user_attrs.get(GOALS, (FITNESS,)))
    words = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    trials = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name not in words:
            continue
        numbers = trial.user_attrs.get(NUMBERS, {})
        values = tuple(trial.values or ()) or tuple(numbers[name] for name in goals if name in numbers)
        took = trial.duration.total_seconds() if trial.duration else 0.0
        defaults, curve = bool(trial.user_attrs.get(DEFAULTS)), trial.intermediate_values
        state = words[trial.state.name]
        trials.append(Tried(trial.number, state, values, trial.params, numbers, took, defaults, curve))
    return Story(goals, tuple(trials), study.user_attrs.get(COLUMNS, {}), best_numbers(study))


def table(story: Story) -> str:
    """Return the best trials and the defaults as lines of text."""
    shown = story.complete[:SHOWN]
    defaults = story.defaults
    if defaults is not None and defaults not in shown:
        shown.append(defaults)
    names = list(dict.fromkeys([*story.goals, *_headline(story)]))[:6]
    lines = [f"{'trial':>7}" + "".join(f"{name:>18.18}" for name in names) + f"{'time':>12}"]
    for trial in shown:
        mark = "*" if trial.number in story.front else " "
        known = {**trial.numbers, **dict(zip(story.goals, trial.values, strict=False))}
        cells = "".join(f"{known.get(name, float('nan')):18.5g}" for name in names)
        lines.append(f"{mark}{trial.number:>6}{cells}{duration(trial.seconds):>12}" + ("  defaults" * trial.defaults))
    counts = {state: sum(trial.state == state for trial in story.trials) for state in ("complete", "pruned", "failed")}
    lines.append(", ".join(f"{count} {state}" for state, count in counts.items()))
    return "\n".join(lines)


def _headline(story: Story) -> list[str]:
    return [number for column, number in story.columns.items() if column.startswith("metrics/")]


def verdict(story: Story) -> str:
    """Return whether the best trial is better than the defaults, as far as one run of each tells."""
    best, defaults = story.best, story.defaults
    if best is None:
        return "no trial is complete"
    if defaults is None:
        return f"best: trial {best.number}; the defaults are not trained to the end yet, nothing to compare with"
    if len(story.goals) > 1:
        better = [
            trial.number
            for trial in story.complete
            if all(a >= b for a, b in zip(trial.values, defaults.values, strict=True))
            and trial.values != defaults.values
        ]
        front = ", ".join(map(str, story.front))
        beaten = f"better than the defaults in every goal: {', '.join(map(str, better)) or 'none'}"
        return f"trials that no other beats in every goal: {front}; {beaten}"
    goal, old, new = story.goals[0], defaults.values[0], best.values[0]
    if new <= old:
        return f"no trial is better than the defaults (trial {defaults.number}, {goal} {old:.5g}): keep them"
    gain = f"{new - old:+.4g}" + (f", {100 * (new - old) / old:+.1f} %" if old > 0 else "")
    return (
        f"trial {best.number} is better than the defaults: {goal} {new:.5g} instead of {old:.5g} ({gain}), in one run "
        "of each. The best of many runs is in part luck: --confirm 3 trains both again with other seeds"
    )


def write_best(story: Story, hyp: Hyp, path: Path) -> None:
    """Write the best trial's hyper-parameters as a file for --hyp, with how it was found on top."""
    best = story.best
    if best is None:
        return
    scores = ", ".join(f"{name} {best.numbers[name]:.5g}" for name in _headline(story) if name in best.numbers)
    values = ", ".join(f"{name} {value:.5g}" for name, value in zip(story.goals, best.values, strict=True))
    lines = [f"trial {best.number} of {len(story.trials)}: {values}", scores, verdict(story)]
    header = "".join(f"# {line}\n" for line in lines if line)
    write_yaml(path, with_values(hyp, best.hyps).to_dict(), header)


def write_trials(story: Story, path: Path) -> None:
    """Write a line per trial that is over: state, goals, hyper-parameters, everything measured."""
    hyps = list(dict.fromkeys(name for trial in story.trials for name in trial.hyps))
    numbers = list(dict.fromkeys(name for trial in story.trials for name in trial.numbers if name not in story.goals))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "defaults", "seconds", *story.goals, *hyps, *numbers])
    for trial in story.trials:
        goals = [*trial.values, *[""] * len(story.goals)][: len(story.goals)]
        row = [trial.number, trial.state, int(trial.defaults), round(trial.seconds, 1), *goals]
        row += [trial.hyps.get(name, "") for name in hyps]
        writer.writerow([*row, *(trial.numbers.get(name, "") for name in numbers)])
    write_text(path, text.getvalue())


def write_evolution(story: Story, hyp: Hyp, path: Path) -> None:
    """Write `evolve.csv` as YOLOv5 does: scores, validation losses, every hyper-parameter (behaviour.md 3.14)."""
    numbers = {c: number for c, number in story.columns.items() if c.startswith(("metrics/", "val/"))}
    fixed = {name: value for name, value in hyp.to_dict().items() if isinstance(value, (int, float))}
    varying = [name for trial in story.complete[:1] for name in trial.hyps if name not in fixed]
    names = [*fixed, *varying]
    lines = [",".join(f"{name:>20}" for name in [*numbers, *names])]
    for trial in sorted(story.complete, key=lambda trial: trial.number):
        values = [trial.numbers.get(number, float("nan")) for number in numbers.values()]
        lines.append(",".join(_cell(value) for value in [*values, *({**fixed, **trial.hyps}[name] for name in names)]))
    write_text(path, "\n".join(lines) + "\n")


def _cell(value: Any) -> str:
    return f"{value:20.5g}" if isinstance(value, (int, float)) else f"{value!s:>20}"


def importance(study: Any, story: Story) -> dict[str, float]:
    """Return the share of each hyper-parameter in the goal's differences; nothing while too few trials tell it."""
    values = {trial.values[0] for trial in story.complete}
    names = {name for trial in story.complete for name in trial.hyps}
    if len(story.goals) > 1 or len(story.complete) < FEWEST or len(values) < FEWEST or len(names) < 2:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "experimental"
        return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))
