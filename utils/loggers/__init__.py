"""One logger per file, found by name."""

from utils.core.registry import Registry

LOGGERS = Registry("logger", "utils.loggers")
