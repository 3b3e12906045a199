"""One evaluator per file, found by name."""

from utils.core.contracts import Evaluator
from utils.core.registry import Registry

EVALUATORS: Registry[type[Evaluator]] = Registry("evaluator", "utils.metrics")
