"""The study that one or many processes share: its storage, who proposes, and who ends bad trials early."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tools.search.mutation import distribution, mutation_sampler
from tools.search.space import Gene
from utils.core.errors import UserError

SAMPLERS = ("tpe", "cmaes", "nsga2", "random", "mutation")
PRUNERS = ("median", "hyperband", "none")
FITNESS = "fitness"  # the task's own score, as a goal
DEFAULTS = "defaults"  # attribute of the trial that has the values of the hyper-parameter file
GOALS = "goals"  # attribute of a study: what its values are
_GENES = "genes"  # attribute of a study: who joins must vary the same
_HEARTBEAT, _SILENCE = 30, 120  # seconds between signs of life, and without one until a process counts as dead
_RETRIES = 3  # of a trial whose process died
_DATABASE_WAIT = 120  # seconds that a process waits for another one's writing


@dataclass(frozen=True)
class SearchSettings:
    """What the options of a search say, besides those of its trainings."""

    trials: int = 50
    sampler: str = "tpe"
    pruner: str = "median"
    maximize: tuple[str, ...] = (FITNESS,)
    keys: tuple[str, ...] = ()
    space: str = ""
    storage: str = ""
    study: str = "polyolo"
    first: tuple[str, ...] = ()  # hyper-parameter files that are tried first, after the one the search begins with

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchSettings:
        """Return the record of plain values; a key or a kind of value that it does not have is a UserError."""
        own: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        kinds = {entry.name: type(entry.default) for entry in fields(cls)}
        for name, value in own.items():
            if type(value) is not kinds.get(name):
                raise UserError(f"search: {name}: {value!r} is nothing a search can be told")
        return cls(**own)

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UserError(f"--trials {self.trials}: must be at least 1")
        for name, allowed in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} {getattr(self, name)}: one of {', '.join(allowed)}")
        if len(set(self.maximize)) != len(self.maximize):
            raise UserError(f"--maximize {' '.join(self.maximize)}: the same goal twice")
        if len(self.maximize) > 1 and self.sampler in ("cmaes", "mutation"):
            raise UserError(f"--sampler {self.sampler} knows one goal; with several take nsga2 or tpe")
        if len(self.maximize) > 1 and self.pruner != "none":
            raise UserError(f"--pruner {self.pruner} knows one goal; with several give --pruner none")


def require_optuna(sampler: str = "") -> Any:
    """Return the package; what is missing is a UserError."""
    try:
        import optuna

        if sampler == "cmaes":
            import cmaes  # noqa: F401
    except ImportError as error:
        raise UserError(f"a search needs packages: pip install -r requirements-tune.txt ({error.name})") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _sampler(settings: SearchSettings, genes: Sequence[Gene], seed: int, joins: bool) -> Any:
    """Return who proposes; one that joins others proposes other things than they do."""
    samplers = require_optuna(settings.sampler).samplers
    own = None if joins else seed
    few = max(min(settings.trials // 4, 10), 1)  # at random before the others' proposals count
    if settings.sampler == "cmaes":
        return samplers.CmaEsSampler(seed=own, n_startup_trials=few, warn_independent_sampling=False)
    if settings.sampler == "nsga2":
        return samplers.NSGAIISampler(seed=own, population_size=max(min(settings.trials // 5, 50), 2))
    if settings.sampler == "mutation":
        return mutation_sampler(genes, seed)  # knows the trial's number
    if settings.sampler == "random":
        return samplers.RandomSampler(seed=own)
    return samplers.TPESampler(seed=own, n_startup_trials=few, constant_liar=True)


def _pruner(settings: SearchSettings, epochs: int) -> Any:
    pruners = require_optuna().pruners
    least = max(epochs // 10, 1)
    if settings.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=least)
    if settings.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=least, max_resource=max(epochs, least + 1))
    return pruners.NopPruner()


def retry() -> Any:
    """Return the function that proposes again what a dead process was at."""
    return require_optuna().storages.RetryHeartbeatStaleTrialCallback(_RETRIES, inherit_intermediate_values=True)


def open_study(
    settings: SearchSettings,
    folder: Path,
    genes: Sequence[Gene],
    first: Sequence[dict[str, Any]],
    epochs: int,
    seed: int,
) -> Any:
    """Return the study, made if it is not there; its first trials get the values `first`, those of the defaults ahead.

    The storage is SQLite in `folder` unless the settings name another. One that cannot be reached, and a study that
    varies something else, are UserErrors.
    """
    from filelock import FileLock

    require_optuna(settings.sampler)
    address = settings.storage or f"sqlite:///{(folder / 'study.db').resolve().as_posix()}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".opening"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "experimental": signs of life
        study = _opened(settings, address, genes, epochs, seed)
        varies = {gene.name: repr(distribution(gene)) for gene in genes}
        there = study.user_attrs.get(_GENES)
        if there is None:
            study.set_user_attr(_GENES, varies)
            study.set_user_attr(GOALS, list(settings.maximize))
            for values in first:
                study.enqueue_trial(values, user_attrs={DEFAULTS: values is first[0]})
            return study
    place = f"study {settings.study!r} in {address}"
    if there != varies:
        other = sorted(name for name in {*there, *varies} if there.get(name) != varies.get(name))
        raise UserError(f"{place} has other ranges for {', '.join(other)}; join it with its --hyp, --keys and --space")
    if (goals := study.user_attrs.get(GOALS)) != list(settings.maximize):
        raise UserError(f"{place} maximizes {' '.join(goals)}, not {' '.join(settings.maximize)}")
    return study


def _opened(settings: SearchSettings, address: str, genes: Sequence[Gene], epochs: int, seed: int) -> Any:
    optuna = require_optuna()
    patient = {"connect_args": {"timeout": _DATABASE_WAIT}} if address.startswith("sqlite") else {}
    try:
        storage = optuna.storages.RDBStorage(
            address,
            engine_kwargs=patient,
            heartbeat_interval=_HEARTBEAT,
            grace_period=_SILENCE,
            heartbeat_stale_trial_callback=retry(),
        )
        joins = settings.study in optuna.study.get_all_study_names(storage)
        return optuna.create_study(
            storage=storage,
            study_name=settings.study,
            sampler=_sampler(settings, genes, seed, joins),
            pruner=_pruner(settings, epochs),
            directions=["maximize"] * len(settings.maximize),
            load_if_exists=True,
        )
    except ImportError as error:
        raise UserError(f"--storage {address}: needs the package {error.name}") from error
    except Exception as error:  # whatever the database's driver raises
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--storage {address}: cannot be opened ({text[:200]})") from error
