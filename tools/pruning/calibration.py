"""What pruning learns from data: how much channels matter to the loss, and statistics for the network that is left."""

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


def _some(loader: Loader, batches: int, text: str) -> Iterator[tuple[Batch, Collection[str]]]:
    """Yield some batches of each part, and the heads that it has labels for (none: all)."""
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
    """Let `importance` see the gradients of the loss of some batches; its network is as it was before, on `device`."""
    network = importance.network
    asked = [parameter.requires_grad for parameter in network.parameters()]
    training = network.training
    network.to(device).eval().requires_grad_(True)
    try:
        for batch, heads in _some(loader, batches, "importance of channels"):
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
        for parameter, was in zip(network.parameters(), asked, strict=True):
            parameter.requires_grad_(was)


@torch.no_grad()
def renew_statistics(network: Network, loader: Loader, device: torch.device, batches: int) -> None:
    """Measure the means and variances of batch normalisation anew, which changed with the channels before it."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else int(norm.num_batches_tracked) for norm in norms]
    network.to(device).eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    for batch, _ in _some(loader, batches, "statistics"):
        network(to_input(batch.images, device))
    for norm, momentum, count in zip(norms, momenta, counts, strict=True):
        norm.momentum = momentum
        if norm.num_batches_tracked is not None and count is not None:
            norm.num_batches_tracked.fill_(count)
    network.eval()
