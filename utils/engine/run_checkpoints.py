"""Checkpoints of a run: `last.pt`, `best.pt` and those of `--save-period`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.checkpoint import load_checkpoint, save_checkpoint
from utils.core import distributed as dist
from utils.engine.run import Run
from utils.engine.run_state import save, snapshot


def save_last(run: Run) -> None:
    """Write `last.pt` with the state that `--resume` needs. All ranks must call this: random states are gathered."""
    training = snapshot(run)
    save(run, run.weights_folder / "last.pt", training=training)


def save_epoch_checkpoints(run: Run, epoch: int, best: bool, last: bool) -> None:
    """Write the checkpoints of an epoch.

    Args:
        run: The run, after the epoch.
        epoch: Index of the epoch.
        best: Whether it has the best fitness so far; `best.pt` is written.
        last: Whether the training ends; with `--nosave` nothing is written before.
    """
    weights, settings = run.weights_folder, run.settings
    if settings.nosave and not last:
        return
    training = snapshot(run)
    _write(run, "last.pt", training, epoch, best)
    if best or (last and not (weights / "best.pt").exists()):
        _write(run, "best.pt", None, epoch, best)
    if settings.save_period > 0 and epoch % settings.save_period == 0:
        _write(run, f"epoch{epoch}.pt", training, epoch, best)
    if settings.save_keep and dist.is_main():
        remove_old_checkpoints(weights, settings.save_keep)


def _write(run: Run, name: str, training: dict[str, Any] | None, epoch: int, best: bool) -> None:
    path = run.weights_folder / name
    save(run, path, training=training)
    run.loggers.checkpoint(path, epoch, best)


def remove_old_checkpoints(weights: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints of `--save-period`."""
    numbered = sorted((int(path.stem[5:]), path) for path in weights.glob("epoch*.pt") if path.stem[5:].isdigit())
    for _, path in numbered[:-keep]:
        path.unlink(missing_ok=True)


def strip_checkpoints(weights: Path) -> None:
    """Reduce `best.pt` and `last.pt` of a finished run to half-precision weights without training state."""
    for path in (weights / "best.pt", weights / "last.pt"):
        stored = load_checkpoint(path)
        save_checkpoint(path, stored.network, meta=stored.meta, training=None, half=True)
