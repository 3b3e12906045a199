"""Where predictions go: pictures, videos, text labels, crops, a table, a window."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np

from utils.core.contracts import Frame, Results
from utils.core.errors import UserError
from utils.core.files import atomic_path, is_url, write_text
from utils.ops.text import box_lines
from utils.plots.draw import class_name
from utils.plots.output import write_image

Picture = Callable[[], np.ndarray]  # makes, at the first call, the annotated (H, W, 3) BGR image
WRITABLE = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
MAX_STEM_BYTES = 230  # file systems take names of 255
CROP_GAIN, CROP_PAD_PX = 1.02, 10  # behaviour.md 5.3
CSV_COLUMNS = ("Image Name", "Prediction", "Confidence")


def file_name(frame: Frame) -> str:
    """Return the name of the frame's file; an address becomes a name that every file system takes."""
    if is_url(frame.path):
        place = re.sub(r"[?#].*", "", frame.path.split("://", 1)[1])
        is_file = not frame.is_video or frame.count
        return safe_name(place.rstrip("/").rsplit("/", 1)[-1] if is_file else place)
    return Path(frame.path).name


def safe_name(text: str) -> str:
    """Return `text` (a class name, an address) without what cannot stand in, or would leave, a folder."""
    return re.sub(r'[\\/:*?"<>|\x00-\x1f]+', "_", text).strip(" .") or "_"


class Names:
    """Give every source file its own name: the second `a.jpg`, from another folder, becomes `a_2.jpg`."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._taken: set[str] = set()

    def of(self, frame: Frame, stem_only: bool = False) -> str:
        """Return the name for the frame's source, always the same one."""
        key = f"{frame.stream} {frame.path}"
        if key not in self._given:
            name = Path(file_name(frame))
            endless = frame.is_video and not frame.count  # dots in an address are no suffix
            suffix = "" if stem_only or endless else name.suffix
            stem = str(name) if endless else name.stem
            while len(stem.encode("utf-8", "surrogateescape")) > MAX_STEM_BYTES:  # room for numbers and endings
                stem = stem[:-1]
            number, chosen = 1, f"{stem}{suffix}"
            while chosen.lower() in self._taken:
                number += 1
                chosen = f"{stem}_{number}{suffix}"
            self._given[key] = chosen
            self._taken.add(chosen.lower())
        return self._given[key]


def _counted(number: int, one: str, many: str, where: Path) -> str:
    return f"{number} {one if number == 1 else many} in {where}" if number else ""


class PictureSink:
    """Annotated still images, under their own names, in `folder`."""

    stopped = False

    def __init__(self, folder: Path) -> None:
        self.folder, self._names, self._count = folder, Names(), 0

    def write(self, frame: Frame, results: Results, picture: Picture) -> None:
        """Write the picture of a still image; frames of videos are left to VideoSink."""
        if frame.is_video:
            return
        path = self.folder / self._names.of(frame)
        write_image(path if path.suffix.lower() in WRITABLE else path.with_suffix(".png"), picture())
        self._count += 1

    def close(self) -> str:
        """Return what was written."""
        return _counted(self._count, "image", "images", self.folder)


@dataclass
class _Film:
    """A video that is being written."""

    writer: cv2.VideoWriter
    size_xy: tuple[int, int]
    path: Path
    temporary: Path
    stack: ExitStack  # renames `temporary` to `path` when it is closed
    frames: int = 0


def _abandon(stack: ExitStack) -> None:
    """Leave the stack as an error does, so that the file it guards is removed."""
    stopped = InterruptedError("not written")
    with suppress(UserError):
        stack.__exit__(InterruptedError, stopped, None)


def count_frames(path: Path) -> int:
    """Return the number of frames that the video file says it holds, 0 if it cannot be read."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()


class VideoSink:
    """One annotated mp4 per video or stream in `folder`, complete only when it is closed."""

    stopped = False

    def __init__(self, folder: Path) -> None:
        self.folder, self._names, self._count = folder, Names(), 0
        self._open: dict[str, _Film] = {}

    def write(self, frame: Frame, results: Results, picture: Picture) -> None:
        """Append the picture of one frame of a video."""
        if not frame.is_video:
            return
        name = self._names.of(frame, stem_only=True)
        if name not in self._open:
            if frame.count:  # a file: the one before it is over
                self._finish()
            height, width = frame.image.shape[:2]
            stack = ExitStack()
            path = self.folder / f"{name}.mp4"
            temporary = stack.enter_context(atomic_path(path))
            writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), frame.fps, (width, height))
            if not writer.isOpened():
                _abandon(stack)
                raise UserError(f"{path}: OpenCV cannot write mp4 here; use --nosave")
            self._open[name] = _Film(writer, (width, height), path, temporary, stack)
            self._count += 1
        film = self._open[name]
        image = picture()
        same = image.shape[1::-1] == film.size_xy
        film.writer.write(image if same else cv2.resize(image, film.size_xy))  # a stream may change its size
        film.frames += 1

    def _finish(self) -> None:
        films = list(self._open.values())
        self._open.clear()
        for film in films:
            film.writer.release()
            if count_frames(film.temporary) < film.frames:  # OpenCV does not say when the disk is full
                _abandon(film.stack)
                raise UserError(f"{film.path}: cannot write all {film.frames} frames there (is the disk full?)")
            film.stack.close()

    def close(self) -> str:
        """Finish the files and return what was written."""
        self._finish()
        return _counted(self._count, "video", "videos", self.folder)


class TextSink:
    """One text file per image or frame in `folder`: `class x y w h [confidence]`, normalised to the image."""

    stopped = False

    def __init__(self, folder: Path, confidence: bool = False, corners: bool = False) -> None:
        self.folder, self.confidence, self.corners = folder, confidence, corners
        self._names, self._count = Names(), 0

    def write(self, frame: Frame, results: Results, picture: Picture) -> None:
        """Write the boxes; without any there is no file."""
        stem = self._names.of(frame, stem_only=True)
        path = self.folder / (f"{stem}_{frame.number}.txt" if frame.is_video else f"{stem}.txt")
        lines = self._lines(frame, results)
        if lines:
            write_text(path, "\n".join(lines) + "\n")
            self._count += 1
        else:
            path.unlink(missing_ok=True)  # of an earlier run into the same folder

    def _lines(self, frame: Frame, results: Results) -> list[str]:
        if results.boxes is None or results.classes is None:
            return []
        height, width = frame.image.shape[:2]
        scores = results.scores if self.confidence else None
        return box_lines(results.boxes, results.classes, scores, (height, width), self.corners)

    def close(self) -> str:
        """Return what was written."""
        return _counted(self._count, "label file", "label files", self.folder)


class CropSink:
    """Every box as a JPEG of its own in `folder`/class."""

    stopped, suffix = False, ".jpg"

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names
        self._files, self._count = Names(), 0

    def write(self, frame: Frame, results: Results, picture: Picture) -> None:
        """Cut the boxes, a little enlarged, out of the image as it was."""
        if results.boxes is None or results.classes is None:
            return
        stem = self._files.of(frame, stem_only=True)
        if frame.is_video:
            stem = f"{stem}_{frame.number}"
        seen: Counter[int] = Counter()
        for row, (box, index) in enumerate(zip(results.boxes.tolist(), results.classes.tolist(), strict=True)):
            seen[index] += 1
            crop = cut_out(self._pixels(frame, results, row), box)
            if crop.size:
                number = "" if seen[index] == 1 else f"{'_' if frame.is_video else ''}{seen[index]}"
                name = f"{stem}{number}{self.suffix}"
                write_image(self.folder / safe_name(class_name(self.names, index)) / name, crop)
                self._count += 1

    def _pixels(self, frame: Frame, results: Results, row: int) -> np.ndarray:
        """Return the image that object `row` is cut out of."""
        return frame.image

    def close(self) -> str:
        """Return what was written."""
        return _counted(self._count, "crop", "crops", self.folder)


def cut_out(image: np.ndarray, box_xyxy: Sequence[float]) -> np.ndarray:
    """Return the pixels of a box, its sides 1.02 times as long plus 10 px, as far as the image goes."""
    x1, y1, x2, y2 = box_xyxy
    half_w = ((x2 - x1) * CROP_GAIN + CROP_PAD_PX) / 2
    half_h = ((y2 - y1) * CROP_GAIN + CROP_PAD_PX) / 2
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    height, width = image.shape[:2]
    left, right = (int(min(max(value, 0), width)) for value in (centre_x - half_w, centre_x + half_w))
    top, bottom = (int(min(max(value, 0), height)) for value in (centre_y - half_h, centre_y + half_h))
    return np.ascontiguousarray(image[top:bottom, left:right])


class CsvSink:
    """All boxes as rows `Image Name,Prediction,Confidence`; a table that is there already grows."""

    stopped = False

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names, self._count = path, names, 0
        self._stack = ExitStack()
        self._file: TextIO | None = None

    def _open(self) -> TextIO:
        earlier = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        temporary = self._stack.enter_context(atomic_path(self.path))
        file = self._stack.enter_context(temporary.open("w", encoding="utf-8", newline=""))
        file.write(earlier or ",".join(CSV_COLUMNS) + "\n")
        return file

    def write(self, frame: Frame, results: Results, picture: Picture) -> None:
        """Add the boxes of one frame."""
        self._file = self._file or self._open()
        if results.classes is None or results.scores is None:
            return
        rows = csv.writer(self._file, lineterminator="\n")
        for index, score in zip(results.classes.tolist(), results.scores.tolist(), strict=True):
            rows.writerow((file_name(frame), class_name(self.names, index), f"{score:.2f}"))
            self._count += 1

    def close(self) -> str:
        """Finish the file and return what was written."""
        if self._file is None:
            return ""
        self._stack.close()
        return f"{self._count} {'row' if self._count == 1 else 'rows'} in {self.path}"


class WindowSink:
    """A window per source; the key q ends the run."""

    def __init__(self) -> None:
        screens = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
        if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in screens):
            raise UserError("--view-img: there is no screen here (DISPLAY is not set)")  # Qt would end the process
        self.stopped = False
        self._titles: set[str] = set()

    def write(self, frame: Frame, results: Results, picture: Picture) -> None:
        """Show the picture; a still image stays until a key is pressed."""
        try:
            if frame.path not in self._titles:
                cv2.namedWindow(frame.path, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
                cv2.resizeWindow(frame.path, frame.image.shape[1], frame.image.shape[0])
                self._titles.add(frame.path)
            cv2.imshow(frame.path, picture())
            key = cv2.waitKey(1 if frame.is_video else 0)
        except cv2.error as error:
            raise UserError("--view-img: no window can be opened (no screen, or opencv-python-headless)") from error
        self.stopped = key & 0xFF == ord("q")
        if not frame.is_video:
            cv2.destroyWindow(frame.path)
            self._titles.discard(frame.path)

    def close(self) -> str:
        """Close the windows."""
        for title in self._titles:
            cv2.destroyWindow(title)
        return ""
