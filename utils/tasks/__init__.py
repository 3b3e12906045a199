"""One task per file, found by name."""

from utils.core.contracts import Task
from utils.core.registry import Registry

TASKS: Registry[Task] = Registry("task", "utils.tasks")
