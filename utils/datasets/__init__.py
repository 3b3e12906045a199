"""Images and labels to batches."""

from utils.core.registry import Registry

READERS = Registry("label format", "utils.datasets.readers")
GENERATORS = Registry("data generator", "utils.datasets.generators")
