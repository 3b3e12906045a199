"""The study that one or many processes share: its storage, who proposes, and who stops bad trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.engine.search.mutation import distribution, mutation_sampler
from utils.engine.search.space import Gene

SAMPLERS = ("tpe", "cmaes", "nsga2", "mutation", "random")
PRUNERS = ("median", "hyperband", "none")
_FINGERPRINT = "genes"  # attribute of a study: who joins must vary the same


@dataclass(frozen=True)
class SearchSettings:
    """What the options of a search say, besides those of its trainings."""

    trials: int = 300
    sampler: str = "tpe"
    pruner: str = "median"
    maximize: tuple[str, ...] = ("fitness",)
    keys: tuple[str, ...] = ()
    space: str = ""
    storage: str = ""
    study: str = "polyolo"
    seed: int = 0
    epochs: int = field(default=100)  # of a trial: pruning begins after a tenth of them

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UserError(f"--trials {self.trials}: must be at least 1")
        for name, allowed in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} {getattr(self, name)}: one of {', '.join(allowed)}")
        if len(self.maximize) > 1 and self.sampler in ("cmaes", "mutation"):
            raise UserError(f"--sampler {self.sampler} knows one goal; with several take nsga2 or tpe")
        if len(self.maximize) > 1 and self.pruner != "none":
            raise UserError(f"--pruner {self.pruner} knows one goal; with several take none")
        if self.keys and self.space:
            raise UserError("--keys and --space: give one of them")


def require_optuna(sampler: str = "") -> Any:
    """Return the package; what is missing is a UserError."""
    try:
        import optuna

        if sampler == "cmaes":
            import cmaes  # noqa: F401
    except ImportError as error:
        raise UserError(f"the search needs packages: pip install -r requirements-tune.txt ({error.name})") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _sampler(settings: SearchSettings, genes: Sequence[Gene], seed: int | None) -> Any:
    """Return who proposes. Without a seed, one that proposes other things than its siblings."""
    optuna = require_optuna(settings.sampler)
    samplers = optuna.samplers
    few = max(min(settings.trials // 4, 10), 1)  # at random before the others' proposals count
    if settings.sampler == "cmaes":
        return samplers.CmaEsSampler(seed=seed, n_startup_trials=few, warn_independent_sampling=False)
    if settings.sampler == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=max(min(settings.trials // 5, 50), 2))
    if settings.sampler == "mutation":
        return mutation_sampler(genes, settings.seed)
    if settings.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    return samplers.TPESampler(seed=seed, n_startup_trials=few)


def _pruner(settings: SearchSettings) -> Any:
    pruners = require_optuna().pruners
    if settings.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max(settings.epochs // 10, 1))
    if settings.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=max(settings.epochs // 10, 1), max_resource=settings.epochs)
    return pruners.NopPruner()


def open_study(settings: SearchSettings, folder: Path, genes: Sequence[Gene], first: dict[str, Any]) -> Any:
    """Return the study, made if it is not there; `first` are the values its first trial gets.

    The storage is SQLite in `folder` unless the settings name another. One that cannot be reached, and a study that
    varies something else, are UserErrors.
    """
    optuna = require_optuna(settings.sampler)
    address = settings.storage or f"sqlite:///{(folder / 'study.db').resolve().as_posix()}"
    patient = {"connect_args": {"timeout": 120}} if address.startswith("sqlite") else {}
    try:
        storage = optuna.storages.RDBStorage(address, engine_kwargs=patient)
        known = settings.study in optuna.study.get_all_study_names(storage)
        study = optuna.create_study(
            storage=storage,
            study_name=settings.study,
            sampler=_sampler(settings, genes, None if known else settings.seed),
            pruner=_pruner(settings),
            directions=["maximize"] * len(settings.maximize),
            load_if_exists=True,
        )
    except ImportError as error:
        raise UserError(f"--storage {address}: needs the package {error.name}") from error
    except Exception as error:  # whatever the database's driver raises
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--storage {address}: cannot be opened ({text[:200]})") from error
    varies = {gene.name: repr(distribution(gene)) for gene in genes}
    there = study.user_attrs.get(_FINGERPRINT)
    if there is None:
        study.set_user_attr(_FINGERPRINT, varies)
        study.enqueue_trial(first, skip_if_exists=True)
    elif there != varies:
        raise UserError(f"study {settings.study!r} in {address} varies {', '.join(there)}; take its --keys or --space")
    if len(study.directions) != len(settings.maximize):
        raise UserError(
            f"study {settings.study!r} in {address} has {len(study.directions)} goals, not those of --maximize"
        )
    return study
