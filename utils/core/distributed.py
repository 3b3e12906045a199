"""Processes of one run: the only file that reads RANK. Works the same with one process, where nothing is sent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from utils.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, device

TIMEOUT = timedelta(hours=3)  # a rank may wait long while another indexes a large data set


def _from_launcher(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else otherwise
    except ValueError as error:
        raise UserError(f"environment variable {name}={text!r} is not a number; start with torchrun") from error


def rank() -> int:
    """Return this process's number among all, 0 when alone."""
    return max(0, _from_launcher("RANK", 0)) if world_size() > 1 else 0


def local_rank() -> int:
    """Return this process's number on its machine, 0 when alone."""
    return max(0, _from_launcher("LOCAL_RANK", 0)) if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes the launcher started, 1 without a launcher."""
    return max(1, _from_launcher("WORLD_SIZE", 1))


def is_launched() -> bool:
    """Tell whether a launcher started several processes; never raises, for the way out of a program."""
    return os.environ.get("WORLD_SIZE", "1").strip() not in ("", "0", "1")


def is_main() -> bool:
    """Tell whether this process speaks and writes for all."""
    return rank() == 0


def start(target: device) -> None:
    """Join the process group: nccl for GPUs, gloo for CPUs. Does nothing when alone or joined already."""
    import torch.distributed as dist

    if world_size() == 1 or dist.is_initialized():
        return
    if rank() >= world_size():
        raise UserError(f"environment variable RANK={rank()} with WORLD_SIZE={world_size()}; start with torchrun")
    backend = "nccl" if target.type == "cuda" and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:  # an address is missing, malformed, or nobody answers there
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"environment variable WORLD_SIZE={world_size()} asks for several processes, but they cannot join "
            f"({reason}); start with torchrun, or unset it"
        ) from error


def stop() -> None:
    """Leave the process group, together: gloo dies now and then when one rank leaves early."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _active() -> bool:
    if world_size() == 1:
        return False
    import torch.distributed as dist

    return dist.is_initialized()


def barrier() -> None:
    """Wait for every rank."""
    if _active():
        import torch.distributed as dist

        dist.barrier()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all ranks (a new tensor, without gradient); the tensor itself when alone."""
    if not _active():
        return tensor
    import torch.distributed as dist

    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def gather(value: Any) -> list[Any]:
    """Return every rank's `value` (plain data and arrays) in rank order, on every rank."""
    if not _active():
        return [value]
    import torch.distributed as dist

    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def from_main(value: Any) -> Any:
    """Return the first rank's `value` on every rank."""
    if not _active():
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def made_by_main(make: Callable[[], Any]) -> Any:
    """Return on every rank what `make()` returns on the first; a UserError there is raised on every rank."""
    made, fault = None, ""
    if is_main():
        try:
            made = make()
        except UserError as error:
            fault = str(error)
    made, fault = from_main((made, fault))
    if fault:
        raise UserError(fault)
    return made


@contextmanager
def main_first() -> Iterator[None]:
    """Let the first rank run the block alone before the others do, for work that leaves a file behind."""
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()
