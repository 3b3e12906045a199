"""Backends that run and export networks, one file format per module."""

from utils.core.contracts import Backend
from utils.core.registry import Registry

BACKENDS: Registry[type[Backend]] = Registry("backend", "utils.backends")
