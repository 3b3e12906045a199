"""Save and restore the state of a run, so that a resumed run continues bit by bit like an uninterrupted one."""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from utils.core import distributed as dist
from utils.core.errors import UserError
from utils.core.files import newest_file
from utils.engine.run import Run, TrainState

_REQUIRED_KEYS = {"settings", "hyp", "state", "network", "optimizer", "scaler", "losses", "random"}
_MISMATCH_ERRORS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def _random_states(device: torch.device) -> dict[str, Any]:
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":  # asking for it would otherwise open a CUDA context
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _to_plain(value: Any) -> Any:
    """Copy nested data with all tensors on the CPU in contiguous memory format."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous()
    if isinstance(value, dict):
        return {key: _to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(entry) for entry in value]
    return value


def snapshot(run: Run) -> dict[str, Any]:
    """Collect the state that resuming needs as plain tensors and values. All ranks must call this."""
    run.state.ema_updates = run.ema.updates
    run.counters.flush()
    run.guard.synchronize()
    run.state.bad_steps = run.guard.bad_steps
    states = dist.gather(_random_states(run.device))
    return {
        "settings": run.settings.to_dict(),
        "hyp": run.hyp.to_dict(),
        "state": dataclasses.asdict(run.state),
        "network": _to_plain(run.network.state_dict()),
        "optimizer": _to_plain(run.optimizer.state_dict()),
        "scaler": _to_plain(run.scaler.state_dict()),
        "losses": {name: _to_plain(loss.state_dict()) for name, loss in run.losses.items()},
        "random": _to_plain(states),
        "world_size": dist.world_size(),
    }


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give optimizer tensors the memory format of their parameters, which fused kernels require."""
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Load the snapshot of a checkpoint into a newly built run.

    Raises:
        UserError: If the snapshot does not fit the run.
    """
    try:
        _restore(run, checkpoint)
    except _MISMATCH_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{checkpoint.path}: its state does not fit the run ({reason[:120]}); start a new run with --weights "
            f"{checkpoint.path}"
        ) from error


def _restore(run: Run, checkpoint: Checkpoint) -> None:
    training: dict[str, Any] = checkpoint.training or {}
    types = {entry.name: type(getattr(TrainState(), entry.name)) for entry in fields(TrainState)}
    stored = {key: value for key, value in training["state"].items() if key in types}
    for key, value in stored.items():
        if not isinstance(value, types[key]):
            raise TypeError(f"{key} is {value!r}")
    run.state = TrainState(**stored)
    run.state.complete |= run.state.epoch >= run.settings.epochs
    run.network.load_state_dict(training["network"])
    run.optimizer.load_state_dict(training["optimizer"])
    _match_memory_format(run.optimizer)
    run.ema.network.load_state_dict(checkpoint.network.state_dict())
    if run.scaler.is_enabled() and training["scaler"]:  # empty after training in fp32 or bf16
        run.scaler.load_state_dict(training["scaler"])
    for name, loss in run.losses.items():
        loss.load_state_dict(training["losses"][name])
    run.ema.updates = run.state.ema_updates
    run.guard.restore(run.state.bad_steps)
    states = training["random"][dist.rank()] if dist.rank() < len(training["random"]) else None
    if states is not None:
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and run.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"])


def save(run: Run, path: Path, training: dict[str, Any] | None) -> None:
    """Write the EMA network to `path`, with the snapshot `training` if given; only the first rank writes."""
    if dist.is_main():
        save_checkpoint(path, run.ema.network, meta=run.meta(), training=training)


def find_last(text: str, project: Path) -> Path:
    """Find the checkpoint of `--resume`.

    Args:
        text: A checkpoint, the folder of a run, or `newest`.
        project: Folder of the runs, searched for the newest one.

    Raises:
        UserError: If there is no such checkpoint.
    """
    if text != "newest":
        path = Path(text)
        for candidate in (path, path / "weights" / "last.pt", path / "last.pt"):
            if candidate.is_file():
                return candidate
        raise UserError(f"--resume {text}: no such file; give the weights/last.pt of a run")
    found = newest_file(project, "last*.pt")
    if found is None:
        raise UserError(f"--resume: no last.pt under {project}; give its path")
    return found


def load_resumable(path: Path) -> Checkpoint:
    """Load a checkpoint with the training state that resuming needs.

    Raises:
        UserError: If it holds weights only, or parts of the state are missing.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.training is None:
        done = checkpoint.meta.get("epochs_done")
        why = f"this run finished after {done} epochs" if done else "holds weights only"
        raise UserError(f"{path}: {why}, nothing to resume; start a new run with --weights {path}")
    if missing := _REQUIRED_KEYS - checkpoint.training.keys():
        raise UserError(
            f"{path}: damaged, {', '.join(sorted(missing))} is missing; start a new run with --weights {path}"
        )
    return checkpoint
