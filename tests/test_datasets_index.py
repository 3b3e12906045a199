"""Folders, list files and labels to an index; its checks and its cache."""

import stat
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets import READERS
from utils.datasets.labels import scan as scan_module
from utils.datasets.labels.label_scan import build_index
from utils.datasets.labels.readers.yolo import label_path
from utils.datasets.labels.scan_cache import cache_paths
from utils.datasets.labels.yolo_lines import parse_labels


def make_set(root: Path, count: int = 3, labels: dict[int, str] | None = None) -> DataConfig:
    """Write `count` images of 40 x 30 pixels; image i gets one box of class i % 2 unless `labels` says otherwise."""
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True, exist_ok=True)
    for i in range(count):
        cv2.imwrite(str(root / "images" / "train" / f"{i:03d}.png"), np.full((30, 40, 3), i, np.uint8))
        text = (labels or {}).get(i, f"{i % 2} 0.5 0.5 0.25 0.5\n")
        if text != "none":
            (root / "labels" / "train" / f"{i:03d}.txt").write_text(text)
    return DataConfig(root / "d.yaml", root, ("a", "b"), {"train": (root / "images" / "train",)})


def cache_of(data: DataConfig) -> Path:
    return data.root / "labels" / "train.polyolo-cache.npz"


# ----------------------------------------------------------------------------------------------------------------------
# Places


def test_label_path():
    assert label_path("/a/images/b/images/c/d.e.jpg") == "/a/images/b/labels/c/d.e.txt"
    assert label_path("/a/photos/d.jpg") == "/a/photos/d.txt"
    assert label_path("/images/d.jpg") == "/labels/d.txt"


def test_image_list_forms(tmp_path):
    data = make_set(tmp_path, 4)
    (tmp_path / "images" / "train" / "notes.txt").write_text("no image")
    folder = READERS.get("yolo")(data, "train").images
    assert [Path(p).name for p in folder] == ["000.png", "001.png", "002.png", "003.png"]
    listed = tmp_path / "list.txt"
    lines = ["./images/train/001.png", "images/train/000.png", "", folder[3], folder[2]]
    listed.write_text("\n".join(lines))
    for places in ((listed,), (listed, tmp_path / "images" / "train")):
        both = DataConfig(data.source, tmp_path, data.names, {"train": places})
        assert READERS.get("yolo")(both, "train").images == folder
    assert len(build_index(both, "train")) == 4


def test_list_file_relative_to_root(tmp_path):
    data = make_set(tmp_path, 2)
    (tmp_path / "lists").mkdir()
    listed = tmp_path / "lists" / "train.txt"
    listed.write_text("images/train/001.png\n")
    data = DataConfig(data.source, tmp_path, data.names, {"train": (listed,)})
    assert [Path(p).name for p in READERS.get("yolo")(data, "train").images] == ["001.png"]


def test_no_images(tmp_path):
    (tmp_path / "empty").mkdir()
    data = DataConfig(tmp_path / "d.yaml", tmp_path, ("a",), {"train": (tmp_path / "empty",)})
    with pytest.raises(UserError, match="no images"):
        build_index(data, "train")
    (tmp_path / "list.txt").write_text("a.jpg\nhello\n")
    data = DataConfig(tmp_path / "d.yaml", tmp_path, ("a",), {"train": (tmp_path / "list.txt",)})
    with pytest.raises(UserError, match=r"list.txt:2: 'hello' is not an image"):
        build_index(data, "train")


# ----------------------------------------------------------------------------------------------------------------------
# Labels


@pytest.mark.parametrize(("text", "line", "words"), [
    ("0 .5 .5 .1 .1\n0 .5 .5 .1", 2, "4 fields"),
    ("0 .5 .5 .1 .1 .9", 1, "6 fields"),
    ("0 .5 x .1 .1", 1, "finite number"),
    ("0 .5 nan .1 .1", 1, "finite number"),
    ("0 .5 .5 inf .1", 1, "finite number"),
    ("0 .5 .5 -.1 .1", 1, "negative coordinate"),
    ("-1 .5 .5 .1 .1", 1, "negative class"),
    ("0 320 240 50 60", 1, "above 1"),
    ("1.5 .5 .5 .1 .1", 1, "not an integer"),
    ("0 .1 .1 .2 .2 .3 .1\n\n0 .5 .5 .1 .1", 3, "a box in a file of polygons"),
    ("0 .1 .1 .2 .2 .3 .1 .4", 1, "8 fields"),
    ("0,0.5,0.5,0.1,0.1", 1, "finite number"),
])  # fmt: skip
def test_malformed_labels(text, line, words):
    labels = parse_labels(text, "f.txt")
    assert len(labels.boxes) == 0
    assert len(labels.faults) == 1
    assert labels.faults[0].startswith(f"f.txt:{line}: ")
    assert words in labels.faults[0]


def test_polygon_boxes():
    labels = parse_labels("3 .1 .2 .5 .2 .5 .8\n", "f")
    np.testing.assert_allclose(labels.boxes, [[3, 0.3, 0.5, 0.4, 0.6]], atol=1e-6)
    np.testing.assert_allclose(labels.polygons[0], [[0.1, 0.2], [0.5, 0.2], [0.5, 0.8]], atol=1e-6)


def test_duplicate_lines_are_removed():
    labels = parse_labels("1 .5 .5 .1 .1\n0 .5 .5 .1 .1\n1 .5 .5 .1 .1\n", "f")
    assert labels.boxes[:, 0].tolist() == [1, 0]
    assert labels.duplicates == 1
    assert not labels.faults


def test_index_contents(tmp_path):
    labels = {1: "", 2: "none", 3: "1 .1 .2 .5 .2 .5 .8\n0 .1 .1 .9 .1 .9 .9 .1 .9\n"}
    index = build_index(make_set(tmp_path, 4, labels), "train")
    assert len(index) == 4
    assert index.path(3).endswith("003.png")
    assert index.shapes_hw.tolist() == [[30, 40]] * 4
    assert [len(index.labels(i)) for i in range(4)] == [1, 0, 0, 2]
    assert index.polygons(0) == []
    assert [len(p) for p in index.polygons(3)] == [3, 4]
    assert index.count == dict(found=2, missing=1, empty=1, corrupt=0, faulty_labels=0, duplicates=0, lost=0)
    assert index.class_counts(2).tolist() == [2, 1]


def test_fault_limit(tmp_path):
    data = make_set(tmp_path, 5, {2: "0 .5 .5 .1 .1\n0 2 2 2 2\n"})
    with pytest.raises(UserError, match=r"1 faulty label files among 5.*002.txt:2: coordinate 2 above 1"):
        build_index(data, "train")
    index = build_index(data, "train", allow_faults=True)
    assert [Path(index.path(i)).stem for i in range(len(index))] == ["000", "001", "003", "004"]
    assert index.count["corrupt"] == 1
    report = cache_of(data).with_suffix(".txt").read_text()
    assert "002.txt:2: coordinate 2 above 1" in report


def test_unusable_images_are_skipped(tmp_path):
    data = make_set(tmp_path, 3)
    (tmp_path / "images" / "train" / "000.png").write_bytes(b"")
    cv2.imwrite(str(tmp_path / "images" / "train" / "001.png"), np.zeros((9, 9, 3), np.uint8))
    index = build_index(data, "train")
    assert [Path(index.path(i)).stem for i in range(len(index))] == ["002"]
    report = cache_of(data).with_suffix(".txt").read_text()
    assert "000.png: empty file" in report
    assert "001.png: 9 x 9 pixels" in report
    (tmp_path / "images" / "train" / "002.png").write_bytes(b"junk")
    with pytest.raises(UserError, match="none of 3 images can be used"):
        build_index(data, "train")


def test_unknown_class(tmp_path):
    data = make_set(tmp_path, 3, {1: "0 .5 .5 .1 .1\n2 .5 .5 .2 .2\n"})
    with pytest.raises(UserError, match=r"001.txt:2: class 2, but .* names 2 classes"):
        build_index(data, "train")
    assert build_index(data, "train", single_class=True).boxes[:, 0].tolist() == [0, 0, 0, 0]


def test_training_requires_labels(tmp_path):
    data = make_set(tmp_path, 2, {0: "none", 1: "none"})
    assert len(build_index(data, "train")) == 2
    with pytest.raises(UserError, match=r"no labels for any image.*000.txt"):
        build_index(data, "train", need_labels=True)


# ----------------------------------------------------------------------------------------------------------------------
# Cache


@pytest.fixture
def scans(monkeypatch):
    """Count how often images are really looked at."""
    seen: list[str] = []
    original = scan_module.probe_image
    monkeypatch.setattr(
        scan_module, "probe_image", lambda path, notes: (seen.append(path.name), original(path, notes))[1]
    )
    return seen


def test_cache_invalidation(tmp_path, scans):
    data = make_set(tmp_path)
    first = build_index(data, "train")
    assert len(scans) == 3
    again = build_index(data, "train")
    assert len(scans) == 3
    for name, array in first.arrays().items():
        assert np.array_equal(array, again.arrays()[name])
    (tmp_path / "labels" / "train" / "001.txt").write_text("")
    assert build_index(data, "train").count["empty"] == 1
    assert len(scans) == 6
    cv2.imwrite(str(tmp_path / "images" / "train" / "009.png"), np.zeros((30, 40, 3), np.uint8))
    assert len(build_index(data, "train")) == 4
    assert len(scans) == 10


@pytest.mark.parametrize("junk", [b"", b"junk", b"PK\x03\x04" + b"\0" * 50])
def test_damaged_cache_is_rebuilt(tmp_path, scans, junk):
    data = make_set(tmp_path)
    build_index(data, "train")
    cache_of(data).write_bytes(junk)
    assert len(build_index(data, "train")) == 3
    assert len(scans) == 6
    build_index(data, "train")
    assert len(scans) == 6


def test_inconsistent_or_pickled_cache_is_rejected(tmp_path, scans):
    data = make_set(tmp_path)
    build_index(data, "train")
    with np.load(cache_of(data), allow_pickle=False) as stored:
        arrays = dict(stored)
    for name, value in (("box_starts", np.array([0, 1, 2, 9])), ("boxes", np.array([{"a": 1}], object))):
        np.savez(cache_of(data), **(arrays | {name: value}))
        assert len(build_index(data, "train")) == 3
    assert len(scans) == 9


def test_read_only_labels_use_user_cache(tmp_path, scans):
    data = make_set(tmp_path)
    folder = tmp_path / "labels"
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        build_index(data, "train")
        build_index(data, "train")
    finally:
        folder.chmod(0o755)
    assert len(scans) == 3
    assert not cache_of(data).exists()


def test_works_without_writable_cache(tmp_path, monkeypatch, scans):
    data = make_set(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("POLYOLO_CACHE", str(blocked / "below"))
    (tmp_path / "labels").chmod(0o555)
    try:
        assert len(build_index(data, "train")) == 3
        assert all(not place.exists() for place in cache_paths(cache_of(data)))
    finally:
        (tmp_path / "labels").chmod(0o755)


def test_no_temporary_files_left(tmp_path):
    data = make_set(tmp_path)
    build_index(data, "train")
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["train", "train.polyolo-cache.npz"]


def test_coco128(coco128):
    names = tuple((coco128 / "names.txt").read_text().splitlines())
    data = DataConfig(coco128 / "d.yaml", coco128, names, {"train": (coco128 / "images" / "train2017",)})
    index = build_index(data, "train")
    assert (len(index), len(index.boxes)) == (128, 929)
    assert index.count["found"] == 126
