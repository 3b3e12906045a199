"""Trying proposals, one training each, until there are enough; whoever dies is continued by whoever comes next."""

from __future__ import annotations

import gc
import math
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from tools.search.mutation import suggested
from tools.search.shared_study import DEFAULTS, FITNESS, SearchSettings, require_optuna, retry
from tools.search.space import Gene, with_values
from utils.core.contracts import StopTraining, Task
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.log import LOGGER
from utils.core.yaml_file import write_yaml
from utils.metrics.average_precision import weighted_sum

MOST_FAILURES = 5  # in a row, before the search is given up
FOLDER, NUMBERS = "folder", "numbers"  # what a trial is marked with: where it trains, what it found
COLUMNS = "columns"  # attribute of a study: numbers by their columns in results.csv
_HOST = "host"


class _SurplusError(Exception):
    """Others have begun the last trials in the meantime."""


class Watcher:
    """A logger that tells the study how a trial goes, and ends one that is not worth its time.

    Whoever trains sets `task` before the first epoch: it says what ranks a training.
    """

    direct = True

    def __init__(
        self, trial: Any, goal: str, known: Sequence[int] = ()
    ) -> None:  # no goal: several, nothing to rank by
        self.task: Task | None = None
        self.pruned = False
        self._trial, self._goal, self._known = trial, goal, set(known)

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Nothing to open."""

    def _weights(self) -> dict[str, float]:
        """Return by which weights the columns of results.csv make the goal."""
        if self.task is None:
            return {}
        wanted = self.task.fitness if self._goal == FITNESS else {self._goal: 1.0}
        columns = {number: column for column, number in self.task.columns.items()}
        return {columns[name]: weight for name, weight in wanted.items() if name in columns}

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Report the epoch's score; ask whether to go on. The defaults always do: others are measured by them."""
        weights = self._weights()
        if not weights or any(math.isnan(numbers.get(name, math.nan)) for name in weights) or epoch in self._known:
            return  # an epoch that was not scored, or that was trained before
        self._trial.report(weighted_sum(numbers, weights), epoch)
        if not self._trial.user_attrs.get(DEFAULTS) and self._trial.should_prune():
            self.pruned = True
            raise StopTraining("others were better by now (pruned)")

    def image(self, path: Path, epoch: int) -> None:
        """Pictures are for people."""

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Nothing is open."""


Train = Callable[[Path, Path, Watcher], Mapping[str, float]]  # hyp file, folder, logger: the numbers at the end


@dataclass
class Search:
    """Everything a search is made of."""

    study: Any
    settings: SearchSettings
    hyp: Hyp  # what does not vary
    genes: Sequence[Gene]
    folder: Path
    train: Train
    after: Callable[[Search], object] = lambda search: None  # called after every trial
    _failures: list[str] = field(default_factory=list)

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
            if self._failures and (len(self._failures) >= MOST_FAILURES or not self._finished()):
                raise UserError(f"{self.folder}: the search ends, its last training failed: {self._failures[-1]}")
            self._drop_weights()
            self.after(self)

    def _in_states(self, *names: str) -> list[Any]:
        states = require_optuna().trial.TrialState
        return list(self.study.get_trials(deepcopy=False, states=[states[name] for name in names]))

    @property
    def running(self) -> list[int]:
        """Return the numbers of the trials that somebody is at."""
        return [trial.number for trial in self._in_states("RUNNING")]

    def _finished(self) -> list[Any]:
        return self._in_states("COMPLETE", "PRUNED")

    def _counted(self) -> list[Any]:
        """Return the trials that count for --trials: finished ones and those somebody is at."""
        return self._in_states("COMPLETE", "PRUNED", "RUNNING")

    def _folder_of(self, trial: Any) -> Path:
        """Return where a trial trains: where it was begun, if that was on this machine."""
        begun = trial.user_attrs.get(FOLDER)
        if begun and trial.user_attrs.get(_HOST) == platform.node():
            return Path(begun)
        return self.folder / "trials" / f"{trial.number:04d}"

    def _take_over_the_dead(self) -> None:
        """Propose again, in their old folders, what processes of this machine left unfinished.

        What died on other machines Optuna notices by the missing signs of life, and proposes it again likewise.
        """
        for trial in self._in_states("RUNNING"):
            if trial.user_attrs.get(_HOST) != platform.node():
                continue
            lock = _lock_of(self._folder_of(trial))
            try:
                lock.acquire(blocking=False)
            except Timeout:  # its process still runs
                continue
            with suppress(ValueError):  # finished in the meantime
                self.study.tell(trial.number, state=require_optuna().trial.TrialState.FAIL)
                LOGGER.info(f"trial {trial.number} was left unfinished; it goes on in {self._folder_of(trial)}")
                retry()(self.study, trial)
            lock.release()

    def _objective(self, trial: Any) -> tuple[float, ...]:
        folder = self._folder_of(trial)
        lock = _lock_of(folder)
        with suppress(Timeout):  # a process that is about to end an earlier attempt at this trial
            lock.acquire(blocking=False)
        try:
            found = self._try(trial, folder)
            self._failures.clear()
            return found
        except KeyboardInterrupt:
            self._propose_again(trial.number)
            raise
        except (UserError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self._failures.append(reason)
            LOGGER.warning(f"trial {trial.number} failed: {reason}")
            raise
        finally:
            lock.release()

    def _propose_again(self, number: int) -> None:
        """Put a trial that was interrupted on purpose back into the queue."""
        optuna = require_optuna()
        old = self.study.get_trials(deepcopy=False)[number]
        again = optuna.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params=old.params,
            distributions=old.distributions,
            user_attrs=old.user_attrs,
            system_attrs=old.system_attrs,
            intermediate_values=old.intermediate_values,
        )
        self.study.add_trial(again)

    def _try(self, trial: Any, folder: Path) -> tuple[float, ...]:
        optuna = require_optuna()
        trial.set_user_attr(FOLDER, str(folder.resolve()))
        trial.set_user_attr(_HOST, platform.node())
        if [one.number for one in self._counted()].index(trial.number) >= self.settings.trials:
            raise _SurplusError
        values = {gene.name: suggested(trial, gene) for gene in self.genes}
        LOGGER.info(f"trial {trial.number} ({len(self._finished())} of {self.settings.trials} are done): {folder}")
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        goals = self.settings.maximize
        watcher = Watcher(trial, goals[0] if len(goals) == 1 else "", tuple(known))
        numbers = trained(self.train, with_values(self.hyp, values), folder, watcher)
        if watcher.task is not None:
            self.study.set_user_attr(COLUMNS, dict(watcher.task.columns))
        found = tuple(_goal(name, numbers) for name in goals)
        trial.set_user_attr(NUMBERS, {name: float(value) for name, value in numbers.items()})
        scores = ", ".join(f"{name} {value:.5g}" for name, value in zip(goals, found, strict=True))
        LOGGER.info(f"trial {trial.number}: {scores}")
        if watcher.pruned:
            raise optuna.TrialPruned
        return found

    def _drop_weights(self) -> None:
        """Remove the checkpoints of finished trials that are not the best: a search makes many."""
        kept = best_numbers(self.study)
        for trial in self._finished():
            if trial.number not in kept:
                shutil.rmtree(self._folder_of(trial) / "weights", ignore_errors=True)


def trained(train: Train, hyp: Hyp, folder: Path, watcher: Watcher) -> dict[str, float]:
    """Train with `hyp` in `folder`; return the numbers, what ranks the training among them."""
    hyp_file = folder / "hyp.search.yaml"
    write_yaml(hyp_file, hyp.to_dict())
    numbers = dict(train(hyp_file, folder, watcher))
    if watcher.task is not None:
        numbers[FITNESS] = weighted_sum(numbers, watcher.task.fitness)
    return numbers


def best_numbers(study: Any) -> tuple[int, ...]:
    """Return the numbers of the best trials: one, or with several goals those that no other beats."""
    if not study.get_trials(deepcopy=False, states=(require_optuna().trial.TrialState.COMPLETE,)):
        return ()
    if len(study.directions) == 1:
        return (study.best_trial.number,)
    return tuple(trial.number for trial in study.best_trials)


def _lock_of(folder: Path) -> FileLock:
    """Create the lock of a trial's folder; once acquired, it ends with this process."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock")


def _goal(name: str, numbers: Mapping[str, float]) -> float:
    if name not in numbers:
        known = ", ".join([FITNESS, *(number for number in numbers if "/" in number)])
        raise UserError(f"--maximize {name}: no such number (known: {known})")
    if math.isnan(numbers[name]):
        raise UserError(f"{name} is not a number")
    return float(numbers[name])
