"""Inference time, operations and parameters of every layer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.fuse import fuse
from models.network import Network
from utils.core.alternate_timing import time_alternately
from utils.core.log import progress
from utils.core.timing import Stopwatch

WARM_UP = 3  # untimed runs first


@dataclass(frozen=True)
class LayerTime:
    """Cost of one row of a fused network; `milliseconds` is the median over all runs, for the whole batch."""

    index: int
    kind: str
    parameters: int
    gflops: float
    milliseconds: float


def time_network(network: Network, size_hw: tuple[int, int], batch: int, device: torch.device, runs: int) -> float:
    """Measure the median milliseconds of the fused network for `batch` images."""
    folded, images = _prepare(network, size_hw, batch, device)
    with torch.inference_mode():
        seconds = time_alternately({"network": lambda: folded(images)}, runs, WARM_UP, device)
    return 1000 * statistics.median(seconds["network"])


def time_layers(
    network: Network, size_hw: tuple[int, int], batch: int, device: torch.device, runs: int
) -> list[LayerTime]:
    """Measure every row in runs of the whole fused network, with caches as in real use.

    On a GPU the device is synchronised around each row, so that the rows add up to more than the network's time.

    Args:
        network: in any mode; a fused copy is timed.
        size_hw: of the images in pixels.
        batch: images per run.
        device: to run on.
        runs: timed runs.
    """
    folded, images = _prepare(network, size_hw, batch, device)
    operations = _operations(folded, size_hw)
    watches = [Stopwatch(device) for _ in folded.model]
    times: list[list[float]] = [[] for _ in folded.model]
    hooks = [hook for layer, watch in zip(folded.model, watches, strict=True) for hook in _timed(layer, watch)]
    try:
        with torch.inference_mode():
            for turn in progress(range(WARM_UP + runs), text="timing layers", unit="pass"):
                folded(images)
                if turn >= WARM_UP:
                    for found, watch in zip(times, watches, strict=True):
                        found.append(1000 * watch.last)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        LayerTime(
            index, type(layer).__name__, sum(p.numel() for p in layer.parameters()), operations[index] / 1e9,
            statistics.median(found),
        )
        for index, (layer, found) in enumerate(zip(folded.model, times, strict=True))
    ]  # fmt: skip


def _prepare(network: Network, size_hw: tuple[int, int], batch: int, device: torch.device) -> tuple[Network, Tensor]:
    folded = fuse(network).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(batch, network.architecture.get("ch", 3), *size_hw)
    return folded, images.to(device).contiguous(memory_format=torch.channels_last)


def _timed(layer: nn.Module, watch: Stopwatch) -> list[Any]:
    def begin(*_: Any) -> None:
        watch.__enter__()

    def end(*_: Any) -> None:
        watch.__exit__()

    return [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)]


def _operations(folded: Network, size_hw: tuple[int, int]) -> list[int]:
    """Count the multiplications and additions of every row for one image."""
    from torch.utils.flop_counter import FlopCounterMode  # imports the compiler, which takes two to four seconds

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        folded(torch.zeros(1, folded.architecture.get("ch", 3), *size_hw, device=next(folded.parameters()).device))
    counts = counter.get_flop_counts()
    return [sum(counts.get(f"Network.model.{index}", {}).values()) for index in range(len(folded.model))]


def layer_table(rows: Sequence[LayerTime]) -> str:
    """Format the rows and their sums as a table with fractions of the total time."""
    total = max(sum(row.milliseconds for row in rows), 1e-9)
    lines = [f"{'':>4} {'module':<18}{'params':>11}{'GFLOPs':>9}{'ms':>9}{'of time':>8}"]
    for row in rows:
        lines.append(
            f"{row.index:>4} {row.kind:<18}{row.parameters:>11}{row.gflops:>9.3f}{row.milliseconds:>9.2f}"
            f"{row.milliseconds / total:>8.1%}"
        )
    sums = sum(row.parameters for row in rows), sum(row.gflops for row in rows)
    lines.append(f"{'':>4} {'all layers':<18}{sums[0]:>11}{sums[1]:>9.3f}{total:>9.2f}{1:>8.0%}")
    return "\n".join(lines)
