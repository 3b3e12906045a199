"""YOLO to COCO to VOC to YOLO: awkward names, borders, crowds, turned and empty images lose only what is stated."""

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from helpers_labels import write_image
from PIL import Image

import convert
from utils.core.data_config import load_data
from utils.core.yaml_file import write_yaml
from utils.datasets.labels.label_scan import build_index

NAMES = ("cat & mouse", "Übergröße <1>", "犬")
ROUNDING_PX = 0.02  # of COCO's x, y, width and height 0.005 each, of VOC's corners 0.005: docs/convert.md
BORDERS = ["0 0.5 0.5 1 1", "1 0.05 0.05 0.1 0.1", "2 0.95 0.9 0.1 0.2", "0 0.5 0.01 1 0.02", "1 0.5 0.5 0.25 0.125"]


def through(first, ways, folder, *more):
    """Convert along `ways`, pairs of formats; return the folders and reports of the steps."""
    place, steps = first, []
    for number, (source, target) in enumerate(ways):
        out = folder / f"{number} {source} {target}"
        line = ["labels", "--from", source, "--to", target, "--source", place, "--out", out, *more]
        convert.main([str(word) for word in line])
        steps.append((out, json.loads((out / "convert-report.json").read_text())))
        place = out
    return steps


def boxes_of(data):
    """Return {bytes of the image file: its boxes as sorted rows of class, x, y, width and height in pixels}."""
    found = {}
    data = load_data(str(data))
    for split in {places: split for split, places in data.splits.items()}.values():  # a lone split stands for both
        index = build_index(data, split, need_labels=False)
        for i in range(len(index)):
            height, width = index.shapes_hw[i]
            rows = index.labels(i) * (1, width, height, width, height)
            content = Path(index.path(i)).read_bytes()
            assert content not in found
            found[content] = np.array(sorted(rows.tolist()), np.float64).reshape(-1, 5)
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for content, rows in one.items():
        np.testing.assert_allclose(other[content], rows, rtol=0, atol=ROUNDING_PX)


def awkward_set(root):
    """Write images of many formats, sizes and names, labelled at the borders, one turned by EXIF, some without."""
    files = [
        ("train", "日本 の 猫.png", (60, 80)), ("train", "deep er/ñandú (1).jpg", (97, 53)),
        ("train", "deep_er_ñandú_(1).jpg", (40, 40)), ("train", "a.b.c.bmp", (31, 200)),
        ("val", "x;y,z'q.webp", (64, 48)),
        ("val", "weiß%20#1.tif", (480, 640)), ("val", "UPPER.JPG", (100, 12)), ("train", "nothing.png", (33, 34)),
        ("val", "no file.png", (35, 36)),
    ]  # fmt: skip
    for number, (split, name, size_hw) in enumerate(files):
        write_image(root / "images" / split / name, number, size_hw)
        label = (root / "labels" / split / name).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        if name != "no file.png":
            label.write_text("" if name == "nothing.png" else "\n".join(BORDERS[: 2 + number % 4]) + "\n")
    exif = Image.Exif()
    exif[274] = 6  # stored lying, shown standing: 50 x 70
    pixels = np.random.default_rng(99).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "images" / "train" / "turned.jpg", exif=exif)
    (root / "labels" / "train" / "turned.txt").write_text("2 0.5 0.75 0.2 0.5\n")
    write_yaml(root / "data.yaml", {"train": "images/train", "val": "images/val", "names": list(NAMES)})
    return root / "data.yaml"


WAYS = [("yolo", "coco"), ("coco", "voc"), ("voc", "yolo")]


def names_file(folder, names):
    path = folder / "names.txt"
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return path


def test_awkward_files_round_trip(tmp_path):
    data = awkward_set(tmp_path / "set")
    first = boxes_of(data)
    assert len(first) == 10 and sum(map(len, first.values())) > 20
    for out, report in through(data, WAYS, tmp_path, "--names", names_file(tmp_path, NAMES)):
        assert report["objects lost"] == report["images skipped"] == [] and report["images"] == {"train": 6, "val": 4}
        assert sum(report["objects"].values()) == sum(map(len, first.values()))
        assert_same(first, boxes_of(out / "data.yaml"))


def test_exif_rotated_image_labels(tmp_path):
    data = awkward_set(tmp_path / "set")
    ((coco, _), (voc, _), _) = through(data, WAYS, tmp_path, "--names", names_file(tmp_path, NAMES))
    rows = json.loads((coco / "annotations" / "instances_train.json").read_text())["images"]
    assert [(row["width"], row["height"]) for row in rows if "turned" in row["file_name"]] == [(50, 70)]
    assert "<size><width>50</width><height>70</height>" in (voc / "Annotations" / "turned.xml").read_text()


def test_crowd_difficult_round_trip(tmp_path):
    write_image(tmp_path / "set" / "images" / "train" / "0.png")
    rows = [
        {"bbox": [8, 6, 16, 12], "iscrowd": 0, "category_id": 3},
        {"bbox": [0, 0, 80, 60], "iscrowd": 1, "category_id": 7},
        {"bbox": [70.5, 50.25, 9.5, 9.75], "iscrowd": 1, "category_id": 3},
    ]  # fmt: skip
    rows[1]["segmentation"] = {"counts": [0, 4800], "size": [60, 80]}
    content = {
        "images": [{"id": 10, "file_name": "0.png", "width": 80, "height": 60}],
        "annotations": [{"id": n, "image_id": 10, "area": 1, **row} for n, row in enumerate(rows, 1)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    file = tmp_path / "set" / "annotations" / "instances_train.json"
    file.parent.mkdir()
    file.write_text(json.dumps(content))
    steps = through(tmp_path / "set", [("coco", "voc"), ("voc", "coco")], tmp_path)
    assert (steps[0][0] / "Annotations" / "0.xml").read_text().count("<difficult>1</difficult>") == 2
    back = json.loads((steps[1][0] / "annotations" / "instances_train.json").read_text())
    names = {row["id"]: row["name"] for row in back["categories"]}
    found = {(names[row["category_id"]], row["iscrowd"], *row["bbox"]) for row in back["annotations"]}
    assert found == {("cat", 0, 8, 6, 16, 12), ("dog", 1, 0, 0, 80, 60), ("cat", 1, 70.5, 50.25, 9.5, 9.75)}
    assert len(boxes_of(steps[1][0] / "data.yaml").popitem()[1]) == 1  # neither is trained on


def outline_areas(data):
    """Return {bytes of the image: [(class, area in pixels of each outline)]}, by area."""
    data, found = load_data(str(data)), {}
    for split in {places: split for split, places in data.splits.items()}.values():
        index = build_index(data, split)
        for i in range(len(index)):
            (height, width), polygons = index.shapes_hw[i], index.polygons(i)
            areas = [cv2.contourArea((polygon * (width, height)).astype(np.float32)) for polygon in polygons]
            content = Path(index.path(i)).read_bytes()
            found[content] = sorted(zip(index.labels(i)[:, 0].tolist(), areas, strict=True))
    return found


def test_polygon_round_trip_per_format(tmp_path):
    root = tmp_path / "set"
    for name, size_hw in (("ä ö.png", (60, 80)), ("b.jpg", (97, 53))):
        write_image(root / "images" / "train" / name, len(name), size_hw)
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "ä ö.txt").write_text("0 0 0 1 0 1 1 0 1\n2 0.1 0.1 0.9 0.2 0.5 0.9\n")
    (root / "labels" / "train" / "b.txt").write_text("1 0.2 0 0.4 0.5 0.2 1 0 0.5\n")
    write_yaml(root / "data.yaml", {"train": "images/train", "names": list(NAMES)})
    ways = [("yolo", "coco"), ("coco", "labelme"), ("labelme", "yolo"), ("yolo", "voc")]
    steps = through(root / "data.yaml", ways, tmp_path, "--names", names_file(tmp_path, NAMES))
    first = outline_areas(root / "data.yaml")
    for out, _ in steps[:3]:
        found = outline_areas(out / "data.yaml")
        assert found.keys() == first.keys()
        for content, rows in first.items():
            assert [number for number, _ in found[content]] == [number for number, _ in rows]
            np.testing.assert_allclose([area for _, area in found[content]], [area for _, area in rows], rtol=1e-3)
    assert_same(boxes_of(root / "data.yaml"), boxes_of(steps[3][0] / "data.yaml"))
    assert steps[3][1]["notes"]["polygon written as box"] == 3


def test_coco128_round_trip(coco128, tmp_path):
    names = (coco128 / "names.txt").read_text().split("\n")[:80]
    write_yaml(tmp_path / "data.yaml", {"path": str(coco128), "train": "images/train2017", "names": names})
    given = ("--names", names_file(tmp_path, names), "--images", "link")
    first = boxes_of(tmp_path / "data.yaml")
    assert (len(first), sum(map(len, first.values()))) == (128, 929)
    for out, report in through(tmp_path / "data.yaml", WAYS, tmp_path, *given):
        assert Counter(report["objects"]).total() == 929 and report["objects lost"] == []
        assert_same(first, boxes_of(out / "data.yaml"))
