"""Images and labels to batches."""

from utils.core.registry import Registry

READERS = Registry("label format", "utils.datasets.labels.readers")
SEMANTIC_READERS = Registry("layout of class maps", "utils.datasets.labels.semantic_layouts")
GENERATORS = Registry("data generator", "utils.datasets.generators")
