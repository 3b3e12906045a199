"""Optimizers, found by name: a function that takes groups of parameters and a `Plan`."""

from __future__ import annotations

from dataclasses import dataclass

from utils.core.registry import Registry

OPTIMIZERS = Registry("optimizer", "utils.engine.optimizers")


@dataclass(frozen=True)
class Plan:
    """What an optimizer is built from besides its groups, which say their weight decay themselves."""

    rate: float  # at the start: the hyper-parameter lr0
    momentum: float  # of SGD and RMSProp; the others' beta1
    fused: bool  # the device has one kernel for all tensors; else the multi-tensor form
