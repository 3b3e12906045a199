"""Evolutionary sampler: mutations of the best trials, as with `--evolve` of YOLOv5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tools.search.space import SearchRange
from utils.core.seed import generator

if TYPE_CHECKING:
    import optuna

PARENTS = 5  # number of best trials that a parent is drawn from
MUTATION_PROBABILITY, SIGMA = 0.8, 0.2  # of each hyperparameter; standard deviation of its factor
_STREAM = 3000  # random stream of mutations


def choose_parent(scores: Sequence[float], rng: np.random.Generator) -> int:
    """Draw one of the best trials, with a probability proportional to its lead over the worst of them.

    Args:
        scores: Objective of each trial.
        rng: Random generator.

    Returns:
        Index in `scores`.
    """
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[:PARENTS]
    weights = np.array([scores[index] for index in best]) - scores[best[-1]] + 1e-6  # not all zero
    return int(best[rng.choice(len(best), p=weights / weights.sum())])


def mutate(parent: Mapping[str, Any], space: Sequence[SearchRange], rng: np.random.Generator) -> dict[str, Any]:
    """Mutate the hyperparameters of a trial: numbers are multiplied by a random factor, choices redrawn.

    Args:
        parent: Values by name.
        space: Search space; the result lies in it.
        rng: Random generator.

    Returns:
        Values by name, at least one of them mutated.
    """
    gains = np.array([one.gain for one in space])
    factors = np.ones(len(space))
    while (factors == 1).all():
        chosen = rng.random(len(space)) < MUTATION_PROBABILITY
        noise = rng.standard_normal(len(space)) * rng.random(len(space))
        factors = np.clip(gains * chosen * noise * SIGMA + 1, 0.3, 3.0)
    child: dict[str, Any] = {}
    for one, factor in zip(space, factors, strict=True):
        if one.choices:
            redraw = abs(factor - 1) > SIGMA / 2
            child[one.name] = one.choices[rng.integers(len(one.choices))] if redraw else parent[one.name]
        else:
            child[one.name] = one.clip(parent[one.name] * float(factor))
    return child


def mutation_sampler(space: Sequence[SearchRange], seed: int) -> optuna.samplers.BaseSampler:
    """Create an Optuna sampler whose suggestions depend on seed, trial number and the trials before."""
    import optuna

    class MutationSampler(optuna.samplers.RandomSampler):
        """Suggest mutations of the best complete trials."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {one.name: distribution(one) for one in space}

        def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
            complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
            names = {one.name for one in space}
            complete = [other for other in complete if names <= other.params.keys()]
            if not complete:
                return {}
            rng = generator(seed, trial.number, 0, stream=_STREAM)
            parent = complete[choose_parent([other.value for other in complete], rng)]
            return mutate(parent.params, space, rng)

    return MutationSampler(seed=seed)


def distribution(search_range: SearchRange) -> optuna.distributions.BaseDistribution:
    """Convert a range to an Optuna distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if search_range.choices:
        return CategoricalDistribution(search_range.choices)
    return FloatDistribution(search_range.low, search_range.high, log=search_range.log)


def suggest(trial: optuna.Trial, search_range: SearchRange) -> Any:
    """Let a trial suggest the value of a hyperparameter."""
    if search_range.choices:
        return trial.suggest_categorical(search_range.name, search_range.choices)
    return trial.suggest_float(search_range.name, search_range.low, search_range.high, log=search_range.log)
