"""Frames from everything `--source` accepts: files, folders, patterns, lists, videos, cameras, streams, the screen."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import cv2

from utils.core.contracts import Frame, FrameSource
from utils.core.errors import UserError
from utils.core.files import is_url
from utils.core.http_client import display_url, fetch_bytes
from utils.core.input_files import walk_files
from utils.core.log import LOGGER
from utils.core.yaml_file import read_text
from utils.datasets.file_access import is_present
from utils.datasets.image_files import (
    MAX_PIXELS,
    ImageFault,
    decode_image,
    quiet_decoders,
    read_image,
)
from utils.datasets.image_suffixes import IMAGE_SUFFIXES
from utils.datasets.sources.streams import ScreenSource, StreamSource, usable_fps, without_password

VIDEO_SUFFIXES = frozenset(
    (".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
)
MAX_DOWNLOAD_BYTES = 100 * 2**20
MAX_MISSING = 0.02  # fraction of frames by which the count of a container may be wrong
MIN_MISSING_S = 0.25  # of a video without which it is incomplete
FAULTS_SHOWN = 10  # warnings for single files; further faults are only counted


def open_source(text: str, vid_stride: int = 1) -> FrameSource:
    """Open a source of frames for prediction.

    Args:
        text: File, folder, tar shard, glob pattern, `.txt` list of files, `.streams` list of addresses, address, camera
            number, or `screen [n] [left top width height]`.
        vid_stride: Use every n-th frame of videos and streams.

    Returns:
        The source. While iterating, unreadable files are warned about and counted; if no frame can be read at all,
        iterating raises UserError.

    Raises:
        UserError: The source does not exist or is not of a known kind.
    """
    text = str(text).strip()
    if not text:
        raise UserError("--source: empty; give a file, folder, pattern, list, URL, camera number or `screen`")
    if vid_stride < 1:
        raise UserError(f"--vid-stride expects a number of at least 1, got {vid_stride}")
    if re.fullmatch(r"screen(\s+-?\d+)*", text, re.IGNORECASE):
        return ScreenSource(text)
    if text.isdecimal():
        return StreamSource([text], vid_stride)
    if is_url(text):
        return _open_url(text, vid_stride)
    path = Path(text)
    if path.is_char_device():
        return StreamSource([text], vid_stride)
    if path.suffix.lower() in {".txt", ".streams"} and path.is_file():
        return _open_list(path, vid_stride)
    return FileSource(_find_files(text), vid_stride)


def _open_url(address: str, vid_stride: int) -> FrameSource:
    parts = _parse_url(address)
    suffix = Path(parts.path).suffix.lower()
    if parts.scheme.lower() in {"http", "https"}:
        if suffix in IMAGE_SUFFIXES:
            return _RemoteImage(address)
        if suffix in VIDEO_SUFFIXES:
            return FileSource([address], vid_stride)
    return StreamSource([address], vid_stride)


def _parse_url(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        _ = parts.port  # validated on access
    except ValueError as error:
        raise UserError(f"{without_password(address)}: not a valid address ({error}); check it") from error
    return parts


def _open_list(path: Path, vid_stride: int) -> FrameSource:
    """Open a list file: streams if its suffix is .streams or all its lines are addresses or cameras, else files."""
    lines = [line.strip() for line in read_text(path, "list file", file_names=True).split("\n")]
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise UserError(f"{path}: empty list; write one file or address per line")
    if path.suffix.lower() == ".streams" or all(is_url(entry) or entry.isdecimal() for entry in entries):
        for entry in entries:
            if is_url(entry):
                _parse_url(entry)
        return StreamSource(entries, vid_stride)
    return FileSource([str(_resolve_listed(path, entry)) for entry in entries], vid_stride)


def _resolve_listed(source: Path, entry: str) -> Path:
    """Resolve a line of a list; `./` and paths missing in the current folder are relative to the list's folder."""
    beside = source.parent / entry
    return beside if entry.startswith("./") or (not Path(entry).exists() and beside.exists()) else Path(entry)


def _find_files(text: str) -> list[str]:
    """Find images, then videos, each sorted, of a file, folder or pattern."""
    path = Path(text)
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    if path.suffix == ".tar" and path.is_file():
        from utils.datasets.shards.shard_set import ShardSet

        shards = ShardSet([text], f"--source {text}")
        for note in shards.notes:
            LOGGER.warning(note)
        return list(shards.images)
    if path.is_file():
        if path.suffix.lower() not in known:
            suffix = path.suffix or "without suffix"
            raise UserError(f"{path}: {suffix} is not a supported image or video format; supported: {_formats()}")
        return [text]
    if path.is_dir():
        found = [str(entry) for entry in path.iterdir()]
    elif any(character in text for character in "*?["):
        found = _expand_pattern(text)
    else:
        raise UserError(f"--source {text}: no such file or folder")
    files = sorted(name for name in found if Path(name).suffix.lower() in known and Path(name).is_file())
    if not files:
        hint = f"; to include subfolders: --source '{path / '**' / '*'}'" if path.is_dir() else ""
        raise UserError(f"{text}: no images or videos ({_formats()}){hint}")
    return sorted(files, key=lambda name: Path(name).suffix.lower() in VIDEO_SUFFIXES)


def _expand_pattern(text: str) -> list[str]:
    """Find the files of a pattern, in which `**` stands for folders at any depth; every folder is visited once."""
    parts = Path(text).parts
    if "**" not in parts:
        return glob.glob(text)  # noqa: PTH207  # Path.glob takes no absolute patterns
    at = parts.index("**")
    head, tail = Path(*parts[:at]), Path(*parts[at + 1 :])
    tail = tail if tail.parts else Path("*")
    found: dict[str, None] = {}
    for base in glob.glob(str(head)):  # noqa: PTH207
        for folder, _ in walk_files(base):
            if not any(part.startswith(".") for part in Path(folder).relative_to(base).parts):  # hidden folders
                found |= dict.fromkeys(_expand_pattern(str(Path(glob.escape(folder)) / tail)))
    return [os.path.normpath(path) for path in found]


def _formats() -> str:
    return " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES))


class FileSource:
    """Images and videos, one after the other in the order given.

    Attributes:
        files: Paths, or addresses of videos.
        vid_stride: Use every n-th frame of videos.
        faults: Number of files that could not be read so far.
        incomplete: A line per video that could be decoded in part only.
    """

    live = False

    def __init__(self, files: Sequence[str], vid_stride: int = 1) -> None:
        self.files, self.vid_stride = list(files), vid_stride
        self.faults = 0
        self.incomplete: Sequence[str] = ()
        self._stopped = False

    def __iter__(self) -> Iterator[list[Frame]]:
        """Yield lists of one frame; unreadable files are warned about and counted."""
        frames, reason = 0, ""
        for i, file in enumerate(self.files, start=1):
            is_video = Path(urlsplit(file).path if is_url(file) else file).suffix.lower() in VIDEO_SUFFIXES
            label = f"{'video' if is_video else 'image'} {i}/{len(self.files)}"
            try:
                for frame in self._video(file, label) if is_video else self._image(file, label):
                    if self._stopped:
                        return
                    frames += 1
                    yield [frame]
            except ImageFault as fault:
                reason = str(fault)
                self._count_fault(reason)
        if not frames:
            raise UserError(reason if len(self.files) == 1 else f"none of {len(self.files)} files could be read")

    def _image(self, file: str, label: str) -> Iterator[Frame]:
        if not is_present(file):
            raise ImageFault(f"{file}: no such file")
        notes: list[str] = []
        image = read_image(Path(file), notes)
        for note in notes:
            LOGGER.warning(note)
        yield Frame(image, file, f"{label} {file}")

    def _video(self, file: str, label: str) -> Iterator[Frame]:
        if not is_url(file) and not Path(file).is_file():
            raise ImageFault(f"{file}: no such file")
        name = without_password(file)
        quiet_decoders()
        capture = cv2.VideoCapture(file, cv2.CAP_FFMPEG)
        try:
            if not capture.isOpened():
                raise ImageFault(f"{name}: cannot be opened as a video")
            count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
            pixels = capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
            if pixels > MAX_PIXELS:
                raise ImageFault(f"{name}: frames of {pixels:.0f} pixels; at most {MAX_PIXELS} are supported")
            fps = usable_fps(capture.get(cv2.CAP_PROP_FPS)) / self.vid_stride
            number, seconds = 0, 0.0
            while all(capture.grab() for _ in range(self.vid_stride)):
                good, image = capture.retrieve()
                if not good or image is None:
                    break
                number += self.vid_stride
                seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                yield Frame(image, name, f"{label} ({number}/{count or '?'}) {name}", number, count, fps)
            self._check_end(name, number, count, count / (fps * self.vid_stride) - seconds)
        finally:
            capture.release()

    def _check_end(self, name: str, number: int, count: int, missing_s: float) -> None:
        """Report a video that ends too early: after `number` of `count` frames, `missing_s` seconds before its end."""
        if number == 0 and count < self.vid_stride:
            raise ImageFault(f"{name}: {count} frames, fewer than --vid-stride {self.vid_stride}")
        if number == 0:
            raise ImageFault(f"{name}: no frame can be read")
        missing = count - number
        if missing >= max(self.vid_stride, count // 10):  # frame counts of containers are often wrong by a few
            LOGGER.warning(f"{name}: ends after frame {number} of {count}")
        # where frame rates vary, the count is an estimate, but the times are right
        if not self._stopped and missing > self.vid_stride + count * MAX_MISSING and missing_s > MIN_MISSING_S:
            fault = f"{name}: only {number} of {count} frames can be decoded, the file is damaged"
            self.incomplete = (*self.incomplete, f"{fault}; repair or encode it again")

    def _count_fault(self, reason: str) -> None:
        self.faults += 1
        if len(self.files) > 1 and self.faults <= FAULTS_SHOWN:
            more = "; further faults are only counted" if self.faults == FAULTS_SHOWN else ""
            LOGGER.warning(f"{reason}; skipped{more}")

    def close(self) -> None:
        """Stop before the next frame."""
        self._stopped = True


class _RemoteImage:
    """One image behind an http(s) address given on the command line, private networks included."""

    live = False
    faults = 0
    incomplete: Sequence[str] = ()

    def __init__(self, address: str) -> None:
        self.address = address

    def __iter__(self) -> Iterator[list[Frame]]:
        name = display_url(self.address)
        content = fetch_bytes(self.address, allow_private=True, max_bytes=MAX_DOWNLOAD_BYTES, deadline=False)
        try:
            image = decode_image(content, Path(urlsplit(self.address).path))
        except ImageFault as fault:
            raise UserError(f"{name}: cannot be decoded as an image") from fault
        yield [Frame(image, name, f"image 1/1 {name}")]

    def close(self) -> None:
        """Do nothing: no resource is held."""
