"""Sinks of the prediction loop: annotated images and videos, label files, crops, a CSV table and a window."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np

from utils.core.contracts import Frame, Results, Sink
from utils.core.errors import UserError
from utils.core.files import atomic_path, is_url, write_text
from utils.ops.label_text import box_lines
from utils.plots.draw import class_name
from utils.plots.figure_io import write_image
from utils.plots.video_writer import VideoWriter

AnnotatedImage = Callable[[], np.ndarray]  # draws the (H, W, 3) BGR image at the first call, then returns the same
Colourize = Callable[[np.ndarray], np.ndarray]  # (H, W) semantic map -> (H, W, 3) BGR image
WRITABLE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
MAX_STEM_BYTES = 230  # file systems limit names to 255 bytes; the rest is for numbers and suffixes
CROP_SCALE, CROP_PAD_PX = 1.02, 10  # enlargement of boxes before they are cropped
JOINED_FPS = 30.0
CSV_COLUMNS = ("Image Name", "Prediction", "Confidence")
STOP_KEY = ord("q")
_DISPLAY_VARIABLES = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")


def file_name(frame: Frame) -> str:
    """Derive a file name from the path or URL of a frame."""
    if is_url(frame.path):
        address = re.sub(r"[?#].*", "", frame.path.split("://", 1)[1])
        is_file = not frame.is_video or frame.count
        return safe_name(address.rstrip("/").rsplit("/", 1)[-1] if is_file else address)
    return Path(frame.path).name


def safe_name(text: str) -> str:
    """Replace the characters of a text that are not valid in file names or would leave the folder."""
    name = re.sub(r'[\\/:*?"<>|\x00-\x1f]+', "_", text).strip(" .") or "_"
    while len(name.encode("utf-8", "surrogateescape")) > MAX_STEM_BYTES:
        name = name[: MAX_STEM_BYTES if len(name) > MAX_STEM_BYTES else -1]
    return name


class UniqueNames:
    """Assign a distinct file name to every source: a second `a.jpg` from another folder becomes `a_2.jpg`."""

    def __init__(self) -> None:
        self._assigned: dict[str, str] = {}
        self._used: set[str] = set()

    def file_name(self, frame: Frame) -> str:
        """Get the name of the frame's source with its suffix; the same for every frame of a source."""
        return self._name(frame, with_suffix=True)

    def stem(self, frame: Frame) -> str:
        """Get the name of the frame's source without its suffix."""
        return self._name(frame, with_suffix=False)

    def frame_stem(self, frame: Frame) -> str:
        """Get the name of the frame without a suffix: that of its source, with the frame number in videos."""
        stem = self.stem(frame)
        return f"{stem}_{frame.number}" if frame.is_video else stem

    def _name(self, frame: Frame, with_suffix: bool) -> str:
        key = f"{frame.stream} {frame.path}"
        if key not in self._assigned:
            name = Path(file_name(frame))
            is_stream = frame.is_video and not frame.count  # a dot in a URL does not start a suffix
            suffix = name.suffix if with_suffix and not is_stream else ""
            stem = str(name) if is_stream else name.stem
            while len(stem.encode("utf-8", "surrogateescape")) > MAX_STEM_BYTES:
                stem = stem[:-1]
            number, chosen = 1, f"{stem}{suffix}"
            while chosen.lower() in self._used:
                number += 1
                chosen = f"{stem}_{number}{suffix}"
            self._assigned[key] = chosen
            self._used.add(chosen.lower())
        return self._assigned[key]


def summarize(number: int, singular: str, plural: str, path: Path) -> str:
    """Format what a sink has written, `2 images in runs/detect/exp`; empty for none."""
    return f"{number} {singular if number == 1 else plural} in {path}" if number else ""


class ImageSink(Sink):
    """Write annotated still images to a folder, under the names of their files."""

    stopped = False

    def __init__(self, folder: Path) -> None:
        self.folder, self._names, self._count = folder, UniqueNames(), 0

    def write(self, frame: Frame, results: Results, annotated: AnnotatedImage) -> None:
        """Write a still image; frames of videos are written by `VideoSink`."""
        if frame.is_video:
            return
        path = self.folder / self._names.file_name(frame)
        write_image(path if path.suffix.lower() in WRITABLE_SUFFIXES else path.with_suffix(".png"), annotated())
        self._count += 1

    def close(self) -> str:
        """Summarize the written files."""
        return summarize(self._count, "image", "images", self.folder)


class VideoSink(Sink):
    """Write an annotated mp4 per video or stream to a folder; a file appears when it is complete."""

    stopped = False

    def __init__(self, folder: Path) -> None:
        self.folder, self._names, self._count = folder, UniqueNames(), 0
        self._writers: dict[str, VideoWriter] = {}

    def write(self, frame: Frame, results: Results, annotated: AnnotatedImage) -> None:
        """Append a frame to its video; still images are ignored."""
        if not frame.is_video:
            return
        name = self._names.stem(frame)
        if name not in self._writers:
            if frame.count:  # files are read one after the other, so the previous one is complete
                self._close_writers()
            height, width = frame.image.shape[:2]
            self._writers[name] = VideoWriter(self.folder / f"{name}.mp4", (width, height), frame.fps)
            self._count += 1
        writer = self._writers[name]
        image = annotated()
        same_size = image.shape[1::-1] == writer.size_xy
        writer.write(image if same_size else cv2.resize(image, writer.size_xy))  # streams may change their size

    def _close_writers(self) -> None:
        writers = list(self._writers.values())
        self._writers.clear()
        for writer in writers:
            writer.close()

    def close(self) -> str:
        """Complete the files and summarize them."""
        self._close_writers()
        return summarize(self._count, "video", "videos", self.folder)


class JoinedVideoSink(Sink):
    """Join annotated still images of equal size to one mp4 with 30 frames per second."""

    stopped = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: VideoWriter | None = None
        self._first_path = ""
        self._failed = False

    def write(self, frame: Frame, results: Results, annotated: AnnotatedImage) -> None:
        """Append a still image; frames of videos are written by `VideoSink`."""
        if frame.is_video or self._failed:
            return
        image = annotated()
        size_xy = (image.shape[1], image.shape[0])
        if self._writer is None:
            self._writer, self._first_path = VideoWriter(self.path, size_xy, JOINED_FPS), frame.path
        if size_xy != self._writer.size_xy:
            self._failed = True
            self._writer.discard()
            raise UserError(size_mismatch(frame.path, size_xy[::-1], self._first_path, self._writer.size_xy[::-1]))
        self._writer.write(image)

    def close(self) -> str:
        """Complete the file and summarize it."""
        if self._writer is None or self._failed:
            return ""
        self._writer.close()
        return summarize(self._writer.frames, "image", "images", self.path)


def size_mismatch(path: object, image_hw: tuple[int, int], first: object, first_hw: tuple[int, int]) -> str:
    """Format the error message for an image that cannot be joined to a video with the first one."""
    sizes = f"{image_hw[1]} x {image_hw[0]} pixels, but {first} has {first_hw[1]} x {first_hw[0]}"
    return f"{path}: {sizes}; --save-as-video joins images of equal size"


class TextSink(Sink):
    """Write a label file per image or frame: lines of `class cx cy w h [confidence]`, normalised to the image.

    Args:
        folder: Of the files.
        confidence: Append the confidence to each line.
        corners: Write x1 y1 x2 y2 instead of centre and size.
    """

    stopped = False

    def __init__(self, folder: Path, confidence: bool = False, corners: bool = False) -> None:
        self.folder, self.confidence, self.corners = folder, confidence, corners
        self._names, self._count = UniqueNames(), 0

    def write(self, frame: Frame, results: Results, annotated: AnnotatedImage) -> None:
        """Write the labels of a frame; without labels no file is written."""
        path = self.folder / f"{self._names.frame_stem(frame)}.txt"
        lines = self._lines(frame, results)
        if lines:
            write_text(path, "\n".join(lines) + "\n")
            self._count += 1
        else:
            path.unlink(missing_ok=True)  # a previous run into the same folder may have left one

    def _lines(self, frame: Frame, results: Results) -> list[str]:
        if results.boxes is None or results.classes is None:
            return []
        height, width = frame.image.shape[:2]
        scores = results.scores if self.confidence else None
        return box_lines(results.boxes, results.classes, scores, (height, width), self.corners)

    def close(self) -> str:
        """Summarize the written files."""
        return summarize(self._count, "label file", "label files", self.folder)


class CropSink(Sink):
    """Write every box, slightly enlarged, as a JPEG in a folder per class."""

    stopped, suffix = False, ".jpg"

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names
        self._file_names, self._count = UniqueNames(), 0

    def write(self, frame: Frame, results: Results, annotated: AnnotatedImage) -> None:
        """Crop the boxes from the image without annotations."""
        if results.boxes is None or results.classes is None:
            return
        stem = self._file_names.frame_stem(frame)
        per_class: Counter[int] = Counter()
        for row, (box, index) in enumerate(zip(results.boxes.tolist(), results.classes.tolist(), strict=True)):
            per_class[index] += 1
            crop = crop_box(self._pixels(frame, results, row), box)
            if crop.size:
                number = "" if per_class[index] == 1 else f"{'_' if frame.is_video else ''}{per_class[index]}"
                name = f"{stem}{number}{self.suffix}"
                write_image(self.folder / safe_name(class_name(self.names, index)) / name, crop)
                self._count += 1

    def _pixels(self, frame: Frame, results: Results, row: int) -> np.ndarray:
        """Get the image from which object `row` is cropped."""
        return frame.image

    def close(self) -> str:
        """Summarize the written files."""
        return summarize(self._count, "crop", "crops", self.folder)


def crop_box(image: np.ndarray, box_xyxy: Sequence[float]) -> np.ndarray:
    """Crop a box from an image, enlarged by 2 % plus 10 px per side length and clipped to the image.

    Args:
        image: (H, W, channels) pixels.
        box_xyxy: Corners in pixels.

    Returns:
        The pixels, empty if the box lies outside the image.
    """
    x1, y1, x2, y2 = box_xyxy
    half_w = ((x2 - x1) * CROP_SCALE + CROP_PAD_PX) / 2
    half_h = ((y2 - y1) * CROP_SCALE + CROP_PAD_PX) / 2
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    height, width = image.shape[:2]
    left, right = (int(min(max(value, 0), width)) for value in (centre_x - half_w, centre_x + half_w))
    top, bottom = (int(min(max(value, 0), height)) for value in (centre_y - half_h, centre_y + half_h))
    return np.ascontiguousarray(image[top:bottom, left:right])


class CsvSink(Sink):
    """Write all boxes to a CSV table of image name, class and confidence; rows are appended to an existing table."""

    stopped = False

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names, self._count = path, names, 0
        self._stack = ExitStack()
        self._file: TextIO | None = None

    def _open(self) -> TextIO:
        existing = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        temporary = self._stack.enter_context(atomic_path(self.path))
        file = self._stack.enter_context(temporary.open("w", encoding="utf-8", newline=""))
        file.write(existing or ",".join(CSV_COLUMNS) + "\n")
        return file

    def write(self, frame: Frame, results: Results, annotated: AnnotatedImage) -> None:
        """Append the boxes of a frame."""
        self._file = self._file or self._open()
        if results.classes is None or results.scores is None:
            return
        writer = csv.writer(self._file, lineterminator="\n")
        for index, score in zip(results.classes.tolist(), results.scores.tolist(), strict=True):
            writer.writerow((file_name(frame), class_name(self.names, index), f"{score:.2f}"))
            self._count += 1

    def close(self) -> str:
        """Complete the file and summarize it."""
        if self._file is None:
            return ""
        self._stack.close()
        return f"{self._count} {'row' if self._count == 1 else 'rows'} in {self.path}"


class WindowSink(Sink):
    """Show annotated images in a window per source; the key q stops the prediction.

    Args:
        colourize: Also show the coloured semantic map, in a second window.
    """

    def __init__(self, colourize: Colourize | None = None) -> None:
        if sys.platform.startswith("linux") and not any(map(os.environ.get, _DISPLAY_VARIABLES)):
            raise UserError("--view-img: no display (DISPLAY is not set); leave --view-img out")  # Qt would abort
        self.stopped, self.colourize = False, colourize
        self._titles: list[str] = []  # of the open windows

    def write(self, frame: Frame, results: Results, annotated: AnnotatedImage) -> None:
        """Show a frame; a still image remains until a key is pressed."""
        views = [(frame.path, annotated())]
        if self.colourize is not None and results.semantic is not None:
            views.append((f"{frame.path} (classes)", self.colourize(results.semantic.numpy())))
        delay_ms = 1 if frame.is_video else 0  # 0: until a key is pressed
        try:
            for title, image in views:
                if title not in self._titles:
                    self._open(title, size_xy=image.shape[1::-1])
                cv2.imshow(title, image)
            pressed = cv2.waitKey(delay_ms) % 256  # the higher bits are modifier keys
        except cv2.error as error:
            raise UserError(
                "--view-img: OpenCV cannot open a window; start it with a display and without opencv-python-headless"
            ) from error
        self.stopped = pressed == STOP_KEY
        if delay_ms == 0:
            self.close()

    def _open(self, title: str, size_xy: tuple[int, ...]) -> None:
        """Create a window that users can resize, at the size of the image."""
        width, height = size_xy
        cv2.namedWindow(title, cv2.WINDOW_KEEPRATIO | cv2.WINDOW_NORMAL)
        cv2.resizeWindow(title, width, height)
        self._titles.append(title)

    def close(self) -> str:
        """Close the windows."""
        while self._titles:
            cv2.destroyWindow(self._titles.pop())
        return ""
