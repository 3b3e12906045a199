"""One evaluator per file, found by name."""

from utils.core.registry import Registry

EVALUATORS = Registry("evaluator", "utils.metrics")
