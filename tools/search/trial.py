"""Trials of a search: one training run each, with pruning, retries after crashes and removal of old checkpoints."""

from __future__ import annotations

import gc
import math
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from tools.search.mutation import suggest
from tools.search.shared_study import DEFAULTS, FITNESS, SearchSettings, require_optuna, retry_callback
from tools.search.space import SearchRange, with_values
from utils.core.contracts import StopTraining, Task
from utils.core.errors import UserError, did_you_mean
from utils.core.hyp import Hyp
from utils.core.log import LOGGER
from utils.core.yaml_file import write_yaml
from utils.metrics.average_precision import weighted_sum

if TYPE_CHECKING:
    import optuna

MAX_FAILURES = 5  # failed trials in a row that end the search
FOLDER, METRICS = "folder", "numbers"  # attributes of a trial: folder of its training run, its metrics
COLUMNS = "columns"  # attribute of a study: column of results.csv -> metric
_HOST = "host"  # attribute of a trial: machine that it runs on


class _TrialLimitError(Exception):
    """Other processes have started the last trials in the meantime."""


class PruningLogger:
    """Logger that reports the objective of each epoch to the study and stops a trial that is to be pruned.

    Args:
        trial: Optuna trial; None disables reports.
        objective: Metric to report; empty with several objectives, which cannot be pruned.
        reported: Epochs that were reported before the trial was resumed.

    Attributes:
        task: Task of the training run, set by the trainer before the first epoch.
        pruned: Whether the trial was stopped.
    """

    direct = True

    def __init__(self, trial: optuna.Trial | None, objective: str, reported: Sequence[int] = ()) -> None:
        self.task: Task | None = None
        self.pruned = False
        self._trial, self._objective, self._reported = trial, objective, set(reported)

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Do nothing."""

    def _weights(self) -> dict[str, float]:
        """Express the objective as weights of columns of results.csv."""
        if self.task is None:
            return {}
        weights = self.task.fitness if self._objective == FITNESS else {self._objective: 1.0}
        columns = {metric: column for column, metric in self.task.columns.items()}
        return {columns[name]: weight for name, weight in weights.items() if name in columns}

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Report the objective of an epoch, and stop the training if the pruner says so.

        The trial of the defaults is never pruned, because the others are compared with it.

        Raises:
            StopTraining: If the trial is pruned.
        """
        weights = self._weights()
        if not weights or any(math.isnan(numbers.get(name, math.nan)) for name in weights) or epoch in self._reported:
            return  # not validated, or reported before
        assert self._trial is not None
        self._trial.report(weighted_sum(numbers, weights), epoch)
        if not self._trial.user_attrs.get(DEFAULTS) and self._trial.should_prune():
            self.pruned = True
            raise StopTraining("pruned, because other trials were better at this epoch")

    def image(self, path: Path, epoch: int) -> None:
        """Do nothing."""

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Do nothing."""


# trains with a hyperparameter file in a folder, calling the logger; returns the final metrics
Train = Callable[[Path, Path, PruningLogger], Mapping[str, float]]


@dataclass
class Search:
    """A search: runs trials until the study has enough of them."""

    study: optuna.Study
    settings: SearchSettings
    hyp: Hyp  # values of the hyperparameters that do not vary
    space: Sequence[SearchRange]
    folder: Path
    train: Train
    after_trial: Callable[[Search], object] = lambda search: None
    _failures: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Run trials, together with other processes, until the study has `settings.trials` of them.

        Raises:
            UserError: If the first trial, or `MAX_FAILURES` trials in a row, fail.
        """
        while True:
            self._retry_abandoned()
            if len(self._counted()) >= self.settings.trials:
                return
            self.study.optimize(self._objective, n_trials=1, catch=(UserError, RuntimeError, _TrialLimitError))
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self._failures and (len(self._failures) >= MAX_FAILURES or not self._finished()):
                raise UserError(f"{self.folder}: the search stops, its last trial failed: {self._failures[-1]}")
            self._remove_checkpoints()
            self.after_trial(self)

    def _in_states(self, *names: str) -> list[optuna.trial.FrozenTrial]:
        states = require_optuna().trial.TrialState
        return list(self.study.get_trials(deepcopy=False, states=[states[name] for name in names]))

    @property
    def running(self) -> list[int]:
        """Numbers of the trials that are running in any process."""
        return [trial.number for trial in self._in_states("RUNNING")]

    def _finished(self) -> list[optuna.trial.FrozenTrial]:
        return self._in_states("COMPLETE", "PRUNED")

    def _counted(self) -> list[optuna.trial.FrozenTrial]:
        """List the trials that count for `--trials`: finished and running ones."""
        return self._in_states("COMPLETE", "PRUNED", "RUNNING")

    def _folder_of(self, trial: optuna.Trial | optuna.trial.FrozenTrial) -> Path:
        """Return the folder of a trial; a retried one continues in its old folder if that is on this machine."""
        started = trial.user_attrs.get(FOLDER)
        if started and trial.user_attrs.get(_HOST) == platform.node():
            return Path(started)
        return self.folder / "trials" / f"{trial.number:04d}"

    def _retry_abandoned(self) -> None:
        """Enqueue running trials of this machine whose process has died, to be resumed in their folders.

        Trials of other machines are retried by Optuna when their heartbeat stops.
        """
        for trial in self._in_states("RUNNING"):
            if trial.user_attrs.get(_HOST) != platform.node():
                continue
            lock = _lock_of(self._folder_of(trial))
            try:
                lock.acquire(blocking=False)
            except Timeout:  # its process is alive
                continue
            with suppress(ValueError):  # finished in the meantime
                self.study.tell(trial.number, state=require_optuna().trial.TrialState.FAIL)
                LOGGER.info(f"trial {trial.number} was interrupted; resuming it in {self._folder_of(trial)}")
                retry_callback()(self.study, trial)
            lock.release()

    def _objective(self, trial: optuna.Trial) -> tuple[float, ...]:
        folder = self._folder_of(trial)
        lock = _lock_of(folder)
        with suppress(Timeout):  # held by a process that is about to end an earlier attempt at this trial
            lock.acquire(blocking=False)
        try:
            values = self._run_trial(trial, folder)
            self._failures.clear()
            return values
        except KeyboardInterrupt:
            self._requeue(trial.number)
            raise
        except (UserError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self._failures.append(reason)
            LOGGER.warning(f"trial {trial.number} failed: {reason}")
            raise
        finally:
            lock.release()

    def _requeue(self, number: int) -> None:
        """Enqueue a copy of a trial that the user interrupted."""
        optuna = require_optuna()
        old = self.study.get_trials(deepcopy=False)[number]
        copy = optuna.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params=old.params,
            distributions=old.distributions,
            user_attrs=old.user_attrs,
            system_attrs=old.system_attrs,
            intermediate_values=old.intermediate_values,
        )
        self.study.add_trial(copy)

    def _run_trial(self, trial: optuna.Trial, folder: Path) -> tuple[float, ...]:
        trial.set_user_attr(FOLDER, str(folder.resolve()))
        trial.set_user_attr(_HOST, platform.node())
        if [other.number for other in self._counted()].index(trial.number) >= self.settings.trials:
            raise _TrialLimitError
        values = {one.name: suggest(trial, one) for one in self.space}
        LOGGER.info(f"trial {trial.number} ({len(self._finished())} of {self.settings.trials} finished): {folder}")
        reported = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        objectives = self.settings.maximize
        logger = PruningLogger(trial, objectives[0] if len(objectives) == 1 else "", tuple(reported))
        metrics = train_trial(self.train, with_values(self.hyp, values), folder, logger)
        if logger.task is not None:
            self.study.set_user_attr(COLUMNS, dict(logger.task.columns))
        results = tuple(_objective_value(name, metrics) for name in objectives)
        trial.set_user_attr(METRICS, {name: float(value) for name, value in metrics.items()})
        scores = ", ".join(f"{name} {value:.5g}" for name, value in zip(objectives, results, strict=True))
        LOGGER.info(f"trial {trial.number}: {scores}")
        if logger.pruned:
            raise require_optuna().TrialPruned
        return results

    def _remove_checkpoints(self) -> None:
        """Remove the checkpoints of finished trials other than the best."""
        best = best_trials(self.study)
        for trial in self._finished():
            if trial.number not in best:
                shutil.rmtree(self._folder_of(trial) / "weights", ignore_errors=True)


def train_trial(train: Train, hyp: Hyp, folder: Path, logger: PruningLogger) -> dict[str, float]:
    """Train with `hyp` in `folder`; return the metrics, including the fitness."""
    hyp_file = folder / "hyp.search.yaml"
    write_yaml(hyp_file, hyp.to_dict())
    metrics = dict(train(hyp_file, folder, logger))
    if logger.task is not None:
        metrics[FITNESS] = weighted_sum(metrics, logger.task.fitness)
    return metrics


def best_trials(study: optuna.Study) -> tuple[int, ...]:
    """Return the number of the best trial; with several objectives those of the Pareto front."""
    if not study.get_trials(deepcopy=False, states=(require_optuna().trial.TrialState.COMPLETE,)):
        return ()
    if len(study.directions) == 1:
        return (study.best_trial.number,)
    return tuple(trial.number for trial in study.best_trials)


def _lock_of(folder: Path) -> FileLock:
    """Create the lock of a trial's folder; the system releases it when the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".trial.lock")  # not that of the run that trains in this folder


def _objective_value(name: str, metrics: Mapping[str, float]) -> float:
    if name not in metrics:
        names = [FITNESS, *(metric for metric in metrics if "/" in metric)]
        raise UserError(f"--maximize {name}: no such metric in results.json{did_you_mean(name, names)}")
    if math.isnan(metrics[name]):
        raise UserError(f"{name}: is not a number")
    return float(metrics[name])
