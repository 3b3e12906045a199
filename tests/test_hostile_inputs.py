"""Inputs that block, never end, loop or grow: each is refused in one line, or skipped and counted, in bounded time."""

import json
import logging
import os
import zipfile

import cv2
import numpy as np
import pytest
import torch
from helpers_bad import TINY, error_of, image_set

from utils.core.contracts import EvalSettings, HeadSpec
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.input_files import read_input, walk_files
from utils.core.load_request import evaluation_batch
from utils.core.yaml_file import read_text, read_yaml
from utils.datasets.image_files import ImageFault, probe_image, read_image
from utils.datasets.labels.annotation_paths import find_images
from utils.datasets.labels.coco_json import read_coco_json
from utils.datasets.labels.label_scan import build_index
from utils.datasets.labels.scan_cache import CACHE_SUFFIX
from utils.datasets.labels.semantic_mask_files import read_values
from utils.datasets.labels.xml_tree import XmlFault, read_xml
from utils.datasets.labels.yolo_lines import MAX_OBJECTS, parse_labels, read_labels
from utils.metrics.detect import DetectEvaluator
from utils.ops import nms
from utils.plots.figure_io import escape_mathtext
from utils.plots.prediction_sinks import MAX_STEM_BYTES, safe_name


@pytest.fixture
def logged(caplog):
    """Text of all warnings so far, as a function."""
    logger = logging.getLogger("polyolo")
    logger.addHandler(caplog.handler)
    yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.removeHandler(caplog.handler)


# ----------------------------------------------------------------------------------------------------------------------
# Pipes and devices


@pytest.fixture(params=["pipe", "device"])
def endless(request, tmp_path):
    """Path of a pipe without a writer, or a link to a device that never ends."""
    path = tmp_path / "endless"
    if request.param == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    return path


def test_endless_files_are_refused(endless):
    for read in (read_yaml, lambda path: read_text(path, file_names=True)):
        with pytest.raises(UserError, match="not a regular file"):
            read(endless)
    for read_pixels in (probe_image, read_image, read_values):
        with pytest.raises(ImageFault, match="not a regular file"):
            read_pixels(endless)
    with pytest.raises(XmlFault, match="not a regular file"):
        read_xml(endless)
    assert "not a regular file" in read_labels(endless).faults[0]


def test_endless_data_yaml_and_splits(endless, tmp_path):
    message = error_of("train", "--data", endless, *TINY, project=tmp_path / "p")
    assert str(endless) in message and "regular file" in message
    data = tmp_path / "data.yaml"
    data.write_text(f"train: {endless}\nval: {endless}\nnames: [a]\n")
    assert "not a regular file" in error_of("train", "--data", data, *TINY, project=tmp_path / "p")
    data.write_text(f"semantic: {{train: {tmp_path}, val: {tmp_path}, names: {endless}}}\n")
    assert "not a regular file" in error_of("train", "--data", data, *TINY, project=tmp_path / "p")


def test_endless_files_in_a_data_set(tmp_path):
    data = load_data(str(image_set(tmp_path / "set")))
    for name in ("images/train/1.jpg", "labels/train/2.txt"):
        (data.root / name).unlink()
        (data.root / name).symlink_to("/dev/zero")
    index = build_index(data, "train", allow_faults=True)
    assert len(index) == 6 and index.count["corrupt"] == 2


def test_size_limit_counts_what_is_read(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(1001))
    with pytest.raises(OSError, match="too many"):
        read_input(path, 1000)
    assert len(read_input(path, 1001)) == 1001


# ----------------------------------------------------------------------------------------------------------------------
# Folders and lists


def test_loops_of_links(tmp_path, logged):
    """A folder that links to its own parent has its images once, under their real names."""
    image_set(tmp_path / "set")
    train = tmp_path / "set" / "images" / "train"
    (train / "a_loop").symlink_to(train)
    (train / "another").symlink_to(tmp_path / "set" / "images")
    (train / "itself").symlink_to(train / "itself")
    (tmp_path / "elsewhere").mkdir()
    cv2.imwrite(str(tmp_path / "elsewhere" / "x.jpg"), np.zeros((32, 32, 3), np.uint8))
    (train / "linked").symlink_to(tmp_path / "elsewhere")
    found = sorted(find_images(train, train))
    others = [str(train / "another" / "val" / f"{i}.jpg") for i in range(8)]
    assert found == sorted([*(str(train / f"{i}.jpg") for i in range(8)), *others, str(train / "linked" / "x.jpg")])
    assert "searched already" in logged()


def test_unreadable_folder_is_reported(tmp_path, monkeypatch, logged):
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [folder for folder, _ in walk_files(tmp_path)] == [str(tmp_path)]
    assert "closed: cannot be read (Permission denied)" in logged()


def test_file_names_that_are_not_utf8(tmp_path):
    """File names are bytes: a list may have names in any encoding, and so may folders."""
    data = load_data(str(image_set(tmp_path / "set")))
    name = os.fsdecode(b"caf\xe9.jpg")
    train = data.root / "images" / "train"
    (train / "3.jpg").rename(train / name)
    (data.root / "labels" / "train" / "3.txt").rename(data.root / "labels" / "train" / os.fsdecode(b"caf\xe9.txt"))
    (train / "4.jpg").write_bytes(b"")  # a fault, so that a report is written
    (data.root / "train.txt").write_bytes(b"".join(os.fsencode(path) + b"\r\n" for path in sorted(train.iterdir())))
    data.source.write_text("train: train.txt\nval: images/val\nnames: [a, b]\n")
    for _ in range(2):  # the second time from the cache
        index = build_index(load_data(str(data.source)), "train", allow_faults=True)
        assert len(index) == 7 and str(train / name) in [index.path(i) for i in range(7)]
        assert index.count["found"] == 7
    (data.root / "broken.txt").write_bytes(b"\xff\xfea\0.\0j\0p\0g\0")
    with pytest.raises(UserError, match="not a text file"):
        find_images(data.root / "broken.txt", data.root)


# ----------------------------------------------------------------------------------------------------------------------
# Labels


def test_label_file_with_a_million_boxes():
    labels = parse_labels("0 0.5 0.5 0.1 0.1\n" * 1_000_000, "a.txt")
    assert labels.faults == [
        f"a.txt:{MAX_OBJECTS + 1}: 1000000 objects in one image, at most {MAX_OBJECTS} are supported"
    ]


def test_boxes_at_once_equal_boxes_by_line():
    rng = np.random.default_rng(0)
    lines = [f"{i % 9} {x:.6f} {y:.6f} {w:.6f} {h:.6f}" for i, (x, y, w, h) in enumerate(rng.random((50, 4)))]
    boxes = parse_labels("\n".join(lines), "a.txt").boxes
    single = np.concatenate([parse_labels(line, "a.txt").boxes for line in lines])
    assert boxes.dtype == np.float32 and np.array_equal(boxes, single)
    assert np.array_equal(boxes, np.array([line.split() for line in lines], np.float64).astype(np.float32))


def test_faults_per_label_file_are_limited():
    faults = parse_labels("x 1 2 3 4\n" * 5000, "a.txt").faults
    assert len(faults) == 101 and faults[0].startswith("a.txt:1: ") and "4900 more" in faults[-1]


# ----------------------------------------------------------------------------------------------------------------------
# Scan caches

TAMPERED = {
    "nan boxes": {"boxes": lambda a: a * np.nan},
    "infinite boxes": {"boxes": lambda a: a + np.inf},
    "class of a half": {"boxes": lambda a: a + np.float32(0.5)},
    "negative class": {"boxes": lambda a: a - 1},
    "boxes of text": {"boxes": lambda a: a.astype(str)},
    "boxes one level deeper": {"boxes": lambda a: a[None]},
    "fewer counts": {"counts": lambda a: a[:3]},
    "no counts": {"counts": lambda a: a[:0]},
    "counts below zero": {"counts": lambda a: a - 99},
    "counts a number": {"counts": lambda a: a[0]},
    "starts a number": {"box_starts": lambda a: a[0]},
    "starts beyond the end": {"box_starts": lambda a: a + 1},
    "starts of fractions": {"box_starts": lambda a: a * 1.0},
    "starts going back": {"path_starts": lambda a: a[::-1]},
    "sizes of zero": {"shapes_hw": lambda a: a * 0},
    "sizes of one side": {"shapes_hw": lambda a: a[:, :1]},
    "sizes flat": {"shapes_hw": lambda a: a.ravel()},
    "no paths": {"path_bytes": lambda a: a[:0]},
    "points of nan": {"points": lambda a: np.full((4, 2), np.nan, np.float32), "point_starts": lambda a: a + 4},
    "report a table": {"report": lambda a: np.zeros((3, 3))},
    "key a table": {"key": lambda a: np.stack([a, a])},
}


def scanned(tmp_path):
    """Return a data set, its index and the cache file."""
    data = load_data(str(image_set(tmp_path / "set")))
    index = build_index(data, "train")
    return data, index, data.root / "labels" / f"train{CACHE_SUFFIX}"


def same_index(first, second):
    """Compare two indices."""
    return all(np.array_equal(array, second.arrays()[name]) for name, array in first.arrays().items())


@pytest.mark.parametrize("kind", TAMPERED)
def test_tampered_scan_cache_is_rebuilt(tmp_path, kind):
    data, index, cache = scanned(tmp_path)
    with np.load(cache) as stored:
        arrays = {name: TAMPERED[kind].get(name, lambda a: a)(stored[name]) for name in stored.files}
    with cache.open("wb") as file:
        np.savez(file, **arrays)
    assert same_index(build_index(data, "train"), index)


def test_damaged_bytes_of_a_scan_cache(tmp_path):
    data, index, cache = scanned(tmp_path)
    content = cache.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for at in rng.integers(0, len(damaged), 20):
            damaged[at] = int(rng.integers(256))
        cache.write_bytes(damaged[: int(rng.integers(1, len(damaged) + 1))])
        assert same_index(build_index(data, "train"), index)


def test_compressed_scan_cache_cannot_grow(tmp_path):
    data, index, cache = scanned(tmp_path)
    with np.load(cache) as stored:
        arrays = dict(stored)
    with cache.open("wb") as file:
        np.savez_compressed(file, **{**arrays, "boxes": np.zeros((10_000_000, 5), np.float32)})
    assert cache.stat().st_size < 2**20
    assert same_index(build_index(data, "train"), index)


def test_cache_with_an_unknown_character_set(tmp_path, monkeypatch):
    """As where the interpreter cannot read its own modules any more after changing its user."""
    data, index, _ = scanned(tmp_path)

    def unknown(self):
        raise LookupError("unknown encoding: cp437")

    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", unknown)
    assert same_index(build_index(data, "train"), index)


# ----------------------------------------------------------------------------------------------------------------------
# Classes


def test_class_names_that_are_too_long(tmp_path):
    data = tmp_path / "data.yaml"
    data.write_text(f"train: {tmp_path}\nval: {tmp_path}\nnames: [a, {'b' * 100_000}]\n")
    message = error_of("train", "--data", data, *TINY, project=tmp_path / "p")
    assert "name of class 1 has 100000 characters" in message and len(message) < 300


def test_long_class_names_in_figures_and_folders():
    name = "ü" * 900
    assert len(escape_mathtext(name)) == 40 and escape_mathtext("a$b") == r"a\$b"
    assert len(safe_name(name).encode()) <= MAX_STEM_BYTES and safe_name("a/b") == "a_b"


def test_many_classes_have_no_confusion_matrix(monkeypatch, tmp_path):
    """10,000 classes took 12 GB: 0.8 GB for the matrix, the rest to draw it."""
    from utils.tasks import TASKS

    counts = []
    zeros = np.zeros
    monkeypatch.setattr(
        np, "zeros", lambda shape, *more, **kw: counts.append(np.prod(shape)) or zeros(shape, *more, **kw)
    )
    names = tuple(map(str, range(10_000)))
    evaluator = DetectEvaluator(HeadSpec("detect", len(names), (8, 16, 32)), EvalSettings(names=names))
    scores = evaluator.compute()
    assert scores.details.confusion.size == 0 and max(counts) < 10**6
    monkeypatch.undo()
    data = load_data(str(image_set(tmp_path / "set")))
    drawn = list(TASKS.get("detect").draw_scores({"detect": scores}, tmp_path, data))
    assert not [path for path in drawn if "confusion" in path.name]


def test_evaluation_batches_of_many_classes():
    assert evaluation_batch(64, 1280, 365) == 64
    assert evaluation_batch(32, 320, 10_000) == 2 and evaluation_batch(32, 1280, 100_000) == 1


def test_candidates_in_parts_equal_candidates_at_once(monkeypatch):
    torch.manual_seed(0)
    predictions = torch.rand(3, 200, 5 + 50)
    predictions[..., :4] *= 100
    for multi in (True, False):
        settings = EvalSettings(names=(), confidence=0.3, iou=0.5, multi_label=multi)
        whole = nms.batched_nms(predictions, 50, settings)
        monkeypatch.setattr(nms, "MAX_CANDIDATE_VALUES", 999)
        parts = nms.batched_nms(predictions, 50, settings)
        monkeypatch.undo()
        assert whole.truncated == parts.truncated
        assert all(torch.equal(a, b) for a, b in zip(whole.rows, parts.rows, strict=True))


# ----------------------------------------------------------------------------------------------------------------------
# COCO JSON


def test_duplicate_category_ids(tmp_path):
    categories = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]
    path = tmp_path / "annotations" / "instances_val.json"
    path.parent.mkdir()
    path.write_text(
        json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "categories": categories, "annotations": []})
    )
    with pytest.raises(UserError, match=r"instances_val\.json: two categories have the id 1: 'cat' and 'dog'"):
        read_coco_json(path)
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="two categories have the id 1"):
        load_data(str(tmp_path))
