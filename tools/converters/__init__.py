"""From one form of labels or weights to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from utils.core.registry import Registry

if TYPE_CHECKING:
    from tools.converters.convert_settings import LabelSettings
    from tools.converters.label_items import Source

SOURCES: Registry[Callable[[LabelSettings], Source]] = Registry("label format to read", "tools.converters.sources")
TARGETS: Registry[Any] = Registry("label format to write", "tools.converters.targets")
