"""Images and labels to batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from utils.core.data_config import DataConfig
from utils.core.registry import Registry

if TYPE_CHECKING:
    from utils.datasets.labels.label_index import SplitFiles
    from utils.datasets.labels.semantic_layout import Layout

READERS: Registry[Callable[[DataConfig, str], SplitFiles]] = Registry("label format", "utils.datasets.labels.readers")
SEMANTIC_READERS: Registry[Layout] = Registry("layout of semantic maps", "utils.datasets.labels.semantic_layouts")
GENERATORS: Registry[Callable[[DataConfig], Any]] = Registry("data generator", "utils.datasets.generators")
