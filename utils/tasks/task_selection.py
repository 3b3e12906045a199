"""Which task trains or scores a network: what a script stands for, and what the network's heads need."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from utils.core.contracts import Task
from utils.core.data_config import SEMANTIC_HEAD
from utils.core.errors import UserError
from utils.core.train_settings import TrainSettings
from utils.tasks import TASKS
from utils.tasks.joint import joined


def task_of(name: str, heads: Collection[str]) -> Task:
    """Return the task `name` for a network with `heads`: as it is, joined with that of pixels, or only the latter."""
    task: Task = TASKS.get(name)
    if SEMANTIC_HEAD not in heads or name == SEMANTIC_HEAD:
        return task
    pixels: Task = TASKS.get(SEMANTIC_HEAD)
    return joined(task, pixels) if set(heads) & set(task.heads) else pixels


def task_of_heads(heads: Collection[str]) -> Task:
    """Return the task that scores everything a network with `heads` finds."""
    return task_of(next((head for head in heads if head != SEMANTIC_HEAD), SEMANTIC_HEAD), heads)


def task_for(name: str, settings: TrainSettings, heads: Collection[str]) -> Task:
    """Return the task that trains a network with `heads`, ranking epochs as `settings` say."""
    task = task_of(name, heads)
    if not settings.fitness or not heads:
        return task
    scores = [number for column, number in task.columns.items() if column.startswith("metrics/")]
    if len(settings.fitness) != len(scores):
        raise UserError(f"--fitness: {len(settings.fitness)} weights, but the scores are {', '.join(scores)}")
    return replace(task, fitness=dict(zip(scores, settings.fitness, strict=True)))
