"""Writer of mp4 videos that appear only when they are complete."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

import cv2
import numpy as np

from utils.core.errors import UserError
from utils.core.files import atomic_path


class VideoWriter:
    """Write an mp4 file under a temporary name; `close` renames it into place.

    Args:
        path: The file.
        size_xy: Width and height of the frames.
        fps: Frames per second.

    Raises:
        UserError: OpenCV cannot write the file.
    """

    def __init__(self, path: Path, size_xy: tuple[int, int], fps: float) -> None:
        self.path, self.size_xy, self.frames = path, size_xy, 0
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(atomic_path(path))
        self._writer = cv2.VideoWriter(str(self._temporary), cv2.VideoWriter.fourcc(*"mp4v"), fps, size_xy)
        if not self._writer.isOpened():
            self.discard()
            raise UserError(f"{path}: OpenCV cannot write mp4 files; use --nosave and leave --save-as-video out")

    def write(self, image_bgr: np.ndarray) -> None:
        """Append one (H, W, 3) uint8 frame of the video's size."""
        self._writer.write(image_bgr)
        self.frames += 1

    def close(self) -> None:
        """Complete the file; if frames are missing, remove it and raise UserError."""
        self._writer.release()
        if not self._temporary.exists():
            self.discard()
            raise UserError(f"{self.path}: was removed while it was written; run it again")
        if count_frames(self._temporary) < self.frames:  # OpenCV does not report write errors
            self.discard()
            raise UserError(f"{self.path}: cannot write all {self.frames} frames; check the free disk space")
        self._stack.close()

    def discard(self) -> None:
        """Remove the file, as `atomic_path` does after an exception."""
        self._writer.release()
        stopped = InterruptedError("not written")
        with suppress(UserError):
            self._stack.__exit__(InterruptedError, stopped, None)


def count_frames(path: Path) -> int:
    """Read the number of frames of a video file; 0 if it cannot be read."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()
