"""One loss per file, found by name."""

from utils.core.contracts import Loss
from utils.core.registry import Registry

LOSSES: Registry[type[Loss]] = Registry("loss", "utils.losses")
