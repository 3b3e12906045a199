"""Frames from everything `--source` can name."""

import functools
import http.server
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.core import http_client
from utils.core.errors import UserError
from utils.datasets.sources.frame_sources import FileSource, open_source
from utils.datasets.sources.streams import ScreenSource, StreamSource, without_password


def grey_image(shade: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), shade, np.uint8)


def write_video(path: Path, frames: int = 6, fps: float = 10.0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (64, 48))
    assert writer.isOpened()
    for i in range(frames):
        writer.write(grey_image(i * 40, 48, 64))
    writer.release()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two images, a video that sorts before them, and things that are neither."""
    place = tmp_path / "data"
    (place / "deep").mkdir(parents=True)
    cv2.imwrite(str(place / "b.jpg"), grey_image(200))
    cv2.imwrite(str(place / "c.PNG"), grey_image(50))
    cv2.imwrite(str(place / "deep" / "d.png"), grey_image(90))
    write_video(place / "a.mp4")
    (place / "notes.md").write_text("nothing")
    return place


def paths(source) -> list[str]:
    return list(dict.fromkeys(Path(frame.path).name for frames in source for frame in frames))


def test_single_image(folder):
    (frames,) = open_source(str(folder / "b.jpg"))
    (frame,) = frames
    assert frame.image.shape == (24, 32, 3) and frame.image.dtype == np.uint8
    assert abs(int(frame.image.mean()) - 200) <= 1
    assert not frame.is_video and frame.text == f"image 1/1 {folder / 'b.jpg'}"


def test_folder_order(folder):
    assert paths(open_source(str(folder))) == ["b.jpg", "c.PNG", "a.mp4"]


def test_glob_patterns(folder):
    assert paths(open_source(str(folder / "*.jpg"))) == ["b.jpg"]
    assert paths(open_source(str(folder / "**" / "*.p*"))) == ["d.png"]
    assert paths(open_source(str(folder / "**" / "*.[pP]*"))) == ["c.PNG", "d.png"]


def test_file_named_like_a_pattern(tmp_path):
    cv2.imwrite(str(tmp_path / "a[1].png"), grey_image(9))
    assert paths(open_source(str(tmp_path / "a[1].png"))) == ["a[1].png"]


def test_list_file(folder):
    listing = folder / "list.txt"
    listing.write_text(f"# comment\n./c.PNG\n\nb.jpg\n{folder / 'a.mp4'}\n")
    assert paths(open_source(str(listing))) == ["c.PNG", "b.jpg", "a.mp4"]


def test_stream_list(tmp_path):
    (tmp_path / "a.txt").write_text("0\nrtsp://host/one\n")
    (tmp_path / "b.streams").write_text("video.mp4\n")
    assert isinstance(open_source(str(tmp_path / "a.txt")), StreamSource)
    assert isinstance(open_source(str(tmp_path / "b.streams")), StreamSource)
    assert isinstance(open_source("0"), StreamSource)
    assert isinstance(open_source("rtsp://user:secret@host/x"), StreamSource)


def test_video_frames(folder):
    frames = [frame for (frame,) in open_source(str(folder / "a.mp4"))]
    assert [frame.number for frame in frames] == [1, 2, 3, 4, 5, 6]
    assert {frame.count for frame in frames} == {6} and frames[0].fps == pytest.approx(10)
    assert frames[1].text == f"video 1/1 (2/6) {folder / 'a.mp4'}"
    assert all(abs(int(frame.image.mean()) - 40 * i) < 6 for i, frame in enumerate(frames))


def test_video_stride(folder):
    frames = [frame for (frame,) in open_source(str(folder / "a.mp4"), vid_stride=4)]
    assert [frame.number for frame in frames] == [4]  # frame 8 is not there
    assert abs(int(frames[0].image.mean()) - 120) < 6 and frames[0].fps == pytest.approx(2.5)


def test_animated_gif(tmp_path):
    shots = [Image.fromarray(grey_image(shade)) for shade in (10, 120, 240)]
    shots[0].save(tmp_path / "a.gif", save_all=True, append_images=shots[1:], duration=100)
    frames = [frame for (frame,) in open_source(str(tmp_path / "a.gif"))]
    assert [round(float(frame.image.mean()), -1) for frame in frames] == [10, 120, 240]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.jpg", "no such file"),
        ("", "--source: empty"),
        ("data/notes.md", "md is not a supported image or video format"),
        ("data/empty", "no images or videos"),
        ("data/*.webp", "no images or videos"),
        ("data/empty.txt", "empty list"),
        ("screen 1 2", r"expected `screen \[n\]"),
    ],
)
def test_invalid_sources(folder, monkeypatch, text, message):
    monkeypatch.chdir(folder.parent)
    (folder / "empty").mkdir()
    (folder / "empty.txt").write_text("\n# nothing\n")
    with pytest.raises(UserError, match=message) as caught:
        open_source(text)
    assert "\n" not in str(caught.value)


def test_invalid_stride(folder):
    with pytest.raises(UserError, match=r"--vid-stride expects .*, got 0"):
        open_source(str(folder), vid_stride=0)


def test_bad_files_are_counted(folder, caplog):
    (folder / "bad.jpg").write_bytes(b"not an image")
    (folder / "bad.mp4").write_bytes(b"not a video" * 50)
    source = open_source(str(folder))
    assert paths(source) == ["b.jpg", "c.PNG", "a.mp4"]
    assert source.faults == 2
    assert "bad.jpg" in caplog.text and "bad.mp4" in caplog.text


def test_no_readable_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        list(open_source(str(tmp_path / "a.jpg")))
    (tmp_path / "b.jpg").write_bytes(b"zzz")
    with pytest.raises(UserError, match="none of 2 files"):
        list(open_source(str(tmp_path)))


def test_decompression_bombs(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4")
    monkeypatch.setattr("utils.datasets.sources.frame_sources.MAX_PIXELS", 1000)
    with pytest.raises(UserError, match="at most 1000"):
        list(open_source(str(tmp_path / "a.mp4")))


def test_missing_file_in_list(folder):
    source = FileSource([str(folder / "gone.jpg"), str(folder / "b.jpg")])
    assert paths(source) == ["b.jpg"] and source.faults == 1


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_images_only_raise_user_errors(shared):
    source = open_source(str(shared / "badimages" / "**" / "*"))
    seen = sum(len(frames) for frames in source)
    assert source.faults > 5 and seen > 30


class FakeCamera:
    """A capture whose frames are shades; it breaks off after `length` of them."""

    def __init__(self, shades, opens=True):
        self.shades, self.opens, self.current = list(shades), opens, None

    def isOpened(self):  # noqa: N802
        return self.opens

    def get(self, _):
        return 0.0  # no frame rate, no length: a live stream

    def grab(self):
        time.sleep(0.002)
        self.current = self.shades.pop(0) if self.shades else None
        return self.current is not None

    def retrieve(self):
        return True, grey_image(self.current)

    def release(self):
        pass


def test_streams_reconnect():
    opened = []

    def opener(address):
        opened.append(address)
        return FakeCamera([len(opened)] * 5, opens=opened.count(address) < 4)

    source = StreamSource(["rtsp://u:p@one", "rtsp://two"], opener=opener, pause_s=0.0)
    seen = {0: [], 1: []}
    for frames in source:
        for frame in frames:
            seen[frame.stream].append(frame.number)
            assert "u:p" not in frame.path + frame.text
    assert opened.count("rtsp://two") > 3  # it was opened again
    assert all(numbers == sorted(set(numbers)) and numbers for numbers in seen.values())
    assert max(seen[0]) == 15


def test_streams_that_never_open():
    source = StreamSource(["rtsp://one", "7"], opener=lambda address: FakeCamera([], opens=False), pause_s=0.0)
    with pytest.raises(UserError, match=r"rtsp://one: cannot be opened; camera 7"):
        list(source)


def test_http_image(folder, monkeypatch):
    monkeypatch.setattr(http_client, "FETCH_TIMEOUT_S", 120)  # a busy machine may pause the server's thread
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        ((frame,),) = open_source(f"{address}/b.jpg?size=1")
        assert frame.image.shape == (24, 32, 3) and frame.path == f"{address}/b.jpg"
        with pytest.raises(UserError, match=r"gone\.jpg: the server answers 404"):
            list(open_source(f"{address}/gone.jpg"))
    finally:
        server.shutdown()
        server.server_close()


def test_screen_needs_mss(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mss", None)
    with pytest.raises(UserError, match="pip install mss"):
        list(ScreenSource("screen"))


def test_youtube_needs_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yt_dlp", None)
    with pytest.raises(UserError, match="pip install yt-dlp"):
        list(open_source("https://youtu.be/abc"))


def test_passwords_are_hidden():
    assert without_password("rtsp://user:pass@host/x@y") == "rtsp://host/x@y"
