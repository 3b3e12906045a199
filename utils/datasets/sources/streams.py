"""Frames from sources without an end: cameras, network streams, the screen."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from utils.core.contracts import Frame
from utils.core.errors import UserError
from utils.core.log import LOGGER

FPS_FALLBACK = 30.0  # behaviour.md 4.11
ATTEMPTS = 10  # in a row without a frame before a stream is given up, about four minutes
LONGEST_PAUSE_S = 30.0
CONNECT_MS = 10_000
_YOUTUBE = {"youtube.com", "www.youtube.com", "m.youtube.com", "youtu.be"}

Opener = Callable[[str], Any]


def without_password(address: str) -> str:
    """Return a URL without user name and password, which have no place on a console or in a file name."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", address)


def usable_fps(fps: float) -> float:
    """Return `fps`, or the fallback where a container says nothing sensible."""
    return fps if 0.1 <= fps <= 1000 else FPS_FALLBACK


def open_capture(address: str) -> cv2.VideoCapture:
    """Open a camera (a number) or whatever else OpenCV can open, giving up after ten seconds."""
    if address.isdecimal():
        return cv2.VideoCapture(int(address))
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, CONNECT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, CONNECT_MS]
    capture = cv2.VideoCapture(_playable(address), cv2.CAP_FFMPEG, timeouts)
    return capture if capture.isOpened() else cv2.VideoCapture(address)


def _playable(address: str) -> str:
    """Return the address of the video behind a YouTube page; every other address as it is."""
    if urlsplit(address).hostname not in _YOUTUBE:
        return address
    try:
        import yt_dlp
    except ModuleNotFoundError as error:
        raise UserError("YouTube needs the package yt-dlp; install it with: pip install yt-dlp") from error
    options = {"format": "best[ext=mp4][vcodec!=none]/best", "quiet": True, "noplaylist": True}
    try:
        with yt_dlp.YoutubeDL(options) as reader:
            return str(reader.extract_info(address, download=False)["url"])
    except (yt_dlp.utils.YoutubeDLError, KeyError) as error:
        raise UserError(f"no playable video there ({str(error).splitlines()[0]})") from error


@dataclass
class _Newest:
    """What a reading thread hands over. Guarded by the condition all threads of a source share."""

    image: np.ndarray | None = None
    number: int = 0
    fps: float = FPS_FALLBACK
    tried: bool = False  # the first attempt to open is over
    ended: bool = False
    fault: str = ""
    ever: bool = False  # at least one frame came


class _Reader(threading.Thread):
    """Keep the newest frame of one stream; open it again, with growing pauses, when it breaks off."""

    def __init__(self, address: str, stride: int, opener: Opener, news: threading.Condition, pause_s: float) -> None:
        super().__init__(daemon=True, name=f"stream {without_password(address)}")
        self.address, self.stride, self.opener, self.news, self.pause_s = address, stride, opener, news, pause_s
        self.newest = _Newest()
        self.stopped = threading.Event()

    def run(self) -> None:
        failures = 0
        while not self.stopped.is_set():
            count, finite, fault = self._play()
            failures = 0 if count else failures + 1
            self.newest.fault = fault
            if finite or failures >= ATTEMPTS or self.stopped.is_set():
                break
            if self.newest.ever and failures <= 1:
                LOGGER.warning(f"{without_password(self.address)}: stream lost, connecting again")
            with self.news:
                self.newest.tried = True
                self.news.notify_all()
            self.stopped.wait(min(LONGEST_PAUSE_S, self.pause_s * 2**failures))
        with self.news:
            self.newest.tried = self.newest.ended = True
            self.news.notify_all()

    def _play(self) -> tuple[int, bool, str]:
        """Read until the stream breaks off. Return how many frames came, whether it has an end, what is wrong."""
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
                self._hand_over(image, fps)
                if finite:  # a file has no clock of its own
                    self.stopped.wait(self.stride / fps)
            return count, finite and count > 0, "sends no frames"
        finally:
            capture.release()

    def _hand_over(self, image: np.ndarray, fps: float) -> None:
        with self.news:
            self.newest.image, self.newest.fps = image, fps / self.stride
            self.newest.number += self.stride
            self.newest.tried = self.newest.ever = True
            self.news.notify_all()


class StreamSource:
    """The newest frames of several cameras or streams, together."""

    live = True

    def __init__(
        self, addresses: Sequence[str], stride: int = 1, opener: Opener = open_capture, pause_s: float = 0.5
    ) -> None:
        self.faults = 0
        self._news = threading.Condition()
        self._readers = [_Reader(address, stride, opener, self._news, pause_s) for address in addresses]

    def __iter__(self) -> Iterator[list[Frame]]:
        """Yield the frames that are new since the last time, at most one of each stream."""
        for reader in self._readers:
            reader.start()
        try:
            self._wait_for_first()
            while frames := self._fresh():
                yield frames
            if not any(reader.newest.ever for reader in self._readers):
                raise UserError(f"{self._complaint(self._readers)}; nothing to predict on")
        finally:
            self.close()

    def _wait_for_first(self) -> None:
        with self._news:
            while not all(reader.newest.tried for reader in self._readers):
                self._news.wait(0.5)
        lost = [reader for reader in self._readers if not reader.newest.ever]
        if len(lost) == len(self._readers):
            raise UserError(self._complaint(lost))
        for reader in lost:
            LOGGER.warning(f"{self._complaint([reader])}; trying again in the background")

    @staticmethod
    def _complaint(readers: Sequence[_Reader]) -> str:
        return "; ".join(f"{_title(reader.address)}: {reader.newest.fault or 'lost'}" for reader in readers)

    def _fresh(self) -> list[Frame]:
        """Wait for news; an empty list means that every stream has ended."""
        with self._news:
            while True:
                frames = []
                for i, reader in enumerate(self._readers):
                    newest = reader.newest
                    if newest.image is None:
                        continue
                    address = without_password(reader.address)
                    text = f"stream {i + 1}/{len(self._readers)} ({newest.number}) {address}"
                    frames.append(Frame(newest.image, address, text, newest.number, fps=newest.fps, stream=i))
                    newest.image = None
                if frames or all(reader.newest.ended for reader in self._readers):
                    return frames
                self._news.wait(0.5)  # a timeout lets Ctrl-C through

    def close(self) -> None:
        """Stop reading."""
        for reader in self._readers:
            reader.stopped.set()


def _title(address: str) -> str:
    return f"camera {address}" if address.isdecimal() else without_password(address)


class ScreenSource:
    """What the screen shows, again and again. Text: `screen [n] [left top width height]`, pixels."""

    live = True
    faults = 0

    def __init__(self, text: str) -> None:
        numbers = [int(part) for part in text.split()[1:]]
        if len(numbers) not in (0, 1, 4, 5):
            raise UserError(f"--source {text!r}: expected `screen`, then a screen number, then left top width height")
        self._index = numbers[0] if len(numbers) in (1, 5) else 0
        self._box = numbers[-4:] if len(numbers) >= 4 else None
        self._stopped = False

    def __iter__(self) -> Iterator[list[Frame]]:
        """Yield one frame at a time, as fast as they are taken."""
        try:
            import mss
            from mss.exception import ScreenShotError
        except ModuleNotFoundError as error:
            raise UserError("--source screen needs the package mss; install it with: pip install mss") from error
        try:
            with mss.mss() as camera:
                region = self._region(camera.monitors)
                number = 0
                while not self._stopped:
                    number += 1
                    image = np.ascontiguousarray(np.asarray(camera.grab(region))[:, :, :3])
                    yield [Frame(image, f"screen_{self._index}", f"screen {self._index} ({number})", number)]
        except ScreenShotError as error:
            raise UserError(f"--source screen: the screen cannot be read ({error})") from error

    def _region(self, monitors: list[dict[str, int]]) -> dict[str, int]:
        """Return the rectangle in mss's coordinates; its monitor 0 is all screens together."""
        if not 0 <= self._index < len(monitors):
            raise UserError(f"--source screen {self._index}: there are screens 0 (all) to {len(monitors) - 1}")
        monitor = monitors[self._index]
        if self._box is None:
            return {key: monitor[key] for key in ("left", "top", "width", "height")}
        left, top, width, height = self._box
        if width < 1 or height < 1:
            raise UserError(f"--source screen: width and height must be positive, got {width} {height}")
        return {"left": monitor["left"] + left, "top": monitor["top"] + top, "width": width, "height": height}

    def close(self) -> None:
        """Stop before the next frame."""
        self._stopped = True
