"""PyTorch's optimizers, each in the fastest form that it has on the device."""

from __future__ import annotations

from typing import Any

import torch

from utils.engine.optimizers import OPTIMIZERS, Plan

_BETA2 = 0.999


def _form(plan: Plan) -> dict[str, bool]:
    return {"fused": True} if plan.fused else {"foreach": True}


@OPTIMIZERS.register("SGD")
def sgd(groups: list[dict[str, Any]], plan: Plan) -> torch.optim.Optimizer:
    """Return SGD with Nesterov's momentum (behaviour.md 3.3)."""
    momentum = plan.momentum
    return torch.optim.SGD(groups, lr=plan.rate, momentum=momentum, nesterov=momentum > 0, **_form(plan))


@OPTIMIZERS.register("Adam")
def adam(groups: list[dict[str, Any]], plan: Plan) -> torch.optim.Optimizer:
    """Return Adam (Kingma and Ba 2015)."""
    return torch.optim.Adam(groups, lr=plan.rate, betas=(plan.momentum, _BETA2), **_form(plan))


@OPTIMIZERS.register("AdamW")
def adamw(groups: list[dict[str, Any]], plan: Plan) -> torch.optim.Optimizer:
    """Return Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    return torch.optim.AdamW(groups, lr=plan.rate, betas=(plan.momentum, _BETA2), **_form(plan))


@OPTIMIZERS.register("NAdam")
def nadam(groups: list[dict[str, Any]], plan: Plan) -> torch.optim.Optimizer:
    """Return Adam with Nesterov's momentum and decoupled weight decay (Dozat 2016); PyTorch has no fused form."""
    betas = (plan.momentum, _BETA2)
    return torch.optim.NAdam(groups, lr=plan.rate, betas=betas, decoupled_weight_decay=True, foreach=True)


@OPTIMIZERS.register("RAdam")
def radam(groups: list[dict[str, Any]], plan: Plan) -> torch.optim.Optimizer:
    """Return rectified Adam with decoupled weight decay (Liu et al. 2020); PyTorch has no fused form."""
    betas = (plan.momentum, _BETA2)
    return torch.optim.RAdam(groups, lr=plan.rate, betas=betas, decoupled_weight_decay=True, foreach=True)


@OPTIMIZERS.register("RMSProp")
def rmsprop(groups: list[dict[str, Any]], plan: Plan) -> torch.optim.Optimizer:
    """Return RMSProp with momentum; PyTorch has no fused form."""
    return torch.optim.RMSprop(groups, lr=plan.rate, momentum=plan.momentum, foreach=True)
