"""Live frame sources: cameras, network streams, the screen."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from utils.core.contracts import Frame
from utils.core.errors import UserError
from utils.core.files import is_url
from utils.core.log import LOGGER

FPS_FALLBACK = 30.0  # where a container states none, or an implausible one
ATTEMPTS = 10  # consecutive ones without a frame before a stream ends, about four minutes
MAX_PAUSE_S = 30.0  # between attempts
CONNECT_MS = 10_000
FIRST_WAIT_S = 5.0  # for all other streams once one has sent a frame
NOTICE_S = 10.0  # between messages while no stream has sent a frame
_YOUTUBE = {"youtube.com", "www.youtube.com", "m.youtube.com", "youtu.be"}

Opener = Callable[[str], Any]


def without_password(address: str) -> str:
    """Remove user name and password from an address, for messages and file names."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", address)


def usable_fps(fps: float) -> float:
    """Validate a frame rate; implausible ones become FPS_FALLBACK."""
    return fps if 0.1 <= fps <= 1000 else FPS_FALLBACK


def open_capture(address: str) -> cv2.VideoCapture:
    """Open a camera (a number) or anything else OpenCV opens, with a timeout of CONNECT_MS."""
    if address.isdecimal():
        return cv2.VideoCapture(int(address))
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, CONNECT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, CONNECT_MS]
    capture = cv2.VideoCapture(_resolve_youtube(address), cv2.CAP_FFMPEG, timeouts)
    if capture.isOpened() or is_url(address):  # the other backends of OpenCV have no timeout
        return capture
    return cv2.VideoCapture(address)


def _resolve_youtube(address: str) -> str:
    """Resolve a YouTube page to the address of its video; other addresses stay as they are."""
    if urlsplit(address).hostname not in _YOUTUBE:
        return address
    try:
        import yt_dlp
    except ModuleNotFoundError as error:
        raise UserError("--source: YouTube requires the package yt-dlp; run `pip install yt-dlp`") from error
    options = {"format": "best[ext=mp4][vcodec!=none]/best", "quiet": True, "noplaylist": True}
    try:
        with yt_dlp.YoutubeDL(options) as reader:
            return str(reader.extract_info(address, download=False)["url"])
    except (yt_dlp.utils.YoutubeDLError, KeyError) as error:
        raise UserError(f"--source: no playable video ({str(error).splitlines()[0]})") from error


@dataclass
class _LatestFrame:
    """Newest frame and state of a reader thread, guarded by the condition that all threads of a source share."""

    image: np.ndarray | None = None
    number: int = 0
    fps: float = FPS_FALLBACK
    tried: bool = False  # the first attempt to open has finished
    ended: bool = False
    fault: str = ""
    ever: bool = False  # at least one frame has arrived


class _Reader(threading.Thread):
    """Thread that keeps the latest frame of one stream and reopens it with growing pauses when it ends."""

    def __init__(self, address: str, stride: int, opener: Opener, updated: threading.Condition, pause_s: float) -> None:
        super().__init__(daemon=True, name=f"stream {without_password(address)}")
        self.address, self.stride, self.opener, self.updated, self.pause_s = address, stride, opener, updated, pause_s
        self.latest = _LatestFrame()
        self.stopped = threading.Event()

    def run(self) -> None:
        failures = 0
        while not self.stopped.is_set():
            count, finite, fault = self._play()
            failures = 0 if count else failures + 1
            self.latest.fault = fault
            if finite or failures >= ATTEMPTS or self.stopped.is_set():
                break
            if failures > 1:
                LOGGER.warning(f"{_title(self.address)}: {fault} (attempt {failures} of {ATTEMPTS})")
            if self.latest.ever and failures <= 1:
                LOGGER.warning(f"{without_password(self.address)}: connection lost; reconnecting")
            with self.updated:
                self.latest.tried = True
                self.updated.notify_all()
            self.stopped.wait(min(MAX_PAUSE_S, self.pause_s * 2**failures))
        with self.updated:
            self.latest.tried = self.latest.ended = True
            self.updated.notify_all()

    def _play(self) -> tuple[int, bool, str]:
        """Read until the stream ends; returns the number of frames, whether the stream is finite, and the fault."""
        try:
            capture = self.opener(self.address)
        except UserError as error:
            return 0, True, str(error)
        try:
            if not capture.isOpened():
                return 0, False, "cannot be opened"
            finite = capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
            fps = usable_fps(capture.get(cv2.CAP_PROP_FPS))
            count = 0
            while not self.stopped.is_set() and all(capture.grab() for _ in range(self.stride)):
                good, image = capture.retrieve()
                if not good or image is None:
                    break
                count += 1
                self._publish(image, fps)
                if finite:  # files are read in real time
                    self.stopped.wait(self.stride / fps)
            return count, finite and count > 0, "sends no frames"
        finally:
            capture.release()

    def _publish(self, image: np.ndarray, fps: float) -> None:
        with self.updated:
            self.latest.image, self.latest.fps = image, fps / self.stride
            self.latest.number += self.stride
            self.latest.tried = self.latest.ever = True
            self.updated.notify_all()


class StreamSource:
    """The latest frames of several cameras or streams."""

    live = True
    incomplete: Sequence[str] = ()

    def __init__(
        self, addresses: Sequence[str], stride: int = 1, opener: Opener = open_capture, pause_s: float = 0.5
    ) -> None:
        self.faults = 0
        self._updated = threading.Condition()
        self._readers = [_Reader(address, stride, opener, self._updated, pause_s) for address in addresses]

    def __iter__(self) -> Iterator[list[Frame]]:
        """Yield the frames that are new since the last iteration, at most one per stream."""
        for reader in self._readers:
            reader.start()
        try:
            self._wait_for_first()
            while frames := self._new_frames():
                yield frames
            silent = [reader for reader in self._readers if not reader.latest.ever]
            if len(silent) == len(self._readers):
                raise UserError(f"{self._faults_of(self._readers)}; no frames to predict on")
            self.faults = len(silent)
            for reader in silent:
                LOGGER.warning(f"{self._faults_of([reader])}; given up")
        finally:
            self.close()

    def _wait_for_first(self) -> None:
        start = noticed = time.monotonic()
        first = None  # when the first frame came
        with self._updated:
            while waiting := [reader for reader in self._readers if not reader.latest.tried]:
                now = time.monotonic()
                if any(reader.latest.ever for reader in self._readers):
                    first = first or now
                    if now - first > FIRST_WAIT_S:
                        break
                if now - noticed > NOTICE_S:
                    names = ", ".join(_title(reader.address) for reader in waiting)
                    LOGGER.info(f"waiting for {names} ({now - start:.0f} s)")
                    noticed = now
                self._updated.wait(0.5)
        lost = [reader for reader in self._readers if not reader.latest.ever]
        if len(lost) == len(self._readers):
            raise UserError(self._faults_of(lost))
        for reader in lost:
            fault = self._faults_of([reader]) if reader.latest.tried else f"{_title(reader.address)}: not connected yet"
            LOGGER.warning(f"{fault}; retrying in the background")

    @staticmethod
    def _faults_of(readers: Sequence[_Reader]) -> str:
        return "; ".join(f"{_title(reader.address)}: {reader.latest.fault or 'connection lost'}" for reader in readers)

    def _new_frames(self) -> list[Frame]:
        """Wait for new frames; an empty list means that all streams have ended, or all that ever sent a frame."""
        with self._updated:
            while True:
                frames = []
                for i, reader in enumerate(self._readers):
                    latest = reader.latest
                    if latest.image is None:
                        continue
                    address = without_password(reader.address)
                    text = f"stream {i + 1}/{len(self._readers)} ({latest.number}) {address}"
                    frames.append(Frame(latest.image, address, text, latest.number, fps=latest.fps, stream=i))
                    latest.image = None
                ever = [reader.latest.ended for reader in self._readers if reader.latest.ever]
                if frames or (ever and all(ever)) or all(reader.latest.ended for reader in self._readers):
                    return frames
                self._updated.wait(0.5)  # the timeout lets KeyboardInterrupt through

    def close(self) -> None:
        """Stop all reader threads."""
        for reader in self._readers:
            reader.stopped.set()


def _title(address: str) -> str:
    return f"camera {address}" if address.isdecimal() else without_password(address)


class ScreenSource:
    """Screenshots, as fast as they are consumed.

    Args:
        text: `screen [n] [left top width height]`: screen number, 0 for all screens, and region in pixels.
    """

    live = True
    faults = 0
    incomplete: Sequence[str] = ()

    def __init__(self, text: str) -> None:
        numbers = [int(part) for part in text.split()[1:]]
        if len(numbers) not in (0, 1, 4, 5):
            raise UserError(f"--source {text!r}: expected `screen [n] [left top width height]`")
        self._index = numbers[0] if len(numbers) in (1, 5) else 0
        self._box = numbers[-4:] if len(numbers) >= 4 else None
        self._stopped = False

    def __iter__(self) -> Iterator[list[Frame]]:
        """Yield lists of one frame."""
        try:
            import mss
            from mss.exception import ScreenShotError
        except ModuleNotFoundError as error:
            raise UserError("--source screen: requires the package mss; run `pip install mss`") from error
        try:
            with mss.mss() as capture:
                region = self._region(capture.monitors)
                number = 0
                while not self._stopped:
                    number += 1
                    image = np.ascontiguousarray(np.asarray(capture.grab(region))[:, :, :3])
                    yield [Frame(image, f"screen_{self._index}", f"screen {self._index} ({number})", number)]
        except ScreenShotError as error:
            raise UserError(f"--source screen: cannot capture the screen ({error})") from error

    def _region(self, monitors: list[dict[str, int]]) -> dict[str, int]:
        """Compute the region in mss's coordinates; its monitor 0 spans all screens."""
        if not 0 <= self._index < len(monitors):
            raise UserError(f"--source screen {self._index}: no such screen; choose 0 (all) to {len(monitors) - 1}")
        monitor = monitors[self._index]
        if self._box is None:
            return {key: monitor[key] for key in ("left", "top", "width", "height")}
        left, top, width, height = self._box
        if width < 1 or height < 1:
            raise UserError(f"--source screen: width and height must be positive, got {width} and {height}")
        return {"left": monitor["left"] + left, "top": monitor["top"] + top, "width": width, "height": height}

    def close(self) -> None:
        """Stop before the next frame."""
        self._stopped = True
