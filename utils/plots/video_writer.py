"""An mp4 file that is complete or not there: pictures in, one by one."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

import cv2
import numpy as np

from utils.core.errors import UserError
from utils.core.files import atomic_path


class Film:
    """A video that is being written under a temporary name; `finish` gives it its own."""

    def __init__(self, path: Path, size_xy: tuple[int, int], fps: float) -> None:
        self.path, self.size_xy, self.frames = path, size_xy, 0
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(atomic_path(path))
        self._writer = cv2.VideoWriter(str(self._temporary), cv2.VideoWriter.fourcc(*"mp4v"), fps, size_xy)
        if not self._writer.isOpened():
            self.abandon()
            raise UserError(f"{path}: OpenCV cannot write mp4 here; use --nosave, and no --save-as-video")

    def add(self, image_bgr: np.ndarray) -> None:
        """Append one (H, W, 3) picture, which must have the film's size."""
        self._writer.write(image_bgr)
        self.frames += 1

    def finish(self) -> None:
        """Complete the file; one that lacks frames is removed and a UserError."""
        self._writer.release()
        if count_frames(self._temporary) < self.frames:  # OpenCV does not say when the disk is full
            self.abandon()
            raise UserError(f"{self.path}: cannot write all {self.frames} frames there (is the disk full?)")
        self._stack.close()

    def abandon(self) -> None:
        """Leave no file, as if there had been an error inside `atomic_path`."""
        self._writer.release()
        stopped = InterruptedError("not written")
        with suppress(UserError):
            self._stack.__exit__(InterruptedError, stopped, None)


def count_frames(path: Path) -> int:
    """Return the number of frames that the video file says it holds, 0 if it cannot be read."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()
