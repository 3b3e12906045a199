"""Panoptic data sets: boxes, masks and semantic maps from one annotation, their faults, the generated set."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SHARED
from helpers_panoptic import CATEGORIES, SEGMENTS, id_map, panoptic_data, write_panoptic

from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.datasets.generators import ensure_generated
from utils.datasets.image_files import ImageFault
from utils.datasets.labels.label_scan import build_index
from utils.datasets.labels.panoptic_files import number_segments, read_id_map
from utils.datasets.labels.panoptic_table import open_panoptic_split
from utils.datasets.labels.semantic_scan import build_semantic_index
from utils.ops.masks import polygon_masks

COCO128 = SHARED / "datasets" / "coco128"


def test_one_annotation_gives_boxes_outlines_and_semantic_maps(tmp_path):
    data = panoptic_data(tmp_path, count=2)
    assert data.is_panoptic and data.semantic.names == ("cat", "dog", "grass")
    index = build_index(data, "train")
    assert len(index) == 2
    boxes = index.labels(1) * np.array([1, 80, 60, 80, 60])
    assert boxes.round(4).tolist() == [[0, 40, 15, 20, 10], [1, 65, 40, 10, 20]]  # the crowd is no object
    outlines = [polygon * (80, 60) for polygon in index.polygons(1)]
    masks = polygon_masks(outlines, (60, 80), 1)
    ids = id_map()
    for mask, key in zip(masks, (1, 300), strict=True):
        assert np.logical_xor(mask, ids == key).sum() <= 0.1 * (ids == key).sum()
    maps = build_semantic_index(data, "train")
    semantic, fault = maps.read_map(0)
    expected = np.select([ids == 1, (ids == 300) | (ids == 5), ids == 70_000], [0, 1, 2], 255)
    assert not fault and (semantic == expected).all()
    assert maps.pixel_counts.tolist() == [400, 800, 2 * (4200 - 600)]


def test_the_second_scan_reads_no_json(tmp_path, monkeypatch):
    path = write_panoptic(tmp_path)
    first = build_index(load_data(str(path)), "train")
    build_semantic_index(load_data(str(path)), "train")
    monkeypatch.setattr("utils.datasets.labels.panoptic_table.read_panoptic_json", None)
    monkeypatch.setattr("utils.datasets.labels.panoptic_files.decode_ids", None)
    assert (build_index(load_data(str(path)), "train").boxes == first.boxes).all()
    assert build_semantic_index(load_data(str(path)), "train").pixel_counts.sum() == first.shapes_hw.prod() - 600


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segments": [SEGMENTS[0], SEGMENTS[0]]}, "two segments have the id 70000"),
        ({"segments": [{**SEGMENTS[0], "category_id": 4}]}, "segment 70000 has the unknown category 4"),
        ({"segments": [{"id": 0, "category_id": 3}]}, "segment 0 needs an `id` from 1 to 16777215"),
        ({"segments": None}, "annotation 1 has no `segments_info`"),
        ({"categories": [{**one, "isthing": 1} for one in CATEGORIES]}, "'grass' is thing, but .* in `stuff:`"),
        ({"categories": CATEGORIES[:2]}, "2 categories for 3 classes"),
        ({"categories": [*CATEGORIES, CATEGORIES[0]]}, "two categories have the id 3"),
        ({"stuff": ["cat"]}, "the class 'cat' occurs twice"),
        ({"semantic": {"train": "images", "names": ["a"]}}, "remove `semantic:`"),
        ({"annotations": {}}, "needs the JSON of this split"),
        ({"annotations": {"train": "panoptic/other.json"}}, "not found; looked for"),
    ],
)
def test_unusable_annotations_are_one_clear_error(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        build_index(panoptic_data(tmp_path, **change), "train")


def test_single_class_training_is_refused(tmp_path):
    with pytest.raises(UserError, match="--single-cls: the panoptic data set"):
        panoptic_data(tmp_path).single_class()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "no such panoptic map"),
        (lambda file: file.write_bytes(file.read_bytes()[:-20]), "truncated PNG|not an image|damaged"),
        (lambda file: cv2.imwrite(str(file), np.zeros((60, 80), np.uint8)), "mode L; a panoptic map is a PNG"),
        (lambda file: cv2.imwrite(str(file), np.zeros((30, 80, 3), np.uint8)), "80 x 30 pixels, in the JSON 80 x 60"),
        (lambda file: cv2.imwrite(str(file), np.full((60, 80, 3), 9, np.uint8)), "4800 pixels of segment 592137"),
    ],
)
def test_unusable_maps_are_faults_of_their_image(tmp_path, damage, message):
    data = panoptic_data(tmp_path, count=2)
    damage(tmp_path / "panoptic" / "train" / "1.png")
    with pytest.raises(UserError, match=message):
        build_index(data, "train")
    assert len(build_index(data, "train", allow_faults=True)) == 1
    if "in the JSON" not in message:
        with pytest.raises(UserError, match=message):
            build_semantic_index(data, "train")


def test_segments_without_pixels_are_dropped(tmp_path):
    empty = {"id": 9, "category_id": 3, "iscrowd": 0, "area": 0, "bbox": [0, 0, 0, 0]}
    index = build_index(panoptic_data(tmp_path, segments=[*SEGMENTS, empty]), "train", allow_faults=True)
    assert len(index.boxes) == 2 and index.count["lost"] == 1


def test_images_without_annotation_are_dropped(tmp_path):
    path = write_panoptic(tmp_path, count=3)
    file = tmp_path / "panoptic" / "train.json"
    content = json.loads(file.read_text())
    del content["annotations"][1]
    file.write_text(json.dumps(content))
    data = load_data(str(path))
    assert len(build_index(data, "train")) == 2 == len(build_semantic_index(data, "train"))
    assert "1 of 3 images without an annotation" in open_panoptic_split(data, "train").notes[0]


def test_maps_outside_of_their_folder_are_refused(tmp_path):
    path = write_panoptic(tmp_path)
    file = tmp_path / "panoptic" / "train.json"
    file.write_text(file.read_text().replace('"0.png"', '"../../0.png"'))
    with pytest.raises(UserError, match="is outside of the folder of the maps"):
        build_index(load_data(str(path)), "train")


def test_numbers_of_segments_follow_the_list():
    ids = np.array([[7, 7, 0], [2, 9, 2**24 - 1]])
    found = number_segments(ids, np.array([2**24 - 1, 2, 7]))
    assert found.numbers.tolist() == [[3, 3, 0], [2, 0, 1]] and found.numbers.dtype == np.uint8
    assert found.areas.tolist() == [2, 1, 1, 2] and (found.unlisted, found.unlisted_px) == (9, 1)
    many = number_segments(np.arange(1, 401).reshape(20, 20), np.arange(400, 0, -1))
    assert many.numbers[0, 0] == 400 and many.areas[1:].tolist() == [1] * 400
    assert number_segments(ids, np.zeros(0, np.int64)).unlisted_px == 5


def test_a_jpeg_is_no_panoptic_map(tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ImageFault, match="JPEG in mode RGB; a panoptic map is a PNG"):
        read_id_map(tmp_path / "a.jpg")


def test_generated_scenes_are_consistent(tmp_path):
    text = Path("data/shapes-panoptic.yaml").read_text()
    text = text.replace("../datasets/shapes-panoptic", str(tmp_path / "set"))
    path = tmp_path / "data.yaml"
    path.write_text(text.replace("train: 640", "train: 4").replace("val: 128", "val: 2").replace("256", "160"))
    data = load_data(str(path))
    ensure_generated(data)
    index, maps = build_index(data, "train"), build_semantic_index(data, "train")
    split = open_panoptic_split(data, "train")
    assert len(index) == 4 and not maps.pixel_counts[7:].min() < 0 and maps.pixel_counts[7:].sum() > 0
    for image in range(4):
        numbered = split.read(image)
        rows = split.table.rows(image)
        assert not numbered.unlisted_px and (numbered.areas[1:] == split.table.areas[rows]).all()
        things = split.table.classes[rows] < 7
        assert things.sum() == len(index.labels(image))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "set").rglob("*.png")}
    ensure_generated(data)
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert len(build_index(data, "val")) == 2


def test_generated_scenes_need_textures(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(Path("data/shapes-panoptic.yaml").read_text().replace("clouds", "clowns"))
    with pytest.raises(UserError, match="unknown texture 'clowns' in `stuff`"):
        ensure_generated(load_data(str(path)))


@pytest.mark.skipif(not COCO128.is_dir(), reason="needs the coco128 reference data")
def test_coco128_maps_equal_the_class_maps(tmp_path, monkeypatch):
    (tmp_path / "coco128" / "annotations").mkdir(parents=True)
    for name in ("images", "annotations/panoptic_train2017", "annotations/panoptic_train2017.json"):
        (tmp_path / "coco128" / name).symlink_to(COCO128 / name)
    monkeypatch.setenv("YOLOv5_DATASETS_DIR", str(tmp_path))
    data = load_data("coco128-panoptic.yaml")
    maps = build_semantic_index(data, "train")
    assert len(maps) == 100
    for row in range(0, 100, 9):
        mask = COCO128 / "masks_semantic" / "train2017" / f"{Path(maps.images.path(row)).stem}.png"
        assert (maps.read_map(row)[0] == cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)).all()
    assert len(build_index(data, "train").boxes) == 740
