"""Calibration on data: gradients for the importance of channels, and BatchNorm statistics of the pruned network."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn

from models.network import Network
from models.network_runner import to_input
from tools.pruning.importance import TaylorImportance
from utils.core.contracts import Batch, Loader
from utils.core.log import progress


def _limited_batches(loader: Loader, batches: int, text: str) -> Iterator[tuple[Batch, Collection[str]]]:
    """Yield some batches of each part of a loader, with the heads that it has labels for (none: all)."""
    counts = [min(batches, part.num_batches) for part in loader.parts]
    with progress(total=sum(counts), text=text, unit="batch") as bar:
        for part, count in zip(loader.parts, counts, strict=True):
            for batch in islice(part.epoch(0), count):
                yield batch, part.heads
                bar.update()


def gather_gradients(
    importance: TaylorImportance,
    loader: Loader,
    losses: Mapping[str, Any],
    gains: Mapping[str, float],
    device: torch.device,
    batches: int,
) -> None:
    """Accumulate the gradients of the loss in the importance of channels.

    Args:
        importance: Importance to update; its network is moved to `device` and otherwise restored.
        loader: Training images.
        losses: Loss of each head.
        gains: Factors of the losses, 1 by default.
        device: Device to compute on.
        batches: Number of batches of each part of the loader.
    """
    network = importance.network
    required_grad = [parameter.requires_grad for parameter in network.parameters()]
    training = network.training
    network.to(device).eval().requires_grad_(True)
    try:
        for batch, heads in _limited_batches(loader, batches, "importance of channels"):
            moved = batch.to(device)
            raw = network(to_input(moved.images, device))
            total = torch.zeros((), device=device)
            for head, loss in losses.items():
                if head in heads or not heads:
                    terms = loss.eval()(raw[head], moved)
                    total = total + torch.stack(list(terms.values())).sum() * gains.get(head, 1.0)
            total.backward()
            importance.add()
            network.zero_grad(set_to_none=True)
    finally:
        network.zero_grad(set_to_none=True)
        network.train(training)
        for parameter, required in zip(network.parameters(), required_grad, strict=True):
            parameter.requires_grad_(required)


@torch.no_grad()
def recompute_statistics(network: Network, loader: Loader, device: torch.device, batches: int) -> None:
    """Recompute the running statistics of BatchNorm, which pruning the preceding channels has changed."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else int(norm.num_batches_tracked) for norm in norms]
    network.to(device).eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average over all batches
        norm.train()
    for batch, _ in _limited_batches(loader, batches, "statistics"):
        network(to_input(batch.images, device))
    for norm, momentum, count in zip(norms, momenta, counts, strict=True):
        norm.momentum = momentum
        if norm.num_batches_tracked is not None and count is not None:
            norm.num_batches_tracked.fill_(count)
    network.eval()
