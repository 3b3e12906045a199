"""A search for hyper-parameters from its plan to its files: a training per trial, reports, pictures, the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.core import distributed as dist
from utils.core.contracts import Logger
from utils.core.errors import UserError
from utils.core.files import run_folder
from utils.core.log import LOGGER
from utils.core.train_options import format_origins, resolve_training
from utils.core.train_settings import TrainSettings
from utils.core.yaml_file import read_yaml, write_yaml
from utils.datasets.fetch.dataset_download import resolve_dataset
from utils.programs.classification_options import class_training_options
from utils.programs.train import TASKS, recommended_for, task_parser

if TYPE_CHECKING:  # torch is not loaded before options are known
    from tools.search.report import Story
    from tools.search.shared_study import SearchSettings
    from tools.search.trial import Search, Watcher

PLAN = "search.yaml"  # in the run's folder: what is searched, for those who join and go on


@dataclass(frozen=True)
class Plan:
    """What is searched: options of the trainings by name, those of the search, and the files it writes."""

    task: str
    training: Mapping[str, Any]
    search: Mapping[str, Any]
    evolves: bool = False  # YOLOv5's files instead of ours

    @property
    def hyp_file(self) -> str:
        """Return what the file with the best hyper-parameters is called."""
        return "hyp_evolve.yaml" if self.evolves else "best_hyp.yaml"

    @property
    def way_on(self) -> str:
        """Return the beginning of the command that continues it."""
        return "train.py --resume_evolve" if self.evolves else "tune.py --resume"

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Return the plan of a search that was begun in `folder`."""
        path = folder / PLAN
        values = read_yaml(path, "description of a search")
        known = {field.name for field in fields(cls)}
        tables = all(isinstance(values.get(name), dict) for name in ("training", "search"))
        if values.keys() != known or not tables or values["task"] not in TASKS:
            raise UserError(f"{path}: damaged; start a new search")
        return cls(**values)


@dataclass(frozen=True)
class Trainings:
    """How one training of a search is done; called with hyp file, folder and the logger that watches it."""

    task: str
    settings: TrainSettings
    loggers: Sequence[Logger] = ()

    def with_seed(self, seed: int) -> Trainings:
        """Return the same trainings from another seed."""
        return replace(self, settings=replace(self.settings, seed=seed))

    def __call__(self, hyp_file: Path, folder: Path, watcher: Watcher) -> Mapping[str, float]:
        """Train from where it was left in the folder; return the numbers at the end."""
        from utils.engine.fit import fit
        from utils.engine.run_state import load_resumable
        from utils.tasks.task_selection import task_for

        last = folder / "weights" / "last.pt"
        try:
            resume = str(last) if last.is_file() and load_resumable(last) else ""
        except UserError:  # it was killed while it wrote its results
            resume = ""
        settings = replace(
            self.settings, hyp=str(hyp_file), resume=resume, project=str(folder.parent), name=folder.name, exist_ok=True
        )

        def choose(heads: Any) -> Any:
            watcher.task = task_for(self.task, settings, heads)
            return watcher.task

        return fit(choose, settings, [*self.loggers, watcher])


def search(
    plan: Plan, folder: Path | None = None, loggers: Sequence[Logger] = (), confirm: int = 0
) -> dict[str, float]:
    """Search in `folder`, or in a new one; return the numbers of the best trial.

    `confirm` is with how many other seeds the defaults and the best are trained again.
    """
    if dist.is_launched():
        raise UserError(
            "a search runs in one process, without torchrun; to use several GPUs start one for each, the later ones "
            f"with {plan.way_on} FOLDER --device 1"
        )
    from tools.search.shared_study import SearchSettings

    goals = SearchSettings.from_dict(plan.search)
    settings, origin = _settings(plan)
    if settings.noval and goals.pruner != "none":
        raise UserError(f"--noval: without scores --pruner {goals.pruner} has nothing to go by; give --pruner none")
    # options that replace hyper-parameters are in the proposals already
    bare = replace(settings, lr0=None, decay=None, label_smoothing=None, autobalance=False, noplots=True)
    trainings = Trainings(plan.task, bare, loggers)
    run = _open(plan, folder, goals, settings, trainings)
    LOGGER.info(format_origins(settings, origin))
    LOGGER.info(f"{', '.join(gene.name for gene in run.genes)} vary; the search is in {run.folder}")
    try:
        run.run()
        story = _report(run, plan, pictures=not settings.noplots)
        return _conclude(run, story, plan, trainings, confirm)
    except KeyboardInterrupt:
        _report(run, plan)
        LOGGER.info(f"stopped; go on with {plan.way_on} {run.folder}")
        raise


def _settings(plan: Plan) -> tuple[TrainSettings, dict[str, str]]:
    """Return the settings of the trainings, and where they come from."""
    parser, chosen = task_parser(plan.task, None), dict(plan.training)
    parser.set_defaults(project="runs/evolve" if plan.evolves else "runs/tune", noval=plan.evolves)
    if plan.task == "classify":
        chosen = class_training_options(chosen)
    data = resolve_dataset(str(chosen.get("data", parser.get_default("data"))), bool(chosen.get("download")))
    return resolve_training(parser, chosen, recommended_for(plan.task, data), data.source)


def _open(
    plan: Plan, folder: Path | None, goals: SearchSettings, settings: TrainSettings, trainings: Trainings
) -> Search:
    """Return the search, ready to run. What is wrong with the options leaves no folder behind."""
    from tools.search.shared_study import open_study, require_optuna
    from tools.search.space import choose_genes, start_value
    from tools.search.trial import Search
    from utils.core.hyp import Hyp, find_hyp
    from utils.engine.build_run import read_hyp

    require_optuna(goals.sampler)
    hyp = read_hyp(settings)
    genes = choose_genes(plan.task, hyp, find_hyp(settings.hyp), goals.space, goals.keys)
    starts = [hyp, *(Hyp.from_file(Path(path)) for path in goals.first)]
    for other in starts[1:]:
        genes = [gene.including(start_value(other, gene)) for gene in genes]
    first = [{gene.name: start_value(start, gene) for gene in genes} for start in starts]
    if folder is None:
        folder = run_folder(Path(settings.project), settings.name, settings.exist_ok)
        write_yaml(folder / PLAN, asdict(plan))
    study = open_study(goals, folder, genes, first, settings.epochs, settings.seed)
    return Search(study, goals, hyp, genes, folder, trainings, after=partial(_report, plan=plan))


def _report(run: Search, plan: Plan, pictures: bool = False) -> Story:
    """Write what is known so far, and return it."""
    from tools.search.report import story_of, write_best, write_evolution, write_trials

    story = story_of(run.study)
    if story.trials:
        write_best(story, run.hyp, run.folder / plan.hyp_file)
        if plan.evolves:
            write_evolution(story, run.hyp, run.folder / "evolve.csv")
        else:
            write_trials(story, run.folder / "trials.csv")
    if pictures and story.complete:
        _draw(run, story, plan)
    return story


def _draw(run: Search, story: Story, plan: Plan) -> None:
    from tools.search.plots import draw_front, draw_history, draw_importance, draw_slices
    from tools.search.report import importance

    folder, goal = run.folder, story.goals[0]
    tried = sorted(story.complete, key=lambda trial: trial.number)
    points = [(trial.values[0], trial.hyps, trial.defaults) for trial in tried]
    logarithmic = [gene.name for gene in run.genes if gene.log]
    draw_slices(points, goal, folder / ("evolve.png" if plan.evolves else "slices.png"), logarithmic)
    if plan.evolves:
        return
    rows = [
        {"number": t.number, "value": t.values[0], "complete": t.state == "complete", "defaults": t.defaults}
        for t in story.trials
        if t.values and t.state != "failed"
    ]
    draw_history(rows, goal, folder / "history.png")
    if shares := importance(run.study, story):
        draw_importance(shares, folder / "importance.png")
    if len(story.goals) == 2:
        best = [index for index, trial in enumerate(tried) if trial.number in story.front]
        draw_front([(t.values[0], t.values[1]) for t in tried], best, story.goals, folder / "front.png")


def _conclude(run: Search, story: Story, plan: Plan, trainings: Trainings, confirm: int) -> dict[str, float]:
    """Say what came of it; return the numbers of the best trial."""
    from tools.search.confirm import confirmed
    from tools.search.report import table, verdict

    LOGGER.info(table(story))
    if others := run.running:
        LOGGER.info(f"others are still at trial {', '.join(map(str, others))}")
    LOGGER.info(verdict(story))
    best, defaults = story.best, story.defaults
    if best is None:
        return {}
    if confirm and defaults is not None and best is not defaults:
        seeds = range(trainings.settings.seed + 1, trainings.settings.seed + 1 + confirm)
        LOGGER.info(confirmed(run, trainings.with_seed, defaults, best, seeds))
    file = run.folder / plan.hyp_file
    LOGGER.info(f"done; everything is in {run.folder}; to train with the best: --hyp {file}")
    return dict(best.numbers)
