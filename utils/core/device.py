"""Where and in which precision a network runs."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core.distributed import local_rank, world_size
from utils.core.errors import UserError

if TYPE_CHECKING:
    import torch


def select_device(text: str = "") -> torch.device:
    """Return the device that `text` names: '' = first GPU, else CPU; an index, a list of them, cpu or mps.

    A list ('0,1') names the GPUs of the ranks that torchrun started; this process takes its own.
    """
    import torch

    text = text.strip().lower().replace("cuda:", "").replace("none", "")
    if text == "cpu" or (not text and not torch.cuda.is_available()):
        return torch.device("cpu")
    if text == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: this machine has no Apple GPU that torch can use")
        return torch.device("mps")
    if not torch.cuda.is_available():
        raise UserError(f"--device {text}: torch sees no GPU here; use --device cpu")
    try:
        indices = [int(part) for part in text.split(",") if part.strip()] or list(range(torch.cuda.device_count()))
    except ValueError as error:
        raise UserError(f"--device {text}: expected cpu, mps, a GPU number or a list of them like 0,1") from error
    if bad := [i for i in indices if not 0 <= i < torch.cuda.device_count()]:
        raise UserError(f"--device {text}: GPU {bad[0]} is not there; torch sees {torch.cuda.device_count()}")
    if world_size() > 1 and len(indices) < world_size():
        indices = list(range(torch.cuda.device_count()))
    device = torch.device("cuda", indices[local_rank() % len(indices)])
    torch.cuda.set_device(device)
    return device


def cpu_has_bf16() -> bool:
    """Tell whether this CPU multiplies bfloat16 in hardware, where mixed precision pays (decisions.md)."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast_dtype(device: torch.device, mode: str = "auto") -> torch.dtype | None:
    """Return the type for mixed precision on `device`, None for plain fp32. `mode`: auto, fp32, fp16, bf16."""
    import torch

    if mode == "fp32":
        return None
    if mode == "bf16":
        return torch.bfloat16
    if mode == "fp16":
        if device.type == "cpu":
            raise UserError("--amp fp16 needs a GPU; CPUs take bf16 or fp32")
        return torch.float16
    if device.type == "cuda":
        return torch.float16 if not torch.cuda.is_bf16_supported() else torch.bfloat16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else None


def usable_cpus() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: torch.device) -> str:
    """Return one line about `device`: name and memory, or the number of CPU threads."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
