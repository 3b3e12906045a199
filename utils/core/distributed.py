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
    from torch.distributed import Store

    from utils.core.rank_watch import RankWatch

TIMEOUT = timedelta(hours=3)  # long enough for ranks that wait while another scans a large data set
_watch: list[RankWatch] = []  # that of this process, once it has joined the group


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
    group: dict[str, Any] = {}
    if restart_count() and _has_agent_store():  # the store still has the addresses of the processes that failed
        store = dist.PrefixStore(f"polyolo/group{restart_count()}", _open_store(TIMEOUT))
        group = {"store": store, "rank": rank(), "world_size": world_size()}
    try:
        # NCCL otherwise guesses the GPU of a rank at its first collective
        dist.init_process_group(backend, timeout=TIMEOUT, device_id=target if backend == "nccl" else None, **group)
        _start_watch()
    except (ValueError, RuntimeError) as error:  # the address is missing, malformed or not reachable
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"environment variable WORLD_SIZE={world_size()} asks for several processes, but they cannot join "
            f"({reason}); start with torchrun, or unset it"
        ) from error


def restart_count() -> int:
    """Get how often torchrun has started the processes again after a failure (`--max-restarts`)."""
    return max(0, _launcher_variable("TORCHELASTIC_RESTART_COUNT", 0)) if world_size() > 1 else 0


def _has_agent_store() -> bool:
    """Check whether torchrun keeps the key-value store, which then outlives the processes."""
    return world_size() > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _open_store(timeout: timedelta = timedelta(seconds=30)) -> Store:
    from utils.core.rank_watch import open_store

    return open_store(os.environ.get("MASTER_ADDR", "localhost"), _launcher_variable("MASTER_PORT", 29500), timeout)


def _start_watch() -> None:
    """Start the thread that ends this process when another rank is lost."""
    import torch.distributed as dist

    from utils.core.rank_watch import RankWatch

    # only torchrun is known to live as long as its ranks
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0
    store = dist.PrefixStore(f"polyolo/attempt{restart_count()}", _open_store())
    _watch.append(RankWatch(store, rank(), world_size(), launcher))
    _watch[0].start()


def set_advice(text: str) -> None:
    """Set what the message about a lost rank advises to do."""
    for watch in _watch:
        watch.advice = text


def await_verdict(seconds: float = 10.0) -> None:
    """Wait for the message that names the lost rank, after which the process ends; return if there is none."""
    for watch in _watch:
        watch.wait_for_verdict(seconds)


def remember(key: str, text: str) -> None:
    """Store a text with torchrun, for processes that it starts again."""
    if _has_agent_store():
        _open_store().set(f"polyolo/{key}", text)


def recall(key: str) -> str:
    """Read a text that an earlier attempt stored with torchrun; empty if there is none."""
    if not restart_count() or not _has_agent_store():
        return ""
    store, name = _open_store(), f"polyolo/{key}"
    return store.get(name).decode() if store.check([name]) else ""


def stop() -> None:
    """Leave the process group after a barrier, because Gloo can crash when one rank leaves early."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        while _watch:
            _watch.pop().stop()
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
