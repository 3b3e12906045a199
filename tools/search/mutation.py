"""YOLOv5's way to propose: mutate one of the best (behaviour.md 3.14)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tools.search.space import Gene
from utils.core.seed import generator

PARENTS, SHARE, SIGMA = 5, 0.8, 0.2
_STREAM = 3000  # of the random numbers that mutate


def choose_parent(scores: Sequence[float], rng: np.random.Generator) -> int:
    """Return the index of one of the five best, drawn by how far it is above the worst of them."""
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[:PARENTS]
    weights = np.array([scores[index] for index in best]) - scores[best[-1]] + 1e-6
    return int(best[rng.choice(len(best), p=weights / weights.sum())])


def mutated(parent: Mapping[str, Any], genes: Sequence[Gene], rng: np.random.Generator) -> dict[str, Any]:
    """Return a child: most numbers are multiplied by something near 1, choices are now and then drawn anew."""
    gains = np.array([gene.gain for gene in genes])
    factors = np.ones(len(genes))
    while (factors == 1).all():
        chosen = rng.random(len(genes)) < SHARE
        noise = rng.standard_normal(len(genes)) * rng.random(len(genes))
        factors = np.clip(gains * chosen * noise * SIGMA + 1, 0.3, 3.0)
    child: dict[str, Any] = {}
    for gene, factor in zip(genes, factors, strict=True):
        if gene.choices:
            again = abs(factor - 1) > SIGMA / 2
            child[gene.name] = gene.choices[rng.integers(len(gene.choices))] if again else parent[gene.name]
        else:
            child[gene.name] = gene.clipped(parent[gene.name] * float(factor))
    return child


def mutation_sampler(genes: Sequence[Gene], seed: int) -> Any:
    """Return an Optuna sampler that mutates; what it proposes depends on seed, trial number and the trials before."""
    import optuna

    class MutationSampler(optuna.samplers.RandomSampler):
        """Propose children of the best complete trials."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {gene.name: distribution(gene) for gene in genes}

        def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
            done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
            names = {gene.name for gene in genes}
            done = [one for one in done if names <= one.params.keys()]
            if not done:
                return {}
            rng = generator(seed, trial.number, 0, stream=_STREAM)
            parent = done[choose_parent([one.value for one in done], rng)]
            return mutated(parent.params, genes, rng)

    return MutationSampler(seed=seed)


def distribution(gene: Gene) -> Any:
    """Return the gene's range in Optuna's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if gene.choices:
        return CategoricalDistribution(gene.choices)
    return FloatDistribution(gene.low, gene.high, log=gene.log)


def suggested(trial: Any, gene: Gene) -> Any:
    """Return the value that a trial has for a gene."""
    if gene.choices:
        return trial.suggest_categorical(gene.name, gene.choices)
    return trial.suggest_float(gene.name, gene.low, gene.high, log=gene.log)
