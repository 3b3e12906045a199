"""Distributed training: ranks, the process group and collectives.

This is the only file that reads RANK and WORLD_SIZE. Every function also works in a single process, where nothing is
communicated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from utils.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, device

TIMEOUT = timedelta(hours=3)  # long enough for ranks that wait while another scans a large data set


def _launcher_variable(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError as error:
        raise UserError(f"environment variable {name}={text!r} is not a number; start with torchrun") from error


def rank() -> int:
    """Get the index of this process among all processes; 0 without a launcher."""
    return max(0, _launcher_variable("RANK", 0)) if world_size() > 1 else 0


def local_rank() -> int:
    """Get the index of this process on its machine; 0 without a launcher."""
    return max(0, _launcher_variable("LOCAL_RANK", 0)) if world_size() > 1 else 0


def world_size() -> int:
    """Get the number of processes that the launcher started; 1 without a launcher."""
    return max(1, _launcher_variable("WORLD_SIZE", 1))


def local_world_size() -> int:
    """Get the number of processes on this machine; 1 without a launcher."""
    return max(1, _launcher_variable("LOCAL_WORLD_SIZE", world_size())) if world_size() > 1 else 1


def is_launched() -> bool:
    """Check whether a launcher started several processes, without raising for an invalid environment."""
    return os.environ.get("WORLD_SIZE", "1").strip() not in ("", "0", "1")


def is_main() -> bool:
    """Check whether this is the main process, the one that logs and writes files."""
    return rank() == 0


def start(target: device) -> None:
    """Join the process group: NCCL for GPUs, Gloo for CPUs. No-op in a single process or if already joined.

    Raises:
        UserError: If the environment of the launcher is incomplete or the other processes cannot be reached.
    """
    import torch.distributed as dist

    if world_size() == 1 or dist.is_initialized():
        return
    if rank() >= world_size():
        raise UserError(f"environment variable RANK={rank()} with WORLD_SIZE={world_size()}; start with torchrun")
    backend = "nccl" if target.type == "cuda" and dist.is_nccl_available() else "gloo"
    try:
        # NCCL otherwise guesses the GPU of a rank at its first collective
        dist.init_process_group(backend, timeout=TIMEOUT, device_id=target if backend == "nccl" else None)
    except (ValueError, RuntimeError) as error:  # the address is missing, malformed or not reachable
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"environment variable WORLD_SIZE={world_size()} asks for several processes, but they cannot join "
            f"({reason}); start with torchrun, or unset it"
        ) from error


def stop() -> None:
    """Leave the process group after a barrier, because Gloo can crash when one rank leaves early."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _is_initialized() -> bool:
    if world_size() == 1:
        return False
    import torch.distributed as dist

    return dist.is_initialized()


def barrier() -> None:
    """Wait for all ranks."""
    if _is_initialized():
        import torch.distributed as dist

        dist.barrier()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks.

    Returns:
        A new tensor without gradient; `tensor` itself in a single process.
    """
    if not _is_initialized():
        return tensor
    import torch.distributed as dist

    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def gather(value: Any) -> list[Any]:
    """Collect the `value` of every rank (plain data and arrays) in rank order, on every rank."""
    if not _is_initialized():
        return [value]
    import torch.distributed as dist

    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast(value: Any) -> Any:
    """Send the `value` of the main process to every rank."""
    if not _is_initialized():
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def run_on_main(action: Callable[[], Any]) -> Any:
    """Run `action` in the main process and send its result to every rank.

    Raises:
        UserError: On every rank, if `action` raised one.
    """
    result, fault = None, ""
    if is_main():
        try:
            result = action()
        except UserError as error:
            fault = str(error)
    result, fault = broadcast((result, fault))
    if fault:
        raise UserError(fault)
    return result


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the main process before the other ranks, which can then read the files it wrote."""
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()
