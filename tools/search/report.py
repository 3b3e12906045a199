"""Results of a search as tables, text and files."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.search.shared_study import DEFAULTS, FITNESS, OBJECTIVES
from tools.search.space import with_values
from tools.search.trial import COLUMNS, METRICS, best_trials
from utils.core.files import write_text
from utils.core.hyp import Hyp
from utils.core.timing import duration
from utils.core.yaml_file import write_yaml

if TYPE_CHECKING:
    import optuna

TABLE_TRIALS, TABLE_COLUMNS = 10, 6  # size of the printed table
MIN_TRIALS = 10  # complete trials with different values, for importances to be meaningful


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial as plain values."""

    number: int
    state: str  # complete, pruned or failed
    values: tuple[float, ...]  # of the objectives; of a pruned trial its last values
    hyps: Mapping[str, Any]
    metrics: Mapping[str, float]
    seconds: float
    defaults: bool = False  # has the values of the hyperparameter file
    curve: Mapping[int, float] = field(default_factory=dict)  # objective by epoch


@dataclass(frozen=True)
class StudySummary:
    """A study as plain values: its finished trials in order, and the objectives that rank them."""

    objectives: tuple[str, ...]
    trials: tuple[TrialRecord, ...]
    columns: Mapping[str, str]  # column of results.csv -> metric
    front: tuple[int, ...]  # number of the best trial; with several objectives those of the Pareto front

    @property
    def complete(self) -> list[TrialRecord]:
        """Complete trials in descending order of the first objective."""
        return sorted((trial for trial in self.trials if trial.state == "complete"), key=lambda t: -t.values[0])

    @property
    def best(self) -> TrialRecord | None:
        """Best complete trial by the first objective."""
        return next(iter(self.complete), None)

    @property
    def defaults(self) -> TrialRecord | None:
        """Complete trial with the values of the hyperparameter file."""
        return next((trial for trial in self.trials if trial.defaults and trial.state == "complete"), None)


def summarize_study(study: optuna.Study) -> StudySummary:
    """Read the finished trials of a study."""
    objectives = tuple(study.user_attrs.get(OBJECTIVES, (FITNESS,)))
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    trials = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name not in states:
            continue
        metrics = trial.user_attrs.get(METRICS, {})
        values = tuple(trial.values or ()) or tuple(metrics[name] for name in objectives if name in metrics)
        seconds = trial.duration.total_seconds() if trial.duration else 0.0
        defaults, curve = bool(trial.user_attrs.get(DEFAULTS)), trial.intermediate_values
        state = states[trial.state.name]
        trials.append(TrialRecord(trial.number, state, values, trial.params, metrics, seconds, defaults, curve))
    return StudySummary(objectives, tuple(trials), study.user_attrs.get(COLUMNS, {}), best_trials(study))


def format_trials(summary: StudySummary) -> str:
    """Format the best trials and the defaults as a text table; the best are marked with a star."""
    shown = summary.complete[:TABLE_TRIALS]
    defaults = summary.defaults
    if defaults is not None and defaults not in shown:
        shown.append(defaults)
    names = list(dict.fromkeys([*summary.objectives, *_main_metrics(summary)]))[:TABLE_COLUMNS]
    lines = [f"{'trial':>7}" + "".join(f"{name:>18.18}" for name in names) + f"{'time':>12}"]
    for trial in shown:
        mark = "*" if trial.number in summary.front else " "
        known = {**trial.metrics, **dict(zip(summary.objectives, trial.values, strict=False))}
        cells = "".join(f"{known.get(name, float('nan')):18.5g}" for name in names)
        lines.append(f"{mark}{trial.number:>6}{cells}{duration(trial.seconds):>12}" + ("  defaults" * trial.defaults))
    counts = {
        state: sum(trial.state == state for trial in summary.trials) for state in ("complete", "pruned", "failed")
    }
    lines.append(", ".join(f"{count} {state}" for state, count in counts.items()))
    return "\n".join(lines)


def _main_metrics(summary: StudySummary) -> list[str]:
    return [metric for column, metric in summary.columns.items() if column.startswith("metrics/")]


def compare_with_defaults(summary: StudySummary) -> str:
    """Say in a sentence whether the best trial improves on the defaults."""
    best, defaults = summary.best, summary.defaults
    if best is None:
        return "no trial is complete"
    if defaults is None:
        return f"best: trial {best.number}; the trial of the defaults is not complete, so there is no comparison"
    if len(summary.objectives) > 1:
        better = [
            trial.number
            for trial in summary.complete
            if all(a >= b for a, b in zip(trial.values, defaults.values, strict=True))
            and trial.values != defaults.values
        ]
        front = ", ".join(map(str, summary.front))
        return f"Pareto front: trials {front}; better than the defaults in every objective: " + (
            ", ".join(map(str, better)) or "none"
        )
    objective, old, new = summary.objectives[0], defaults.values[0], best.values[0]
    if new <= old:
        return f"no trial is better than the defaults (trial {defaults.number}, {objective} {old:.5g}): keep them"
    gain = f"{new - old:+.4g}" + (f", {100 * (new - old) / old:+.1f} %" if old > 0 else "")
    return (
        f"trial {best.number} is better than the defaults: {objective} {new:.5g} instead of {old:.5g} ({gain}), in one "
        "run of each. The best of many runs overestimates the gain: --confirm 3 trains both again with other seeds"
    )


def write_best(summary: StudySummary, hyp: Hyp, path: Path) -> None:
    """Write the hyperparameters of the best trial as a file for `--hyp`, with its metrics in a comment.

    Args:
        summary: The study.
        hyp: Hyperparameters that do not vary.
        path: Output file; not written without a complete trial.
    """
    best = summary.best
    if best is None:
        return
    metrics = ", ".join(f"{name} {best.metrics[name]:.5g}" for name in _main_metrics(summary) if name in best.metrics)
    values = ", ".join(f"{name} {value:.5g}" for name, value in zip(summary.objectives, best.values, strict=True))
    lines = [f"trial {best.number} of {len(summary.trials)}: {values}", metrics, compare_with_defaults(summary)]
    header = "".join(f"# {line}\n" for line in lines if line)
    write_yaml(path, with_values(hyp, best.hyps).to_dict(), header)


def write_trials(summary: StudySummary, path: Path) -> None:
    """Write a CSV with a row per finished trial: state, objectives, hyperparameters and metrics."""
    hyps = list(dict.fromkeys(name for trial in summary.trials for name in trial.hyps))
    metrics = list(
        dict.fromkeys(name for trial in summary.trials for name in trial.metrics if name not in summary.objectives)
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "defaults", "seconds", *summary.objectives, *hyps, *metrics])
    for trial in summary.trials:
        values = [*trial.values, *[""] * len(summary.objectives)][: len(summary.objectives)]
        row = [trial.number, trial.state, int(trial.defaults), round(trial.seconds, 1), *values]
        row += [trial.hyps.get(name, "") for name in hyps]
        writer.writerow([*row, *(trial.metrics.get(name, "") for name in metrics)])
    write_text(path, text.getvalue())


def write_evolution(summary: StudySummary, hyp: Hyp, path: Path) -> None:
    """Write `evolve.csv` in YOLOv5's layout: metrics, validation losses, every hyperparameter."""
    metrics = {column: m for column, m in summary.columns.items() if column.startswith(("metrics/", "val/"))}
    fixed = {name: value for name, value in hyp.to_dict().items() if isinstance(value, (int, float))}
    varying = [name for trial in summary.complete[:1] for name in trial.hyps if name not in fixed]
    names = [*fixed, *varying]
    lines = [",".join(f"{name:>20}" for name in [*metrics, *names])]
    for trial in sorted(summary.complete, key=lambda trial: trial.number):
        values = [trial.metrics.get(metric, float("nan")) for metric in metrics.values()]
        lines.append(",".join(_cell(value) for value in [*values, *({**fixed, **trial.hyps}[name] for name in names)]))
    write_text(path, "\n".join(lines) + "\n")


def _cell(value: Any) -> str:
    return f"{value:20.5g}" if isinstance(value, (int, float)) else f"{value!s:>20}"


def importances(study: optuna.Study, summary: StudySummary) -> dict[str, float]:
    """Compute the importance of each hyperparameter for the objective (PED-ANOVA, Watanabe et al. 2023).

    Returns:
        Fractions by name; empty with several objectives or too few complete trials.
    """
    values = {trial.values[0] for trial in summary.complete}
    names = {name for trial in summary.complete for name in trial.hyps}
    enough = len(summary.complete) >= MIN_TRIALS and len(values) >= MIN_TRIALS and len(names) >= 2
    if len(summary.objectives) > 1 or not enough:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the evaluator is experimental
        return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))
