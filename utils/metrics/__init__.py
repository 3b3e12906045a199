"""Evaluators: one file per head, found by the name of the head in `EVALUATORS`."""

from utils.core.contracts import Evaluator
from utils.core.registry import Registry

EVALUATORS: Registry[type[Evaluator]] = Registry("evaluator", "utils.metrics")
