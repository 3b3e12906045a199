"""Select the task that trains or evaluates a network, from the script and the heads of the network."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from utils.core.contracts import Task
from utils.core.data_config import SEMANTIC_HEAD
from utils.core.errors import UserError
from utils.tasks import TASKS
from utils.tasks.joint import join_tasks


def select_task(name: str, heads: Collection[str]) -> Task:
    """Select the task of a network.

    Args:
        name: Name of the task of the script.
        heads: Names of the heads of the network; empty before it is built.

    Returns:
        The named task. For a network with a semantic head: the joint task, or the semantic task if the network has
        none of the heads of the named task.
    """
    task = TASKS.get(name)
    if SEMANTIC_HEAD not in heads or name == SEMANTIC_HEAD:
        return task
    semantic = TASKS.get(SEMANTIC_HEAD)
    return join_tasks(task, semantic) if set(heads) & set(task.heads) else semantic


def select_task_by_heads(heads: Collection[str]) -> Task:
    """Select the task that evaluates all heads of a network."""
    return select_task(next((head for head in heads if head != SEMANTIC_HEAD), SEMANTIC_HEAD), heads)


def select_training_task(name: str, fitness: Sequence[float], heads: Collection[str]) -> Task:
    """Select the task of a network to train.

    Args:
        name: Name of the task of the script.
        fitness: Weights of the metrics in results.csv (`--fitness`); empty: those of the task.
        heads: Names of the heads of the network; empty before it is built.

    Raises:
        UserError: If the number of weights is not that of the metrics.
    """
    task = select_task(name, heads)
    if not fitness or not heads:
        return task
    metrics = [metric for column, metric in task.columns.items() if column.startswith("metrics/")]
    if len(fitness) != len(metrics):
        raise UserError(f"--fitness: expects {len(metrics)} weights, for {', '.join(metrics)}; got {len(fitness)}")
    return replace(task, fitness=dict(zip(metrics, fitness, strict=True)))
