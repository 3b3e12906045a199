"""A hyperparameter search: its plan, the training runs of its trials, reports, plots and conclusion."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.core import distributed as dist
from utils.core.contracts import Logger, Task
from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.files import run_folder
from utils.core.log import LOGGER
from utils.core.train_options import format_origins
from utils.core.train_settings import TrainSettings
from utils.core.yaml_file import read_yaml, write_yaml
from utils.programs.train import TASKS, resolve_settings, task_parser

if TYPE_CHECKING:  # torch is loaded once the options are known
    from tools.search.report import StudySummary
    from tools.search.shared_study import SearchSettings
    from tools.search.trial import PruningLogger, Search

PLAN_FILE = "search.yaml"  # in the folder of the search


@dataclass(frozen=True)
class Plan:
    """Options of a search, stored in its folder for processes that resume or join it."""

    task: str
    training: Mapping[str, Any]  # options of the training runs by name
    search: Mapping[str, Any]  # options of the search by name
    evolves: bool = False  # started with --evolve: files have YOLOv5's names and layout

    @property
    def hyp_file(self) -> str:
        """Name of the file with the best hyperparameters."""
        return "hyp_evolve.yaml" if self.evolves else "best_hyp.yaml"

    @property
    def resume_command(self) -> str:
        """Start of the command that resumes the search."""
        return "train.py --resume_evolve" if self.evolves else "tune.py --resume"

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Read the plan of the search in `folder`.

        Raises:
            UserError: If there is no valid plan.
        """
        path = folder / PLAN_FILE
        values = read_yaml(path, "plan of a search")
        known = {field.name for field in fields(cls)}
        tables = all(isinstance(values.get(name), dict) for name in ("training", "search"))
        if values.keys() != known or not tables or values["task"] not in TASKS:
            raise UserError(f"{path}: damaged; start a new search")
        return cls(**values)


@dataclass(frozen=True)
class TrialTrainer:
    """Training function of a search, called with hyperparameter file, folder and logger of a trial."""

    task: str
    settings: TrainSettings
    loggers: Sequence[Logger] = ()

    def with_seed(self, seed: int) -> TrialTrainer:
        """Copy the trainer with another seed."""
        return replace(self, settings=replace(self.settings, seed=seed))

    def __call__(self, hyp_file: Path, folder: Path, logger: PruningLogger) -> Mapping[str, float]:
        """Train in `folder`, or resume an interrupted run there; return the final metrics."""
        from utils.engine.fit import fit
        from utils.engine.run_state import load_resumable
        from utils.tasks.task_selection import select_training_task

        last = folder / "weights" / "last.pt"
        try:
            resume = str(last) if last.is_file() and load_resumable(last) else ""
        except UserError:  # interrupted while the results were written
            resume = ""
        settings = replace(
            self.settings, hyp=str(hyp_file), resume=resume, project=str(folder.parent), name=folder.name, exist_ok=True
        )

        def select_task(heads: Collection[str]) -> Task:
            task = select_training_task(self.task, settings.fitness, heads)

            def for_data(_: Task, data: DataConfig) -> Task:
                logger.task = task.for_data(task, data)  # trials are ranked as epochs are, on panoptic data by PQ
                return logger.task

            return replace(task, for_data=for_data)

        return fit(select_task, settings, [*self.loggers, logger])


def search(
    plan: Plan, folder: Path | None = None, loggers: Sequence[Logger] = (), confirm: int = 0
) -> dict[str, float]:
    """Run a search, alone or together with other processes.

    Args:
        plan: Options of the search.
        folder: Folder of a search to resume or join; None creates a new one.
        loggers: Loggers of the training runs, beside those of `--log`.
        confirm: Number of other seeds for a final comparison of the best trial with the defaults.

    Returns:
        Metrics of the best trial, empty if no trial is complete.
    """
    if dist.is_launched():
        raise UserError(
            "a search runs in one process, without torchrun; to use several GPUs start one process for each, the later "
            f"ones with {plan.resume_command} FOLDER --device 1"
        )
    from tools.search.shared_study import SearchSettings

    search_settings = SearchSettings.from_dict(plan.search)
    settings, origin = _training_settings(plan)
    if settings.noval and search_settings.pruner != "none":
        raise UserError(f"--noval: --pruner {search_settings.pruner} needs validation; give --pruner none")
    # options that override hyperparameters are part of the suggested values already
    bare = replace(settings, lr0=None, decay=None, label_smoothing=None, autobalance=False, noplots=True)
    trainer = TrialTrainer(plan.task, bare, loggers)
    run = _open(plan, folder, search_settings, settings, trainer)
    LOGGER.info(format_origins(settings, origin))
    LOGGER.info(f"searching {', '.join(one.name for one in run.space)}; results go to {run.folder}")
    try:
        run.run()
        summary = _write_report(run, plan, plots=not settings.noplots)
        return _conclude(run, summary, plan, trainer, confirm)
    except KeyboardInterrupt:
        _write_report(run, plan)
        LOGGER.info(f"interrupted; resume with {plan.resume_command} {run.folder}")
        raise


def _training_settings(plan: Plan) -> tuple[TrainSettings, dict[str, str]]:
    """Resolve the settings of the training runs and where each value comes from."""
    parser = task_parser(plan.task, None)
    parser.set_defaults(project="runs/evolve" if plan.evolves else "runs/tune", noval=plan.evolves)
    return resolve_settings(plan.task, parser, plan.training)


def _open(
    plan: Plan, folder: Path | None, search_settings: SearchSettings, settings: TrainSettings, trainer: TrialTrainer
) -> Search:
    """Open the study in `folder`, or create both; invalid options leave no folder behind."""
    from tools.search.shared_study import open_study, require_optuna
    from tools.search.space import build_space, start_value
    from tools.search.trial import Search
    from utils.core.hyp import Hyp, find_hyp
    from utils.engine.run_setup import read_hyp

    require_optuna(search_settings.sampler)
    hyp = read_hyp(settings)
    space = build_space(plan.task, hyp, find_hyp(settings.hyp), search_settings.space, search_settings.keys)
    starts = [hyp, *(Hyp.from_file(Path(path)) for path in search_settings.first)]
    for other in starts[1:]:
        space = [one.including(start_value(other, one)) for one in space]
    first = [{one.name: start_value(start, one) for one in space} for start in starts]
    if folder is None:
        folder = run_folder(Path(settings.project), settings.name, settings.exist_ok)
        write_yaml(folder / PLAN_FILE, asdict(plan))
    study = open_study(search_settings, folder, space, first, settings.epochs, settings.seed)
    return Search(study, search_settings, hyp, space, folder, trainer, after_trial=partial(_write_report, plan=plan))


def _write_report(run: Search, plan: Plan, plots: bool = False) -> StudySummary:
    """Write the results so far and return them."""
    from tools.search.report import summarize_study, write_best, write_evolution, write_trials

    summary = summarize_study(run.study)
    if summary.trials:
        write_best(summary, run.hyp, run.folder / plan.hyp_file)
        if plan.evolves:
            write_evolution(summary, run.hyp, run.folder / "evolve.csv")
        else:
            write_trials(summary, run.folder / "trials.csv")
    if plots and summary.complete:
        _draw(run, summary, plan)
    return summary


def _draw(run: Search, summary: StudySummary, plan: Plan) -> None:
    from tools.search.plots import draw_front, draw_history, draw_importances, draw_slices
    from tools.search.report import importances

    folder, objective = run.folder, summary.objectives[0]
    complete = sorted(summary.complete, key=lambda trial: trial.number)
    points = [(trial.values[0], trial.hyps, trial.defaults) for trial in complete]
    logarithmic = [one.name for one in run.space if one.log]
    draw_slices(points, objective, folder / ("evolve.png" if plan.evolves else "slices.png"), logarithmic)
    if plan.evolves:
        return
    rows = [
        {"number": t.number, "value": t.values[0], "complete": t.state == "complete", "defaults": t.defaults}
        for t in summary.trials
        if t.values and t.state != "failed"
    ]
    draw_history(rows, objective, folder / "history.png")
    if fractions := importances(run.study, summary):
        draw_importances(fractions, folder / "importance.png")
    if len(summary.objectives) == 2:
        best = [index for index, trial in enumerate(complete) if trial.number in summary.front]
        draw_front([(t.values[0], t.values[1]) for t in complete], best, summary.objectives, folder / "front.png")


def _conclude(run: Search, summary: StudySummary, plan: Plan, trainer: TrialTrainer, confirm: int) -> dict[str, float]:
    """Log the results, optionally confirm them with other seeds; return the metrics of the best trial."""
    from tools.search.confirm import confirm_best
    from tools.search.report import compare_with_defaults, format_trials

    LOGGER.info(format_trials(summary))
    if others := run.running:
        LOGGER.info(f"still running in other processes: trial {', '.join(map(str, others))}")
    LOGGER.info(compare_with_defaults(summary))
    best, defaults = summary.best, summary.defaults
    if best is None:
        return {}
    if confirm and defaults is not None and best is not defaults:
        seeds = range(trainer.settings.seed + 1, trainer.settings.seed + 1 + confirm)
        LOGGER.info(confirm_best(run, trainer.with_seed, defaults, best, seeds))
    LOGGER.info(f"done; results are in {run.folder}; train with --hyp {run.folder / plan.hyp_file}")
    return dict(best.metrics)
