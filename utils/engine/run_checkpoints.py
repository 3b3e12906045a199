"""Checkpoints of a run: `last.pt`, `best.pt` and those of `--save-period`.

`last.pt` commits an epoch: it is written after the other files of the epoch, so that a run killed in between repeats
the epoch and writes them again.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from models.checkpoint import load_checkpoint, save_checkpoint
from utils.core import distributed as dist
from utils.core.log import LOGGER
from utils.engine.run import Run
from utils.engine.run_state import save, snapshot

_PREVIOUS_BEST = ".best.previous.pt"  # exists while a new best.pt is not yet committed by last.pt
_TEMPORARY = re.compile(r"\..{0,40}\.[a-z0-9_]{8}\.(pt|jpg|png|csv|json|yaml|txt|npy)")  # names of `atomic_path`


def save_last(run: Run) -> None:
    """Write `last.pt` with the state that `--resume` needs. All ranks must call this: random states are gathered."""
    training = snapshot(run)
    save(run, run.weights_folder / "last.pt", training=training)


def save_epoch_checkpoints(run: Run, epoch: int, best: bool, last: bool) -> None:
    """Write the checkpoints of an epoch, `last.pt` after the others.

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
    if settings.save_period > 0 and epoch % settings.save_period == 0:
        _write(run, f"epoch{epoch}.pt", training, epoch, best)
    if best or (last and not (weights / "best.pt").exists()):
        if dist.is_main():
            _keep_previous_best(weights)
        _write(run, "best.pt", None, epoch, best)
    _write(run, "last.pt", training, epoch, best)
    if dist.is_main():
        tidy_checkpoints(weights, settings.save_keep)


def _write(run: Run, name: str, training: dict[str, Any] | None, epoch: int, best: bool) -> None:
    path = run.weights_folder / name
    save(run, path, training=training)
    run.loggers.checkpoint(path, epoch, best)


def _keep_previous_best(weights: Path) -> None:
    """Give `best.pt` a second name, under which `repair_run_folder` finds it if the epoch is never committed."""
    best, previous = weights / "best.pt", weights / _PREVIOUS_BEST
    previous.unlink(missing_ok=True)
    if best.exists():
        try:
            os.link(best, previous)
        except OSError:  # a file system without hard links
            shutil.copyfile(best, previous)


def tidy_checkpoints(weights: Path, keep: int) -> None:
    """Remove the previous best checkpoint and, if `keep` is not 0, all but the newest `keep` of `--save-period`."""
    (weights / _PREVIOUS_BEST).unlink(missing_ok=True)
    numbered = sorted((int(path.stem[5:]), path) for path in weights.glob("epoch*.pt") if path.stem[5:].isdigit())
    for _, path in numbered[:-keep] if keep else ():
        path.unlink(missing_ok=True)


def repair_run_folder(run: Run) -> None:
    """Remove what a killed process left in the folder of a resumed run, and make `best.pt` that of its state.

    A process killed between `best.pt` and `last.pt` leaves the best checkpoint of an epoch that is repeated.
    """
    remove_temporary_files(run.folder)
    weights, state = run.weights_folder, run.state
    best, previous = weights / "best.pt", weights / _PREVIOUS_BEST
    if state.best_fitness != -1.0 and _epochs_done(best) != state.best_epoch + 1:
        if _epochs_done(previous) == state.best_epoch + 1:
            previous.replace(best)
        elif state.epoch == state.best_epoch + 1 and state.step == 0:
            save(run, best, training=None)
    tidy_checkpoints(weights, run.settings.save_keep)


def _epochs_done(path: Path) -> int | None:
    return load_checkpoint(path).meta.get("epochs_done") if path.is_file() else None


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files that a killed process left in the folder of a run."""
    for path in folder.rglob(".*.*"):
        if _TEMPORARY.fullmatch(path.name) and path.name != _PREVIOUS_BEST:
            LOGGER.debug(f"removing {path}")
            path.unlink(missing_ok=True)


def strip_checkpoints(weights: Path) -> None:
    """Reduce `best.pt` and then `last.pt` of a concluded run to half-precision weights without training state."""
    for path in (weights / "best.pt", weights / "last.pt"):
        stored = load_checkpoint(path)
        save_checkpoint(path, stored.network, meta=stored.meta, training=None, half=True)
