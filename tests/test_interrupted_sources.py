"""Sources and outputs of predictions that fail on the way: reported, counted, and never a silent success."""

import importlib
import logging
import shutil
import threading
import time

import cv2
import numpy as np
import pytest
from test_sources import FakeCamera

from utils.core.errors import UserError
from utils.datasets.sources import streams
from utils.datasets.sources.frame_sources import open_source
from utils.datasets.sources.streams import StreamSource


@pytest.fixture
def logged(caplog):
    """Text of all log lines so far, as a function."""
    logger = logging.getLogger("polyolo")
    caplog.set_level(logging.INFO, logger="polyolo")
    logger.addHandler(caplog.handler)
    yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.removeHandler(caplog.handler)


def write_noise_video(path, frames=120):
    """Write an mp4 whose frames take many bytes."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30.0, (96, 64))
    rng = np.random.default_rng(0)
    for _ in range(frames):
        writer.write(rng.integers(0, 255, (64, 96, 3), np.uint8))
    writer.release()
    return path


def predict(weights, source, project, **options):
    """Run detect.py in this process."""
    options = {"nosave": False} | options
    return importlib.import_module("detect").run(
        weights=[str(weights)], source=str(source), imgsz=[64], project=str(project), device="cpu", **options
    )


def test_video_with_a_hole_is_an_error(tmp_path, network_file, logged):
    path = write_noise_video(tmp_path / "a.mp4")
    content = bytearray(path.read_bytes())
    half, end = len(content) // 2, len(content) * 7 // 10
    content[half:end] = bytes(end - half)
    path.write_bytes(content)
    source = open_source(str(path))
    frames = len(list(source))
    assert 0 < frames < 100 and f"only {frames} of 120 frames can be decoded" in source.incomplete[0]
    with pytest.raises(UserError, match=r"a\.mp4: only \d+ of 120 frames can be decoded"):
        predict(network_file, path, tmp_path / "p")
    assert (tmp_path / "p" / "exp" / "a.mp4").is_file() and "saved 1 video" in logged()  # what there is, is kept


def test_complete_and_stopped_videos_are_no_errors(tmp_path):
    path = write_noise_video(tmp_path / "a.mp4", 60)
    for stride in (1, 7, 50):
        source = open_source(str(path), vid_stride=stride)
        assert len(list(source)) == 60 // stride and not source.incomplete
    source = open_source(str(path))
    next(iter(source))
    source.close()
    assert not source.incomplete


@pytest.mark.parametrize("kind", ["images", "video", "last image", "replaced"])
def test_output_folder_that_vanishes(tmp_path, network_file, monkeypatch, kind):
    (tmp_path / "in").mkdir()
    for i in range(5):
        cv2.imwrite(str(tmp_path / "in" / f"{i}.jpg"), np.full((64, 64, 3), 40 * i, np.uint8))
    source = write_noise_video(tmp_path / "a.mp4", 20) if kind == "video" else tmp_path / "in"
    module = importlib.import_module("utils.engine.predict")
    count, after = 0, {"last image": 5}.get(kind, 3)
    original = module.count_classes

    def counting(*arguments):
        nonlocal count
        count += 1
        if count == after:
            shutil.rmtree(tmp_path / "p")
            if kind == "replaced":
                (tmp_path / "p" / "exp").mkdir(parents=True)
        return original(*arguments)

    monkeypatch.setattr(module, "count_classes", counting)
    with pytest.raises(UserError, match="was removed"):
        predict(network_file, source, tmp_path / "p")
    assert not (tmp_path / "p" / "exp" / "4.jpg").exists()


def test_patterns_through_loops_of_links(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / ".hidden").mkdir()
    for name in ("a/1.jpg", "a/b/2.jpg", "a/.hidden/3.jpg"):
        cv2.imwrite(str(tmp_path / name), np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "b" / "loop").symlink_to(tmp_path / "a")
    for pattern in ("a/**/*.jpg", "**/*", "**/b/../**/*.jpg", "**"):
        files = [str(file) for file in open_source(str(tmp_path / pattern)).files]
        assert sorted(files) == [str(tmp_path / "a" / "1.jpg"), str(tmp_path / "a" / "b" / "2.jpg")], pattern


# ----------------------------------------------------------------------------------------------------------------------
# Streams


def test_one_dead_stream_does_not_delay_the_others(monkeypatch, logged):
    monkeypatch.setattr(streams, "FIRST_WAIT_S", 0.2)
    release = threading.Event()

    def opener(address):
        if address == "rtsp://dead":
            release.wait(20)  # as a host that answers nothing
            return FakeCamera([], opens=False)
        return FakeCamera([9] * 30)

    source = StreamSource(["rtsp://live", "rtsp://dead"], opener=opener, pause_s=0.0)
    start = time.monotonic()
    (frame,) = next(iter(source))
    assert frame.path == "rtsp://live" and time.monotonic() - start < 5
    assert "rtsp://dead: not connected yet; retrying in the background" in logged()
    release.set()
    source.close()


def test_dead_stream_ends_with_the_others_and_is_counted(monkeypatch, logged):
    monkeypatch.setattr(streams, "ATTEMPTS", 3)

    opened = []

    def opener(address):
        opened.append(address)
        return FakeCamera([9] * 3, opens=address == "rtsp://live" and opened.count(address) == 1)

    source = StreamSource(["rtsp://live", "rtsp://dead"], opener=opener, pause_s=0.01)
    assert {frame.path for frames in source for frame in frames} == {"rtsp://live"}
    assert source.faults == 1
    assert "rtsp://dead: cannot be opened (attempt 2 of 3)" in logged() and "given up" in logged()


def test_silence_is_announced(monkeypatch, logged):
    monkeypatch.setattr(streams, "NOTICE_S", 0.2)

    def opener(address):
        time.sleep(1.2)
        return FakeCamera([], opens=False)

    with pytest.raises(UserError, match="cannot be opened"):
        list(StreamSource(["rtsp://one", "rtsp://two"], opener=opener))
    assert "waiting for rtsp://one, rtsp://two (" in logged()


def test_unreachable_addresses_are_not_opened_twice(monkeypatch):
    """OpenCV's other backends know no timeout: only names of devices and pipelines may go to them."""
    opened = []

    class Closed:
        def __init__(self, *arguments):
            opened.append(arguments)

        def isOpened(self):  # noqa: N802
            return False

    monkeypatch.setattr(cv2, "VideoCapture", Closed)
    streams.open_capture("rtsp://192.0.2.1/x")
    assert len(opened) == 1 and len(opened[0]) == 3
    streams.open_capture("videotestsrc ! appsink")
    assert len(opened) == 3
