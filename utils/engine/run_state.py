"""Saving a run and putting it back: a resumed run continues as if it had never stopped."""

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

_SNAPSHOT = {"settings", "hyp", "state", "network", "optimizer", "scaler", "losses", "random"}
_MISFITS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _plain(value: Any) -> Any:
    """Return `value` with every tensor on the CPU in the default memory format."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def snapshot(run: Run) -> dict[str, Any]:
    """Return everything that continuing needs, as plain tensors and values. Every rank must call it."""
    run.state.ema_updates = run.ema.updates
    states = dist.gather(_random_states())
    return {
        "settings": run.settings.to_dict(),
        "hyp": run.hyp.to_dict(),
        "state": dataclasses.asdict(run.state),
        "network": _plain(run.network.state_dict()),
        "optimizer": _plain(run.optimizer.state_dict()),
        "scaler": _plain(run.scaler.state_dict()),
        "losses": {name: _plain(loss.state_dict()) for name, loss in run.losses.items()},
        "random": _plain(states),
        "world_size": dist.world_size(),
    }


def _match_layout(optimizer: Any) -> None:
    """Give every optimizer tensor its parameter's memory order: fused kernels walk both in step."""
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Put a snapshot back into a freshly assembled run; one that does not fit is a UserError."""
    try:
        _restore(run, checkpoint)
    except _MISFITS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{checkpoint.path}: its state does not fit the run ({reason[:120]}); start a new run with --weights "
            f"{checkpoint.path}"
        ) from error


def _restore(run: Run, checkpoint: Checkpoint) -> None:
    training: dict[str, Any] = checkpoint.training or {}
    kinds = {entry.name: type(getattr(TrainState(), entry.name)) for entry in fields(TrainState)}
    stored = {key: value for key, value in training["state"].items() if key in kinds}
    for key, value in stored.items():
        if not isinstance(value, kinds[key]):
            raise TypeError(f"{key} is {value!r}")
    run.state = TrainState(**stored)
    run.network.load_state_dict(training["network"])
    run.optimizer.load_state_dict(training["optimizer"])
    _match_layout(run.optimizer)
    run.ema.network.load_state_dict(checkpoint.network.state_dict())
    run.scaler.load_state_dict(training["scaler"])
    for name, loss in run.losses.items():
        loss.load_state_dict(training["losses"][name])
    run.ema.updates = run.state.ema_updates
    mine = training["random"][dist.rank()] if dist.rank() < len(training["random"]) else None
    if mine is not None:
        torch.set_rng_state(mine["cpu"])
        if "cuda" in mine and torch.cuda.is_available():
            torch.cuda.set_rng_state(mine["cuda"])


def save(run: Run, *paths: Path, training: dict[str, Any] | None) -> None:
    """Write the averaged network to `paths`, with the snapshot beside it; the first rank writes."""
    if not dist.is_main():
        return
    for path in paths:
        save_checkpoint(path, run.ema.network, meta=run.meta(), training=training)


def find_last(text: str, project: Path) -> Path:
    """Return the checkpoint that `--resume text` means: a file, a run's folder, or the newest run's."""
    if text != "newest":
        path = Path(text)
        for candidate in (path, path / "weights" / "last.pt", path / "last.pt"):
            if candidate.is_file():
                return candidate
        raise UserError(f"--resume {text}: no such file; give a run's weights/last.pt")
    found = newest_file(project, "last*.pt")
    if found is None:
        raise UserError(f"--resume: no last.pt under {project}; give its path")
    return found


def load_resumable(path: Path) -> Checkpoint:
    """Read a checkpoint that training can continue from."""
    checkpoint = load_checkpoint(path)
    if checkpoint.training is None:
        done = checkpoint.meta.get("epochs_done")
        why = f"finished after {done} epochs" if done else "holds weights only"
        raise UserError(f"{path}: this run {why}, nothing to resume; start a new one with --weights {path}")
    if missing := _SNAPSHOT - checkpoint.training.keys():
        raise UserError(
            f"{path}: damaged, {', '.join(sorted(missing))} is missing; start a new run with --weights {path}"
        )
    return checkpoint
