"""Automatic batch size (`--batch-size -1`).

On GPUs memory limits the batch: the memory of small batches is measured and extrapolated linearly. On CPUs speed
decides: the batch is doubled as long as images per second grow and the activations fit into free memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import nn

from utils.core import distributed as dist
from utils.core.log import LOGGER, progress

FALLBACK_BATCH, MAX_BATCH = 16, 1024
MEMORY_FRACTION = 0.8  # of the free memory, for --batch-size -1
_GPU_BATCHES = (1, 2, 4, 8, 16)
_CPU_BATCHES = (1, 2, 4, 8, 16, 32, 64)  # the nominal batch has 64 images, so larger ones bring nothing
_MIN_SPEEDUP = 1.05  # of images per second, for a doubled batch to be accepted
_PEAK_FACTOR = 2.0  # peak memory of a step relative to the saved activations
_TIME_LIMIT = 60.0  # seconds after which no larger batch is measured


def fitting_batch(memory: Mapping[int, float], free: float, fraction: float, failed: int | None = None) -> int:
    """Extrapolate the batch size that fills a fraction of the free memory.

    Args:
        memory: Peak memory in bytes by batch size.
        free: Free memory in bytes.
        fraction: Fraction of `free` to use.
        failed: Smallest batch size that ran out of memory, if any; the result is below it.

    Returns:
        The largest fitting batch size, at most `MAX_BATCH`. If the fit is unusable or the result below 1, it is
        `FALLBACK_BATCH`, or the largest measured one if that is smaller, with a warning.
    """
    batches = sorted(memory)
    largest = batches[-1] if batches else 0
    if len(batches) >= 2:
        slope, intercept = np.polyfit(batches, [memory[batch] for batch in batches], 1)
        if slope > 0:
            batch = int((free * fraction - intercept) / slope + 1e-6)  # tolerance for the rounding of the fit
            if failed is not None and batch >= failed:
                return largest
            if batch >= 1:
                return min(batch, MAX_BATCH)
    fallback = min(FALLBACK_BATCH, largest) if failed is not None and largest else FALLBACK_BATCH
    LOGGER.warning(f"--batch-size -1: cannot estimate the batch size from the memory used; using {fallback}")
    return fallback


def growing_batch(images_per_second: Callable[[int], float], bytes_per_image: float, free: float) -> int:
    """Double the batch size while the throughput grows.

    Args:
        images_per_second: Measures the throughput of a batch size.
        bytes_per_image: Peak memory of one image.
        free: Usable memory in bytes.
    """
    best, best_rate, start = 1, 0.0, time.perf_counter()
    for batch in _CPU_BATCHES:
        if batch > 1 and (batch * bytes_per_image > free or time.perf_counter() - start > _TIME_LIMIT):
            break
        rate = images_per_second(batch)
        if rate < best_rate * _MIN_SPEEDUP:
            break
        best, best_rate = batch, rate
    return best


def available_memory() -> float:
    """Return the main memory available to this process in bytes, infinity if unknown."""
    free = float("inf")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            free = float(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")  # limits of a container
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, float(text) - float(used.read_text()))
    return free


class BatchProbe:
    """Runs training steps on a copy of a network, so that its statistics and gradients stay unchanged.

    Args:
        network: Network to measure.
        image_size: Side of the square images in pixels.
        device: Device of the measurements.
        mixed: Autocast dtype, None for fp32.
    """

    def __init__(self, network: nn.Module, image_size: int, device: torch.device, mixed: torch.dtype | None) -> None:
        self.network = deepcopy(network).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.image_size, self.device, self.mixed = image_size, device, mixed

    def step(self, batch: int, backward: bool = True) -> None:
        """Run the forward pass, and optionally the backward pass, of `batch` images."""
        images = torch.zeros(batch, 3, self.image_size, self.image_size, device=self.device)
        images = images.to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=self.mixed, enabled=self.mixed is not None):
            raw = self.network(images)
        if backward:
            total = sum(tensor.float().mean() for tensors in raw.values() for tensor in tensors.values())
            torch.as_tensor(total).backward()
            self.network.zero_grad(set_to_none=True)

    def activation_bytes(self) -> float:
        """Measure the activations saved for the backward pass, in bytes per image; shared storages count once."""
        sizes: dict[int, int] = {}

        def record(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {parameter.untyped_storage().data_ptr() for parameter in self.network.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            self.step(2, backward=False)
        return sum(size for address, size in sizes.items() if address not in weights) / 2

    def images_per_second(self, batch: int) -> float:
        """Measure the throughput of a training step, the best of two after a warmup."""
        self.step(batch)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            self.step(batch)
            seconds.append(time.perf_counter() - start)
        return batch / min(seconds)

    def gpu_memory(self) -> tuple[dict[int, float], int | None]:
        """Measure the peak memory in bytes by batch size; also return the first one that ran out of memory."""
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


def choose_batch_size(
    network: nn.Module, image_size: int, device: torch.device, mixed: torch.dtype | None, fraction: float
) -> int:
    """Choose the batch size over all processes; every rank measures, and the smallest result counts.

    Args:
        network: Network to train; it is not changed.
        image_size: Side of the training images in pixels.
        device: Device of this rank.
        mixed: Autocast dtype, None for fp32.
        fraction: Fraction of the free memory to use.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        measured = _measure(network, image_size, device, mixed, fraction)
    batch = min(dist.gather(measured)) * dist.world_size()
    LOGGER.info(f"--batch-size: using {batch} images per step on this device")
    return batch


def _measure(
    network: nn.Module, image_size: int, device: torch.device, mixed: torch.dtype | None, fraction: float
) -> int:
    if device.type not in ("cuda", "cpu"):
        LOGGER.warning(f"--batch-size -1: free memory of {device.type} is unknown; using {FALLBACK_BATCH}")
        return FALLBACK_BATCH
    probe = BatchProbe(network, image_size, device, mixed)
    if device.type == "cpu":
        per_image = probe.activation_bytes() * _PEAK_FACTOR
        return growing_batch(probe.images_per_second, per_image, available_memory() * fraction)
    memory, failed = probe.gpu_memory()
    del probe
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return fitting_batch(memory, free, fraction, failed)
