"""Devices and precisions a network can run in."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core.distributed import local_rank, local_world_size
from utils.core.errors import UserError

if TYPE_CHECKING:
    import torch


def select_device(text: str = "") -> torch.device:
    """Select the device that `--device` names and make it the current one.

    Args:
        text: "cpu", "mps", or GPU indices separated by commas ("0", "cuda:1", "0,1"), of which each rank that torchrun
            started takes its own. Empty or "none": the first GPU, else the CPU.

    Raises:
        UserError: If the text is malformed or the machine lacks the device.
    """
    import torch

    words = [word.strip().removeprefix("cuda:") for word in text.lower().split(",")]
    words = [word for word in words if word not in ("", "none")]
    if words == ["cpu"] or (not words and not torch.cuda.is_available()):
        return torch.device("cpu")
    if words == ["mps"]:
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: PyTorch finds no Apple GPU on this machine; use --device cpu")
        return torch.device("mps")
    if not torch.cuda.is_available():
        raise UserError(f"--device {text}: PyTorch finds no GPU on this machine; use --device cpu")
    return _select_gpu(text, words)


def _select_gpu(text: str, words: list[str]) -> torch.device:
    import torch

    count = torch.cuda.device_count()
    if not all(word.removeprefix("-").isdecimal() for word in words):
        raise UserError(f"--device {text}: expected cpu, mps, or GPU indices such as 0 or 0,1")
    chosen = [int(word) for word in words] or list(range(count))
    for index in chosen:
        if not 0 <= index < count:
            raise UserError(f"--device {text}: no GPU {index}; PyTorch finds {count}")
    if len(chosen) < local_world_size() > 1:  # fewer GPUs than ranks: distribute the ranks over all GPUs
        chosen = list(range(count))
    if len(chosen) < local_world_size():
        raise UserError(
            f"--device {text or 'default'}: {local_world_size()} processes on this machine, but PyTorch finds {count} "
            f"GPU(s); start at most {count} with --nproc-per-node, or use --device cpu"
        )
    device = torch.device("cuda", chosen[local_rank() % len(chosen)])
    torch.cuda.set_device(device)
    return device


def configure_gpu(
    device: torch.device, *, deterministic: bool = False, fixed_sizes: bool = False, tf32: bool = True
) -> None:
    """Choose how CUDA's libraries compute; no-op for other devices.

    Args:
        device: Device of the network.
        deterministic: Use only operations that give the same result in every run, where there are any.
        fixed_sizes: Images have few sizes, so measuring the convolution algorithms for each of them pays.
        tf32: Round the operands of fp32 convolutions and matrix products to 10 bits of mantissa (TF32).
    """
    import torch

    if device.type != "cuda":
        return
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = fixed_sizes and not deterministic
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with fixed workspaces
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


@contextmanager
def full_fp32() -> Iterator[None]:
    """Compute fp32 without TF32 in the block, for comparisons of results."""
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def varying_sizes() -> Iterator[None]:
    """Choose convolution algorithms by heuristics in the block, because images have many sizes."""
    import torch

    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def cpu_has_bf16() -> bool:
    """Check whether the CPU multiplies bfloat16 in hardware; without that, mixed precision is slower than float32."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast_dtype(device: torch.device, mode: str = "auto") -> torch.dtype | None:
    """Choose the data type of mixed precision.

    Args:
        device: Device of the network.
        mode: The value of --amp: auto, fp32, fp16 or bf16.

    Returns:
        The low-precision type for `torch.autocast`; None for plain float32.
    """
    import torch

    if mode == "fp32":
        return None
    if mode == "bf16":
        return torch.bfloat16
    if mode == "fp16":
        if device.type == "cpu":
            raise UserError("--amp fp16: needs a GPU; use bf16 or fp32 on CPUs")
        return torch.float16
    if device.type == "cuda":
        return torch.float16 if not torch.cuda.is_bf16_supported(including_emulation=False) else torch.bfloat16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else None


def usable_cpus() -> int:
    """Count the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: torch.device) -> str:
    """Describe a device in one line: name and memory of a GPU, number of threads of a CPU."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
