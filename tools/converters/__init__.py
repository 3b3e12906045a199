"""From one form of labels or weights to another."""

from utils.core.registry import Registry

SOURCES = Registry("label format to read", "tools.converters.sources")
TARGETS = Registry("label format to write", "tools.converters.targets")
