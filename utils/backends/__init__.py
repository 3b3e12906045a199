"""One backend per file, found by name."""

from utils.core.registry import Registry

BACKENDS = Registry("backend", "utils.backends")
