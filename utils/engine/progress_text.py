"""Texts of the training loop: header and description of the progress bar, time summary of an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from utils.core import distributed as dist
from utils.core.contracts import Batch
from utils.core.log import is_narrow
from utils.core.timing import duration
from utils.engine.run import TrainState

_SLOW_LOADER = 0.3  # fraction of the time spent waiting for data that makes the loader the bottleneck


def progress_header(terms: Sequence[str]) -> str:
    """Format the line above the progress bars from the names of the loss terms.

    A narrow terminal has no columns for instances and image size, so that rate and remaining time stay visible.
    """
    names = [name.split("/")[-1] for name in terms]
    if is_narrow():
        memory = f"{'GPU_mem':>9}" if torch.cuda.is_available() else ""
        return f"{'Epoch':>8}{memory}" + "".join(f"{name:>9}" for name in names)
    losses = "".join(f"{name + '_loss':>12}" for name in names)
    return f"{'Epoch':>10}{'GPU_mem':>10}{losses}{'Instances':>11}{'Size':>7}"


def progress_prefix(state: TrainState, epochs: int, device: torch.device) -> str:
    """Format the first columns of a progress bar: epoch and reserved GPU memory in GiB."""
    position = f"{state.epoch + 1}/{epochs}"
    memory = torch.cuda.memory_reserved() / 2**30 if device.type == "cuda" else 0.0
    if is_narrow():
        column = f"{memory:8.3g}G" if memory else f"{'-':>9}"
        return f"{position:>8}" + (column if torch.cuda.is_available() else "")
    return f"{position:>10}" + (f"{memory:9.3g}G" if memory else f"{'-':>10}")


def progress_losses(state: TrainState, names: Sequence[str], sums: Tensor | None, batch: Batch) -> str:
    """Format the other columns: mean of each loss term so far, instances and size of the last batch."""
    if not names or sums is None:
        return ""
    world = dist.world_size()
    totals = [state.loss_sums.get(name, 0.0) + value * world for name, value in zip(names, sums.tolist(), strict=True)]
    if is_narrow():
        return "".join(f"{value / max(state.step, 1):9.3g}" for value in totals)
    means = "".join(f"{value / max(state.step, 1):12.4g}" for value in totals)
    return f"{means}{batch.instances:11d}{batch.images.shape[-1]:7d}"


def time_summary(metrics: Mapping[str, float]) -> str:
    """Summarise the time of an epoch and name the bottleneck."""
    total, waiting = metrics["time/epoch"], metrics["time/loader"]
    bottleneck = "the data loader" if waiting > _SLOW_LOADER * total else "the network"
    return (
        f"{duration(total)}: {duration(waiting)} waiting for data, {duration(total - waiting)} computing; "
        f"{bottleneck} is the bottleneck"
    )
