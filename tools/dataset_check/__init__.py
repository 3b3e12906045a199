"""The data-set gate: what is wrong, odd or worth knowing about a data set, before a network learns it."""

from utils.core.registry import Registry

CHECKS = Registry("data check", "tools.dataset_check.checks")
