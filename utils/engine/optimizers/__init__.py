"""Registry of optimizers: functions that build an optimizer from parameter groups and `OptimizerOptions`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from utils.core.registry import Registry


@dataclass(frozen=True)
class OptimizerOptions:
    """Options common to all parameter groups; weight decay is set per group."""

    lr: float  # initial learning rate (hyperparameter lr0)
    momentum: float  # of SGD and RMSProp, beta1 of the others
    fused: bool  # use the fused kernel of the device, else the foreach implementation


ParamGroups = list[dict[str, Any]]
OPTIMIZERS: Registry[Callable[[ParamGroups, OptimizerOptions], torch.optim.Optimizer]] = Registry(
    "optimizer", "utils.engine.optimizers"
)
