"""Data-set check: finds faults in images and labels, duplicates and leaks before a network is trained on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from utils.core.registry import Registry

if TYPE_CHECKING:
    from tools.dataset_check.findings import Finding
    from tools.dataset_check.records import DatasetRecords

CHECKS: Registry[Callable[[DatasetRecords], Iterator[Finding]]] = Registry("data check", "tools.dataset_check.checks")
