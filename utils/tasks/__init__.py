"""One task per file, found by name."""

from utils.core.registry import Registry

TASKS = Registry("task", "utils.tasks")
