"""One loss per file, found by name."""

from utils.core.registry import Registry

LOSSES = Registry("loss", "utils.losses")
