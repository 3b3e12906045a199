"""One backend per file, found by name."""

from utils.core.contracts import Backend
from utils.core.registry import Registry

BACKENDS: Registry[type[Backend]] = Registry("backend", "utils.backends")
