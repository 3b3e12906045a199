"""Where predictions go: pictures, videos, text labels, crops, a table, a window."""

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

from utils.core.contracts import Frame, Results
from utils.core.errors import UserError
from utils.core.files import atomic_path, is_url, write_text
from utils.ops.label_text import box_lines
from utils.plots.draw import class_name
from utils.plots.figure_io import write_image
from utils.plots.video_writer import Film

Picture = Callable[[], np.ndarray]  # makes, at the first call, the annotated (H, W, 3) BGR image
Colours = Callable[[np.ndarray], np.ndarray]  # an (H, W) map of classes as an (H, W, 3) BGR image
WRITABLE = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
MAX_STEM_BYTES = 230  # file systems take names of 255
CROP_GAIN, CROP_PAD_PX = 1.02, 10  # behaviour.md 5.3
JOINED_FPS = 30.0  # behaviour.md 12.9
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


def counted(number: int, one: str, many: str, where: Path) -> str:
    """Return `2 images in runs/detect/exp`, nothing for none."""
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
        return counted(self._count, "image", "images", self.folder)


class VideoSink:
    """One annotated mp4 per video or stream in `folder`, complete only when it is closed."""

    stopped = False

    def __init__(self, folder: Path) -> None:
        self.folder, self._names, self._count = folder, Names(), 0
        self._open: dict[str, Film] = {}

    def write(self, frame: Frame, results: Results, picture: Picture) -> None:
        """Append the picture of one frame of a video."""
        if not frame.is_video:
            return
        name = self._names.of(frame, stem_only=True)
        if name not in self._open:
            if frame.count:  # a file: the one before it is over
                self._finish()
            height, width = frame.image.shape[:2]
            self._open[name] = Film(self.folder / f"{name}.mp4", (width, height), frame.fps)
            self._count += 1
        film = self._open[name]
        image = picture()
        same = image.shape[1::-1] == film.size_xy
        film.add(image if same else cv2.resize(image, film.size_xy))  # a stream may change its size

    def _finish(self) -> None:
        films = list(self._open.values())
        self._open.clear()
        for film in films:
            film.finish()

    def close(self) -> str:
        """Finish the files and return what was written."""
        self._finish()
        return counted(self._count, "video", "videos", self.folder)


class JoinSink:
    """The pictures of all still images as one mp4, 30 a second; they must be of one size."""

    stopped = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._film: Film | None = None
        self._first = ""
        self._failed = False

    def write(self, frame: Frame, results: Results, picture: Picture) -> None:
        """Append the picture of a still image; videos have a file of their own anyway."""
        if frame.is_video or self._failed:
            return
        image = picture()
        size_xy = (image.shape[1], image.shape[0])
        if self._film is None:
            self._film, self._first = Film(self.path, size_xy, JOINED_FPS), frame.path
        if size_xy != self._film.size_xy:
            self._failed = True
            self._film.abandon()
            raise UserError(other_size(frame.path, size_xy[::-1], self._first, self._film.size_xy[::-1]))
        self._film.add(image)

    def close(self) -> str:
        """Finish the file and return what was written."""
        if self._film is None or self._failed:
            return ""
        self._film.finish()
        return f"{self._film.frames} {'picture' if self._film.frames == 1 else 'pictures'} in {self.path}"


def other_size(path: object, image_hw: tuple[int, int], first: object, first_hw: tuple[int, int]) -> str:
    """Return what is wrong with an image that does not fit into the film."""
    sizes = f"{image_hw[1]} x {image_hw[0]} pixels, but {first} has {first_hw[1]} x {first_hw[0]}"
    return f"{path}: {sizes}; --save-as-video joins images of one size"


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
        return counted(self._count, "label file", "label files", self.folder)


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
        return counted(self._count, "crop", "crops", self.folder)


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
    """A window per source, and with `colours` a second one for the classes of pixels; the key q ends the run."""

    def __init__(self, colours: Colours | None = None) -> None:
        screens = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
        if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in screens):
            raise UserError("--view-img: there is no screen here (DISPLAY is not set)")  # Qt would end the process
        self.stopped, self.colours = False, colours
        self._titles: set[str] = set()

    def write(self, frame: Frame, results: Results, picture: Picture) -> None:
        """Show the picture; a still image stays until a key is pressed."""
        shown = {frame.path: picture()}
        if self.colours is not None and results.semantic is not None:
            shown[f"{frame.path} (classes)"] = self.colours(results.semantic.numpy())
        try:
            for title, image in shown.items():
                if title not in self._titles:
                    cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
                    cv2.resizeWindow(title, image.shape[1], image.shape[0])
                    self._titles.add(title)
                cv2.imshow(title, image)
            key = cv2.waitKey(1 if frame.is_video else 0)
        except cv2.error as error:
            raise UserError("--view-img: no window can be opened (no screen, or opencv-python-headless)") from error
        self.stopped = key & 0xFF == ord("q")
        if not frame.is_video:
            self.close()

    def close(self) -> str:
        """Close the windows."""
        for title in self._titles:
            cv2.destroyWindow(title)
        self._titles.clear()
        return ""
