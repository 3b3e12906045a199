"""Losses: one file per head, found by the name of the head in `LOSSES`."""

from utils.core.contracts import Loss
from utils.core.registry import Registry

LOSSES: Registry[type[Loss]] = Registry("loss", "utils.losses")
