"""TensorBoard logger: curves and images in the run folder, for `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from utils.core.errors import UserError
from utils.loggers import LOGGERS


@LOGGERS.register("tensorboard")
class TensorBoard:
    """Logger with one event file per start; steps of an interrupted run after the resumed epoch are hidden."""

    def __init__(self) -> None:
        self._run_dir = Path()
        self._writer: Any = None

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Check that the package is installed; the file is opened at the first number or image."""
        self._run_dir = run_dir
        _writer_class()

    def _open(self, epoch: int) -> Any:
        if self._writer is None:
            self._writer = _writer_class()(log_dir=str(self._run_dir), purge_step=epoch or None)
        return self._writer

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of an epoch."""
        writer = self._open(epoch)
        for name, value in numbers.items():
            writer.add_scalar(name, float(value), epoch)
        writer.flush()

    def image(self, path: Path, epoch: int) -> None:
        """Log an image under its file name."""
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if bgr is None:
            raise ValueError(f"{path}: not a picture")
        self._open(epoch).add_image(path.stem, bgr[..., ::-1].copy(), epoch, dataformats="HWC")

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--log tensorboard needs a package: pip install tensorboard") from error
    return SummaryWriter
