"""PyTorch optimizers, each with its fastest implementation for the device."""

from __future__ import annotations

import torch

from utils.engine.eager_optimizer import eager
from utils.engine.optimizers import OPTIMIZERS, OptimizerOptions, ParamGroups

_BETA2 = 0.999


def _implementation(options: OptimizerOptions) -> dict[str, bool]:
    return {"fused": True} if options.fused else {"foreach": True}


@OPTIMIZERS.register("SGD")
def sgd(groups: ParamGroups, options: OptimizerOptions) -> torch.optim.Optimizer:
    """Build SGD with Nesterov momentum."""
    momentum = options.momentum
    optimizer = eager(torch.optim.SGD)(
        groups, lr=options.lr, momentum=momentum, nesterov=momentum > 0, **_implementation(options)
    )
    if momentum and options.fused:
        # The fused kernel leaves new buffers uninitialised if its first step is skipped (fp16 starts with such steps).
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


@OPTIMIZERS.register("Adam")
def adam(groups: ParamGroups, options: OptimizerOptions) -> torch.optim.Optimizer:
    """Build Adam (Kingma and Ba 2015)."""
    return eager(torch.optim.Adam)(groups, lr=options.lr, betas=(options.momentum, _BETA2), **_implementation(options))


@OPTIMIZERS.register("AdamW")
def adamw(groups: ParamGroups, options: OptimizerOptions) -> torch.optim.Optimizer:
    """Build Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    return eager(torch.optim.AdamW)(groups, lr=options.lr, betas=(options.momentum, _BETA2), **_implementation(options))


@OPTIMIZERS.register("NAdam")
def nadam(groups: ParamGroups, options: OptimizerOptions) -> torch.optim.Optimizer:
    """Build NAdam (Dozat 2016) with decoupled weight decay; PyTorch has no fused version."""
    betas = (options.momentum, _BETA2)
    return eager(torch.optim.NAdam)(groups, lr=options.lr, betas=betas, decoupled_weight_decay=True, foreach=True)


@OPTIMIZERS.register("RAdam")
def radam(groups: ParamGroups, options: OptimizerOptions) -> torch.optim.Optimizer:
    """Build RAdam (Liu et al. 2020) with decoupled weight decay; PyTorch has no fused version."""
    betas = (options.momentum, _BETA2)
    return eager(torch.optim.RAdam)(groups, lr=options.lr, betas=betas, decoupled_weight_decay=True, foreach=True)


@OPTIMIZERS.register("RMSProp")
def rmsprop(groups: ParamGroups, options: OptimizerOptions) -> torch.optim.Optimizer:
    """Build RMSProp with momentum; PyTorch has no fused version."""
    return eager(torch.optim.RMSprop)(groups, lr=options.lr, momentum=options.momentum, foreach=True)
