"""Functions that a training calls, as a logger of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.core.contracts import Logger, StopTraining

__all__ = ["Callbacks", "RunRecorder", "StopTraining", "loggers_of"]


@dataclass(frozen=True)
class Callbacks:
    """Functions that `train` calls in its main process; each is optional.

    A function that raises `StopTraining` ends the training after the epoch, as early stopping does. Other errors of the
    kinds OSError, RuntimeError and ValueError are logged, and the callbacks are switched off.

    Attributes:
        on_start: Called with the folder of the run and its settings by name.
        on_batch: Called after every batch with its number, from 1, and its loss terms; it synchronises the device.
        on_epoch: Called after every epoch with its number, from 0, and the columns of results.csv.
        on_image: Called with the file of a plot and the epoch.
        on_checkpoint: Called with a written checkpoint, the epoch, and whether it is the best one.
        on_end: Called with the metrics of the best checkpoint and the checkpoint files; both empty if interrupted.
    """

    on_start: Callable[[Path, Mapping[str, object]], object] | None = None
    on_batch: Callable[[int, Mapping[str, float]], object] | None = None
    on_epoch: Callable[[int, Mapping[str, float]], object] | None = None
    on_image: Callable[[Path, int], object] | None = None
    on_checkpoint: Callable[[Path, int, bool], object] | None = None
    on_end: Callable[[Mapping[str, float], Sequence[Path]], object] | None = None


class _CallbackLogger(Logger):
    """Logger that calls the functions of `Callbacks`."""

    def __init__(self, callbacks: Callbacks) -> None:
        self.callbacks = callbacks

    def start(self, run_dir: Path, settings: Mapping[str, object]) -> None:
        """Call `on_start`."""
        if self.callbacks.on_start:
            self.callbacks.on_start(run_dir, settings)

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Call `on_epoch`."""
        if self.callbacks.on_epoch:
            self.callbacks.on_epoch(epoch, numbers)

    def image(self, path: Path, epoch: int) -> None:
        """Call `on_image`."""
        if self.callbacks.on_image:
            self.callbacks.on_image(path, epoch)

    def checkpoint(self, path: Path, epoch: int, best: bool) -> None:
        """Call `on_checkpoint`."""
        if self.callbacks.on_checkpoint:
            self.callbacks.on_checkpoint(path, epoch, best)

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Call `on_end`."""
        if self.callbacks.on_end:
            self.callbacks.on_end(numbers, checkpoints)


class _BatchCallbackLogger(_CallbackLogger):
    """The same with the optional method `batch`, whose presence costs time."""

    def batch(self, step: int, numbers: Mapping[str, float]) -> None:
        """Call `on_batch`."""
        if self.callbacks.on_batch:
            self.callbacks.on_batch(step, numbers)


class RunRecorder(Logger):
    """Logger that remembers the folder and the checkpoints of a run."""

    def __init__(self) -> None:
        self.folder = Path()
        self.checkpoints: list[Path] = []

    def start(self, run_dir: Path, settings: Mapping[str, object]) -> None:
        """Remember the folder."""
        self.folder = run_dir

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Do nothing."""

    def image(self, path: Path, epoch: int) -> None:
        """Do nothing."""

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Remember the checkpoints."""
        self.checkpoints = list(checkpoints)


def loggers_of(callbacks: Callbacks | None) -> list[Logger]:
    """Create the loggers that call `callbacks`."""
    if callbacks is None:
        return []
    return [(_BatchCallbackLogger if callbacks.on_batch else _CallbackLogger)(callbacks)]
