"""Where predictions go: files that hold what was found."""

import csv

import cv2
import numpy as np
import pytest
import torch

from utils.core.contracts import Frame, Geometry, ImageInfo, Results
from utils.core.errors import UserError
from utils.plots.features import FeatureSink, feature_image
from utils.plots.prediction_sinks import (
    CropSink,
    CsvSink,
    ImageSink,
    TextSink,
    VideoSink,
    crop_box,
    file_name,
    safe_name,
)

NAMES = ("person", "traffic light", "../evil")


def still(path="/a/bus.jpg", shade=10, hw=(100, 200)) -> Frame:
    return Frame(np.full((*hw, 3), shade, np.uint8), path, f"image 1/1 {path}")


def video_frame(number, path="/a/clip.avi", shade=10, hw=(100, 200), count=9) -> Frame:
    return Frame(np.full((*hw, 3), shade, np.uint8), path, "", number, count, 5.0)


def found(boxes, classes, scores, hw=(100, 200)) -> Results:
    info = ImageInfo(0, "", Geometry(hw, hw))
    return Results(info, torch.tensor(boxes).float().reshape(-1, 4), torch.tensor(scores), torch.tensor(classes).long())


TWO = found([[20, 10, 60, 90], [100, 50, 199, 100]], [0, 1], [0.876, 0.5])
NONE = found([], [], [])


def feed(sink, *pairs):
    for frame, results in pairs:
        sink.write(frame, results, lambda image=frame.image: image)
    return sink.close()


def test_label_file_round_trip(tmp_path):
    text = feed(TextSink(tmp_path / "labels"), (still(), TWO))
    rows = np.loadtxt(tmp_path / "labels" / "bus.txt")
    assert rows[0].tolist() == [0, 0.2, 0.5, 0.2, 0.8] and text == f"1 label file in {tmp_path / 'labels'}"
    centre, size = rows[:, 1:3] * (200, 100), rows[:, 3:] * (200, 100)
    assert np.hstack([centre - size / 2, centre + size / 2]) == pytest.approx(TWO.boxes.numpy(), abs=1e-3)


def test_label_file_options(tmp_path):
    feed(TextSink(tmp_path, confidence=True, corners=True), (still(), TWO))
    assert (tmp_path / "bus.txt").read_text().splitlines()[0] == "0 0.1 0.1 0.3 0.9 0.876"


def test_no_label_file_without_boxes(tmp_path):
    (tmp_path / "bus.txt").write_text("old")
    assert feed(TextSink(tmp_path), (still(), NONE)) == ""
    assert list(tmp_path.iterdir()) == []


def test_label_files_of_video_frames(tmp_path):
    feed(TextSink(tmp_path), (video_frame(1), TWO), (video_frame(7), TWO))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film_1.txt", "film_7.txt"]


def test_duplicate_file_names(tmp_path):
    feed(TextSink(tmp_path), (still("/a/x.jpg"), TWO), (still("/b/x.png"), TWO))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.txt", "x_2.txt"]
    feed(ImageSink(tmp_path / "p"), (still("/a/x.jpg"), TWO), (still("/b/X.jpg"), TWO), (still("/b/x.png"), TWO))
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["X_2.jpg", "x.jpg", "x.png"]


def test_image_file_names(tmp_path):
    assert feed(ImageSink(tmp_path), (still("/a/bus.jpg"), TWO), (still("/a/p.dng"), TWO), (video_frame(1), TWO)) == (
        f"2 images in {tmp_path}"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bus.jpg", "p.png"]
    assert cv2.imread(str(tmp_path / "bus.jpg")).shape == (100, 200, 3)


def test_csv_columns(tmp_path):
    path = tmp_path / "predictions.csv"
    feed(CsvSink(path, NAMES), (still("/a/b,c.jpg"), TWO))
    assert feed(CsvSink(path, NAMES), (still(), NONE), (still(), TWO)) == f"2 rows in {path}"
    rows = list(csv.reader(path.read_text().splitlines()))
    assert rows[:3] == [
        ["Image Name", "Prediction", "Confidence"],
        ["b,c.jpg", "person", "0.88"],
        ["b,c.jpg", "traffic light", "0.50"],
    ]
    assert len(rows) == 5 and [p.name for p in tmp_path.iterdir()] == ["predictions.csv"]


def test_csv_without_frames(tmp_path):
    assert CsvSink(tmp_path / "a.csv", NAMES).close() == "" and not list(tmp_path.iterdir())


def test_crop_margin():
    image = np.arange(100 * 200 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 200, 3)
    crop = crop_box(image, [50, 40, 150, 60])  # 100 x 20 -> 112 x 30.4 about (100, 50)
    assert np.array_equal(crop, image[34:65, 44:156])  # 34.8 to 65.2, cut off to whole pixels
    assert crop_box(image, [0, 0, 200, 100]).shape == image.shape
    assert crop_box(image, [190, 90, 200, 100]).shape == (16, 16, 3)  # from 184.9 on


def test_crop_files(tmp_path):
    three = found([[0, 0, 9, 9], [20, 20, 60, 60], [5, 5, 50, 50]], [0, 0, 2], [0.9, 0.8, 0.7])
    assert feed(CropSink(tmp_path / "crops", NAMES), (still(), three), (video_frame(3), three)).startswith("6 crops")
    files = sorted(str(path.relative_to(tmp_path / "crops")) for path in tmp_path.rglob("*.jpg"))
    stills = ["_evil/bus.jpg", "person/bus.jpg", "person/bus2.jpg"]
    assert files == sorted([*stills, "_evil/film_3.jpg", "person/film_3.jpg", "person/film_3_2.jpg"])


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", "", "a\\b", "C:"])
def test_class_names_cannot_escape_the_folder(tmp_path, name):
    made = safe_name(name)
    assert made and "/" not in made and "\\" not in made and made not in {".", ".."}


@pytest.mark.parametrize("hw", [(100, 200), (99, 201)])
def test_video_round_trip(tmp_path, hw):
    sink = VideoSink(tmp_path)
    text = feed(sink, *((video_frame(i, shade=30 * i, hw=hw), TWO) for i in range(1, 6)))
    assert text == f"1 video in {tmp_path}" and [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    capture = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    shades = []
    while (read := capture.read())[0]:
        shades.append(int(read[1].mean()))
    assert len(shades) == 5 and all(abs(shade - 30 * i) < 8 for i, shade in enumerate(shades, start=1))


def test_several_videos_and_sizes(tmp_path):
    stream = [
        Frame(np.zeros((40 + 10 * i, 64, 3), np.uint8), "rtsp://host:8/a?b", "", i + 1, stream=1) for i in range(2)
    ]
    feed(
        VideoSink(tmp_path),
        (video_frame(1), TWO),
        (video_frame(1, "/b/clip.mp4"), TWO),
        *((frame, TWO) for frame in stream),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "clip_2.mp4", "host_8_a.mp4"]


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        feed(ImageSink(tmp_path / "file"), (still(), TWO))
    with pytest.raises(UserError, match="cannot be written"):
        feed(VideoSink(tmp_path / "file"), (video_frame(1), TWO))


def test_url_file_names():
    assert file_name(still("https://host/a/b.jpg")) == "b.jpg"
    assert "/" not in file_name(Frame(np.zeros((1, 1, 3), np.uint8), "rtsp://h/../x", "", 1))


def test_feature_maps(tmp_path):
    maps = {"00_Conv": torch.rand(1, 40, 8, 8), "01_C3": torch.zeros(1, 3, 4, 4)}
    feed(FeatureSink(tmp_path, maps), (still(), TWO))
    assert np.load(tmp_path / "bus" / "00_Conv.npy").shape == (40, 8, 8)
    assert cv2.imread(str(tmp_path / "bus" / "01_C3.png")) is not None
    assert feature_image(np.random.default_rng(0).random((40, 8, 8))).shape == (4 * 98, 8 * 98, 3)
