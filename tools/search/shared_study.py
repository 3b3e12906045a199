"""Optuna study shared by one or more processes: storage, sampler and pruner."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.search.mutation import distribution, mutation_sampler
from tools.search.space import SearchRange
from utils.core.errors import UserError

if TYPE_CHECKING:
    import optuna

FITNESS = "fitness"  # objective: the fitness of the task
DEFAULTS = "defaults"  # attribute of the trial with the values of the hyperparameter file
OBJECTIVES = "goals"  # attribute of a study: names of its objectives
_SPACE = "genes"  # attribute of a study: its search space, which is the same for all processes
_HEARTBEAT, _GRACE_PERIOD = 30, 120  # seconds between heartbeats, and without one until a trial counts as failed
_MAX_RETRIES = 3  # of a trial whose process died
_DATABASE_TIMEOUT = 120  # seconds to wait for the lock of an SQLite database

SAMPLERS: Mapping[str, Callable[[Any, SearchSettings, int | None], Any]] = {
    "tpe": lambda samplers, settings, seed: samplers.TPESampler(
        seed=seed, n_startup_trials=settings.startup_trials, constant_liar=True
    ),
    "cmaes": lambda samplers, settings, seed: samplers.CmaEsSampler(
        seed=seed, n_startup_trials=settings.startup_trials, warn_independent_sampling=False
    ),
    "nsga2": lambda samplers, settings, seed: samplers.NSGAIISampler(
        seed=seed, population_size=max(min(settings.trials // 5, 50), 2)
    ),
    "random": lambda samplers, settings, seed: samplers.RandomSampler(seed=seed),
}
MUTATION = "mutation"  # the sampler of mutation.py, which needs the search space
SAMPLER_NAMES = (*SAMPLERS, MUTATION)
PRUNERS: Mapping[str, Callable[[Any, int, int], Any]] = {
    "median": lambda pruners, first, epochs: pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=first),
    "hyperband": lambda pruners, first, epochs: pruners.HyperbandPruner(
        min_resource=first, max_resource=max(epochs, first + 1)
    ),
    "none": lambda pruners, first, epochs: pruners.NopPruner(),
}


@dataclass(frozen=True)
class SearchSettings:
    """Options of a search, besides those of its training runs."""

    trials: int = 50
    sampler: str = "tpe"
    pruner: str = "median"
    maximize: tuple[str, ...] = (FITNESS,)
    keys: tuple[str, ...] = ()
    space: str = ""
    storage: str = ""
    study: str = "polyolo"
    first: tuple[str, ...] = ()  # hyperparameter files for the first trials, after the one of the defaults

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchSettings:
        """Build the record from plain values.

        Raises:
            UserError: If a key is unknown or a value has the wrong type.
        """
        own: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        types = {entry.name: type(entry.default) for entry in fields(cls)}
        for name, value in own.items():
            if type(value) is not types.get(name):
                raise UserError(f"search: {name}: {value!r} is not a valid option of a search")
        return cls(**own)

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UserError(f"--trials {self.trials}: must be at least 1")
        for name, allowed in (("sampler", SAMPLER_NAMES), ("pruner", tuple(PRUNERS))):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} {getattr(self, name)}: must be one of {', '.join(allowed)}")
        if len(set(self.maximize)) != len(self.maximize):
            raise UserError(f"--maximize {' '.join(self.maximize)}: contains an objective twice")
        if len(self.maximize) > 1 and self.sampler in ("cmaes", MUTATION):
            raise UserError(f"--sampler {self.sampler}: supports a single objective; use nsga2 or tpe for several")
        if len(self.maximize) > 1 and self.pruner != "none":
            raise UserError(f"--pruner {self.pruner}: supports a single objective; give --pruner none")

    @property
    def startup_trials(self) -> int:
        """Number of random trials before the sampler uses its model."""
        return max(min(self.trials // 4, 10), 1)


def require_optuna(sampler: str = "") -> Any:
    """Import Optuna and what the sampler needs.

    Raises:
        UserError: If a package is missing.
    """
    try:
        import optuna

        if sampler == "cmaes":
            import cmaes  # noqa: F401
    except ImportError as error:
        raise UserError(f"a search needs packages: pip install -r requirements-tune.txt ({error.name})") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _create_sampler(settings: SearchSettings, space: Sequence[SearchRange], seed: int, joins: bool) -> Any:
    """Create the sampler; that of a process that joins a study is not seeded, to suggest other values."""
    if settings.sampler == MUTATION:
        return mutation_sampler(space, seed)  # depends on the trial number anyway
    samplers = require_optuna(settings.sampler).samplers
    return SAMPLERS[settings.sampler](samplers, settings, None if joins else seed)


def retry_callback() -> Callable[[Any, Any], None]:
    """Create the callback that enqueues the values of a failed trial again, up to `_MAX_RETRIES` times."""
    storages = require_optuna().storages
    callback: Callable[[Any, Any], None] = storages.RetryHeartbeatStaleTrialCallback(
        _MAX_RETRIES, inherit_intermediate_values=True
    )
    return callback


def open_study(
    settings: SearchSettings,
    folder: Path,
    space: Sequence[SearchRange],
    first: Sequence[Mapping[str, Any]],
    epochs: int,
    seed: int,
) -> optuna.Study:
    """Open a study, or create it.

    Args:
        settings: Options of the search; `storage` defaults to an SQLite file in `folder`.
        folder: Folder of the search.
        space: Search space.
        first: Values of the first trials of a new study; the first of them are the defaults.
        epochs: Epochs of a training run, for the pruner.
        seed: Seed of the sampler.

    Raises:
        UserError: If the storage cannot be opened, or the study has another search space or other objectives.
    """
    from filelock import FileLock

    require_optuna(settings.sampler)
    address = settings.storage or f"sqlite:///{(folder / 'study.db').resolve().as_posix()}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".opening"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # heartbeats are experimental
        study = _create_study(settings, address, space, epochs, seed)
        ranges = {one.name: repr(distribution(one)) for one in space}
        stored = study.user_attrs.get(_SPACE)
        if stored is None:
            study.set_user_attr(_SPACE, ranges)
            study.set_user_attr(OBJECTIVES, list(settings.maximize))
            for values in first:
                study.enqueue_trial(dict(values), user_attrs={DEFAULTS: values is first[0]})
            return study
    name = f"study {settings.study!r} in {address}"
    if stored != ranges:
        other = sorted(key for key in {*stored, *ranges} if stored.get(key) != ranges.get(key))
        raise UserError(f"{name}: has other ranges for {', '.join(other)}; join it with its --hyp, --keys and --space")
    if (objectives := list(study.user_attrs.get(OBJECTIVES, ()))) != list(settings.maximize):
        raise UserError(f"{name}: maximizes {' '.join(objectives)}, not {' '.join(settings.maximize)}")
    return study


def _create_study(
    settings: SearchSettings, address: str, space: Sequence[SearchRange], epochs: int, seed: int
) -> optuna.Study:
    package = require_optuna()
    timeout = {"connect_args": {"timeout": _DATABASE_TIMEOUT}} if address.startswith("sqlite") else {}
    try:
        storage = package.storages.RDBStorage(
            address,
            engine_kwargs=timeout,
            heartbeat_interval=_HEARTBEAT,
            grace_period=_GRACE_PERIOD,
            heartbeat_stale_trial_callback=retry_callback(),
        )
        joins = settings.study in package.study.get_all_study_names(storage)
        study: optuna.Study = package.create_study(
            storage=storage,
            study_name=settings.study,
            sampler=_create_sampler(settings, space, seed, joins),
            pruner=PRUNERS[settings.pruner](package.pruners, max(epochs // 10, 1), epochs),
            directions=["maximize"] * len(settings.maximize),
            load_if_exists=True,
        )
        return study
    except ImportError as error:
        raise UserError(f"--storage {address}: needs the package {error.name}") from error
    except Exception as error:  # drivers of databases raise exceptions of their own
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--storage {address}: cannot be opened ({text[:200]})") from error
