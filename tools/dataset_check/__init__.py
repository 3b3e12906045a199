"""The data-set gate: what is wrong, odd or worth knowing about a data set, before a network learns it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from utils.core.registry import Registry

if TYPE_CHECKING:
    from tools.dataset_check.findings import Finding
    from tools.dataset_check.records import Gathered

CHECKS: Registry[Callable[[Gathered], Iterator[Finding]]] = Registry("data check", "tools.dataset_check.checks")
