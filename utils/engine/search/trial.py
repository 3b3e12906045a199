"""Trying proposals, one training each, until there are enough; whoever dies is continued by whoever comes next."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from utils.core.contracts import StopTraining, Task
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.lock import FileLock
from utils.core.log import LOGGER
from utils.core.yaml_file import write_yaml
from utils.engine.search.mutation import distribution
from utils.engine.search.space import Gene, with_values
from utils.engine.search.study import SearchSettings, require_optuna
from utils.metrics.average_precision import weighted_sum

FITNESS = "fitness"  # the task's own score, as a goal
MOST_FAILURES = 5  # in a row, before the search is given up
_FOLDER, _HOST, _NUMBERS = "folder", "host", "numbers"  # what a trial is marked with


class _SurplusError(Exception):
    """Others have begun the last trials in the meantime."""


@dataclass
class Outcome:
    """What a training found: every number by name, and the task that says which of them rank it."""

    numbers: Mapping[str, float]
    task: Task


Train = Callable[[Path, Path, bool, Any], Outcome]  # hyp file, folder, whether to go on in it, a logger


class Watcher:
    """A logger that tells the study how a trial goes, and ends one that is not worth its time."""

    direct = True

    def __init__(self, trial: Any, columns: Callable[[], Mapping[str, float]]) -> None:
        self.pruned = False
        self._trial, self._columns = trial, columns

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Nothing to open."""

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Report the epoch's fitness; ask whether to go on."""
        weights = self._columns()
        if any(numbers.get(name, float("nan")) != numbers.get(name, float("nan")) for name in weights):
            return  # an epoch that was not scored
        self._trial.report(weighted_sum(numbers, weights), epoch)
        if self._trial.should_prune():
            self.pruned = True
            raise StopTraining("others were better by now (pruned)")

    def picture(self, path: Path, epoch: int) -> None:
        """Pictures are for people."""

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Nothing is open."""


@dataclass
class Search:
    """Everything a search is made of."""

    study: Any
    settings: SearchSettings
    hyp: Hyp  # what does not vary
    genes: Sequence[Gene]
    folder: Path
    train: Train
    task: Task | None = None  # known after the first trial
    after: Callable[[Search], None] = lambda search: None  # called after every trial
    _failures: list[str] = field(default_factory=list)

    @property
    def done(self) -> list[Any]:
        """Return the complete trials, the best first."""
        states = require_optuna().trial.TrialState
        trials = self.study.get_trials(deepcopy=False, states=(states.COMPLETE,))
        return sorted(trials, key=lambda trial: -trial.values[0])

    def run(self) -> None:
        """Try proposals until the study has as many trials as wanted, by this process and others together."""
        while True:
            self._take_over_the_dead()
            if len(self._counted()) >= self.settings.trials:
                return
            self.study.optimize(self._objective, n_trials=1, catch=(UserError, RuntimeError, _SurplusError))
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.after(self)
            if self._failures and (len(self._failures) >= MOST_FAILURES or not self.done):
                raise UserError(f"{self.folder}: the search ends, its last training failed: {self._failures[-1]}")

    def _counted(self) -> list[Any]:
        """Return the trials that count for --trials: finished ones and those somebody is at."""
        states = require_optuna().trial.TrialState
        return self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED, states.RUNNING))

    def _folder_of(self, trial: Any) -> Path:
        return self.folder / "trials" / f"{trial.number:04d}"

    def _take_over_the_dead(self) -> None:
        """Propose again, in their old folders, what processes of this machine left unfinished."""
        states = require_optuna().trial.TrialState
        for trial in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if trial.user_attrs.get(_HOST, platform.node()) != platform.node():
                continue
            lock = FileLock(self._lock_path(trial.number))
            if not lock.take():
                continue
            still = self.study.get_trials(deepcopy=False)[trial.number]
            if still.state == states.RUNNING:
                self._propose_again(still)
                self.study.tell(trial.number, state=states.FAIL)
            lock.drop()

    def _propose_again(self, trial: Any) -> None:
        if not trial.params:
            return
        folder = trial.user_attrs.get(_FOLDER, str(self._folder_of(trial)))
        self.study.enqueue_trial(dict(trial.params), user_attrs={_FOLDER: folder})
        LOGGER.info(f"trial {trial.number} was left unfinished; it goes on in {folder}")

    def _lock_path(self, number: int) -> Path:
        return self.folder / "locks" / f"{number:04d}"

    def _objective(self, trial: Any) -> tuple[float, ...]:
        lock = FileLock(self._lock_path(trial.number))
        lock.take()
        try:
            return self._try(trial)
        except KeyboardInterrupt:
            self._propose_again(self.study.get_trials(deepcopy=False)[trial.number])
            raise
        except (UserError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self._failures.append(reason)
            LOGGER.warning(f"trial {trial.number} failed: {reason}")
            raise
        finally:
            lock.drop()

    def _try(self, trial: Any) -> tuple[float, ...]:
        optuna = require_optuna()
        trial.set_user_attr(_HOST, platform.node())
        if [one.number for one in self._counted()].index(trial.number) >= self.settings.trials:
            raise _SurplusError
        values = {gene.name: trial._suggest(gene.name, distribution(gene)) for gene in self.genes}
        folder = Path(trial.user_attrs.get(_FOLDER, self._folder_of(trial)))
        trial.set_user_attr(_FOLDER, str(folder))
        hyp_file = folder / "hyp.search.yaml"
        write_yaml(hyp_file, with_values(self.hyp, values).to_dict())
        LOGGER.info(f"trial {trial.number} of {self.settings.trials}: {folder}")
        watcher = Watcher(trial, self._weights)
        outcome = self.train(hyp_file, folder, (folder / "weights" / "last.pt").is_file(), watcher)
        self._failures.clear()
        self.task = outcome.task
        trial.set_user_attr(_NUMBERS, {name: float(value) for name, value in outcome.numbers.items()})
        if watcher.pruned:
            raise optuna.TrialPruned
        return tuple(self._goal(name, outcome) for name in self.settings.maximize)

    def _weights(self) -> dict[str, float]:
        """Return by which weights the columns of results.csv make the fitness; nothing where epochs do not count."""
        if self.task is None or len(self.settings.maximize) > 1:
            return {}
        columns = {number: column for column, number in self.task.columns.items()}
        goal = self.settings.maximize[0]
        wanted = self.task.headline if goal == FITNESS else {goal: 1.0}
        return {columns[name]: weight for name, weight in wanted.items() if name in columns}

    def _goal(self, name: str, outcome: Outcome) -> float:
        if name == FITNESS:
            return weighted_sum(outcome.numbers, outcome.task.headline)
        if name not in outcome.numbers:
            known = ", ".join([FITNESS, *(number for number in outcome.numbers if "/" in number)])
            raise UserError(f"--maximize {name}: no such number (known: {known})")
        return float(outcome.numbers[name])
