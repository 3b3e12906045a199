"""The batch size that suits device and network (`--batch-size -1`, behaviour.md 3.13).

On GPUs memory decides: forward and backward passes at small batches show what an image costs, a straight line says how
many fit. On CPUs time decides: the batch doubles while images per second grow, as far as free memory goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.core import distributed as dist
from utils.core.log import LOGGER, progress

FALLBACK, MOST = 16, 1024  # behaviour.md 3.13
SHARE = 0.8  # of the free memory, where the user says no other
_GPU_BATCHES = (1, 2, 4, 8, 16)
_CPU_BATCHES = (1, 2, 4, 8, 16, 32, 64)  # 64 images make an update anyway
_GAIN = 1.05  # a doubled batch must bring that much more images per second
_PEAK = 2.0  # the most memory of a step, beside what the forward pass keeps for gradients
_SECONDS = 60.0  # after which no larger batch is tried


def fitting_batch(memory: Mapping[int, float], free: float, share: float, failed: int | None = None) -> int:
    """Return the batch that takes `share` of the `free` bytes, by a straight line through `memory` (bytes by batch).

    `failed` is the smallest batch that ran out of memory: the answer stays below it. Where the line makes no sense, or
    the answer is none between 1 and 1024, it is 16 with a warning, or the largest that worked if that is less.
    """
    batches = sorted(memory)
    worked = batches[-1] if batches else 0
    if len(batches) >= 2:
        slope, intercept = np.polyfit(batches, [memory[batch] for batch in batches], 1)
        if slope > 0:
            batch = int((free * share - intercept) / slope + 1e-6)  # a fit is never exact
            if failed is not None and batch >= failed:
                return worked
            if 1 <= batch <= MOST:
                return batch
    usual = min(FALLBACK, worked) if failed is not None and worked else FALLBACK
    LOGGER.warning(f"--batch-size -1: no batch can be worked out from the memory used; taking {usual}")
    return usual


def growing_batch(images_per_second: Callable[[int], float], bytes_per_image: float, free: float) -> int:
    """Return the largest batch up to which every doubling makes images per second grow, and that fits `free` bytes."""
    best, best_rate, start = 1, 0.0, time.perf_counter()
    for batch in _CPU_BATCHES:
        if batch > 1 and (batch * bytes_per_image > free or time.perf_counter() - start > _SECONDS):
            break
        rate = images_per_second(batch)
        if rate < best_rate * _GAIN:
            break
        best, best_rate = batch, rate
    return best


def available_memory() -> float:
    """Return the bytes of main memory that this process can still take; infinity where nobody says."""
    free = float("inf")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            free = float(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")  # of a container
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, float(text) - float(used.read_text()))
    return free


class _Trial:
    """Passes of a copy of the network, there and back: statistics and gradients of the original stay as they are."""

    def __init__(self, network: nn.Module, image_size: int, device: torch.device, mixed: torch.dtype | None) -> None:
        self.network = deepcopy(network).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.size, self.device, self.mixed = image_size, device, mixed

    def step(self, batch: int, backward: bool = True) -> None:
        """Pass `batch` images through the network, and gradients back."""
        images = torch.zeros(batch, 3, self.size, self.size, device=self.device)
        images = images.to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=self.mixed, enabled=self.mixed is not None):
            raw = self.network(images)
        if backward:
            total = sum(tensor.float().mean() for tensors in raw.values() for tensor in tensors.values())
            torch.as_tensor(total).backward()
            self.network.zero_grad(set_to_none=True)

    def kept_bytes(self) -> float:
        """Return how many bytes of activations an image keeps for its gradients."""
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {parameter.untyped_storage().data_ptr() for parameter in self.network.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self.step(2, backward=False)
        return sum(size for address, size in sizes.items() if address not in weights) / 2

    def images_per_second(self, batch: int) -> float:
        """Return how many images a second pass there and back, the best of two."""
        self.step(batch)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            self.step(batch)
            seconds.append(time.perf_counter() - start)
        return batch / min(seconds)

    def gpu_memory(self) -> tuple[dict[int, float], int | None]:
        """Return the bytes that batches take at most, and the first batch that ran out of memory."""
        memory: dict[int, float] = {}
        for batch in progress(_GPU_BATCHES, text="choosing the batch size"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            try:
                for _ in range(3):
                    self.step(batch)
            except torch.OutOfMemoryError:
                return memory, batch
            memory[batch] = float(torch.cuda.max_memory_reserved(self.device))
        return memory, None


def choose_batch(
    network: nn.Module, image_size: int, device: torch.device, mixed: torch.dtype | None, share: float
) -> int:
    """Return the batch over all processes for `network` on `device`.

    Every rank measures; the smallest finding counts for all.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        found = _measured(network, image_size, device, mixed, share)
    batch = min(dist.gather(found)) * dist.world_size()
    LOGGER.info(f"--batch-size: {batch} images per step suit this device and network")
    return batch


def _measured(
    network: nn.Module, image_size: int, device: torch.device, mixed: torch.dtype | None, share: float
) -> int:
    if device.type not in ("cuda", "cpu"):
        LOGGER.warning(f"--batch-size -1 does not know how much fits on {device.type}; taking {FALLBACK}")
        return FALLBACK
    trial: Any = _Trial(network, image_size, device, mixed)
    if device.type == "cpu":
        per_image = trial.kept_bytes() * _PEAK
        return growing_batch(trial.images_per_second, per_image, available_memory() * share)
    memory, failed = trial.gpu_memory()
    del trial
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return fitting_batch(memory, free, share, failed)
