"""convert.py: round trips, filters, splits, weights; nothing of the source changes and nothing is replaced unasked."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers_bad import two_class_network
from helpers_labels import NAMES, coco_file, labelme_file, voc_file, write_image

import convert
from models.checkpoint import load_checkpoint
from tools.converters import SOURCES, TARGETS, sources, targets
from tools.converters.split import stratify
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.datasets.labels.label_scan import build_index

SIZE_HW = (60, 80)


def run(*line):
    convert.main([str(part) for part in line])


def labels(source_format, target_format, source, out, *more):
    run("labels", "--from", source_format, "--to", target_format, "--source", source, "--out", out, *more)
    return json.loads((out / "convert-report.json").read_text()) if out.exists() else None


def yolo_set(root, polygons=False, count=6, least=0.0):
    """Write images of two sizes with three random objects each, most in train, two in val; return the data YAML."""
    rng = np.random.default_rng(1)
    for i in range(count):
        split, size_hw = ("val" if i > count - 3 else "train"), (SIZE_HW, (97, 53))[i % 2]
        write_image(root / "images" / split / "deep" / f"{i}.png", i, size_hw)
        lines = []
        for _ in range(3):
            corners = rng.uniform(0.02, 0.98, (2, 2))
            low, high = corners.min(0) * (1 - least), corners.max(0) * 0.9 + 0.1
            shape = np.array([[low[0], low[1]], [high[0], low[1]], [(low[0] + high[0]) / 2, high[1]]])
            values = shape.ravel() if polygons else np.concatenate(((low + high) / 2, high - low))
            lines.append(f"{rng.integers(2)} " + " ".join(f"{value:.6f}" for value in values) + "\n")
        file = root / "labels" / split / "deep" / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines))
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return root / "data.yaml"


def state_of(folder):
    """Return a digest of every file below a folder."""
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def indexes(yaml_path):
    data = load_data(str(yaml_path))
    return {split: build_index(data, split) for split in ("train", "val")}


def worst_px(first, second):
    """Return by how many pixels the boxes of two indexes of the same images differ, their classes being equal."""
    worst = 0.0
    for split, one in first.items():
        other = second[split]
        assert len(one) == len(other) and np.array_equal(one.boxes[:, 0], other.boxes[:, 0])
        for i in range(len(one)):
            height, width = one.shapes_hw[i]
            difference = np.abs(one.labels(i)[:, 1:] - other.labels(i)[:, 1:]) * (width, height, width, height)
            worst = max(worst, float(difference.max()))
    return worst


# ----------------------------------------------------------------------------------------------------------------------
# Round trips


def test_yolo_coco_voc_yolo_round_trip(tmp_path):
    source = yolo_set(tmp_path / "set")
    before = state_of(tmp_path / "set")
    steps = [("yolo", "coco", source, "coco"), ("coco", "voc", "coco", "voc"), ("voc", "yolo", "voc", "yolo")]
    for source_format, target_format, place, out in steps:
        more = ("--names", "cat,dog") if source_format == "voc" else ()
        report = labels(source_format, target_format, tmp_path / place, tmp_path / out, *more)
        assert report["images"] == {"train": 4, "val": 2} and sum(report["objects"].values()) == 18
        assert report["objects lost"] == report["images skipped"] == []
    assert state_of(tmp_path / "set") == before
    first = indexes(source)
    for out in ("coco", "voc", "yolo"):  # each is data to train on as it stands
        # x, y, width, height of COCO are rounded to 0.005 px each, corners of VOC again: 0.02 px at most
        assert worst_px(first, indexes(tmp_path / out / "data.yaml")) < 0.02
    pixels = [path.read_bytes() for path in sorted((tmp_path / "set" / "images").rglob("*.png"))]
    assert pixels == [path.read_bytes() for path in sorted((tmp_path / "yolo" / "images").rglob("*.png"))]


def test_decimals(tmp_path):
    source = yolo_set(tmp_path / "set")
    labels("yolo", "voc", source, tmp_path / "voc", "--decimals", 6)
    assert worst_px(indexes(source), indexes(tmp_path / "voc" / "data.yaml")) < 1e-4
    source = yolo_set(tmp_path / "large", least=0.1)
    labels("yolo", "voc", source, tmp_path / "whole", "--decimals", 0)
    text = next((tmp_path / "whole" / "Annotations").glob("*.xml")).read_text()
    assert "." not in text.split("<bndbox>")[1].split("</bndbox>")[0]
    assert 0.1 < worst_px(indexes(source), indexes(tmp_path / "whole" / "data.yaml")) <= 1


@pytest.mark.parametrize("way", ["coco", "labelme"])
def test_polygon_round_trip(tmp_path, way):
    source = yolo_set(tmp_path / "set", polygons=True)
    labels("yolo", way, source, tmp_path / way)
    labels(way, "yolo", tmp_path / way, tmp_path / "back", "--names", "cat,dog")
    first, there, back = (indexes(p) for p in (source, tmp_path / way / "data.yaml", tmp_path / "back" / "data.yaml"))
    for found in (there, back):
        assert worst_px(first, found) < 0.02
        for split, index in first.items():
            np.testing.assert_allclose(found[split].points, index.points, atol=2e-4)
            assert np.array_equal(found[split].point_starts, index.point_starts)


def test_label_styles(tmp_path):
    labels("yolo", "yolo", yolo_set(tmp_path / "set", polygons=True), tmp_path / "b", "--style", "boxes")
    labels("yolo", "yolo", yolo_set(tmp_path / "other"), tmp_path / "p", "--style", "polygons")
    for out, fields in (("b", 5), ("p", 9)):
        lines = [line for file in (tmp_path / out / "labels").rglob("*.txt") for line in file.read_text().splitlines()]
        assert len(lines) == 18 and {len(line.split()) for line in lines} == {fields}


def test_report_lists_what_a_format_cannot_hold(tmp_path):
    rows = [{"bbox": [1, 1, 1, 1]}, {"bbox": [5, 5, 9, 0]}, {"bbox": [2, 2, 9, 9], "iscrowd": 1}, {}]
    for i in range(3):
        write_image(tmp_path / "set" / "images" / f"{i}.png", i)
    coco_file(tmp_path / "set" / "instances_train.json", rows)
    report = labels("coco", "voc", tmp_path / "set", tmp_path / "voc")
    assert [row["why"].split(":")[1].strip()[:20] for row in report["objects lost"]] == [
        "a box of 9 x 0 pixel", "1 x 1 pixels cannot ",
    ]  # fmt: skip
    assert report["notes"]["crowd object marked as difficult"] == 1 and report["objects"] == {"cat": 2}
    report = labels("coco", "yolo", tmp_path / "set", tmp_path / "yolo")
    assert report["objects left out"] == {"crowd": 1} and report["objects"] == {"cat": 2}
    report = labels("coco", "yolo", tmp_path / "set", tmp_path / "dogs", "--names", "dog")
    assert report["objects left out"] == {"class 'cat' not among the names": 4}


def test_coco_keeps_image_ids(tmp_path):
    pytest.importorskip("hotcoco")
    from utils.metrics.coco import ground_truth_from_file

    source = yolo_set(tmp_path / "set")
    labels("yolo", "coco", source, tmp_path / "coco")
    index = indexes(tmp_path / "coco" / "data.yaml")["val"]
    file = load_data(str(tmp_path / "coco" / "data.yaml")).annotations["val"]
    images = {i: index.path(i) for i in range(len(index))}
    truth = ground_truth_from_file(file, NAMES, images)
    assert truth.image_ids == {0: 4, 1: 5} and truth.category_ids == (1, 2)


# ----------------------------------------------------------------------------------------------------------------------
# Street scenes and masks


def cityscapes(root):
    """Write one Cityscapes frame with polygons of four labels and another with instance numbers only."""
    for stem in ("a_1", "a_2"):
        write_image(root / "leftImg8bit" / "val" / "a" / f"{stem}_leftImg8bit.png")
    entries = [
        ("car", [[10, 20], [30, 20], [30, 30]]), ("cargroup", [[1, 1], [9, 1], [9, 9]]),
        ("traffic sign", [[40, 5], [44, 5], [44, 11], [40, 11]]), ("road", [[0, 40], [80, 40], [80, 60]]),
    ]  # fmt: skip
    objects = [{"label": name, "polygon": points} for name, points in entries]
    gt = root / "gtFine" / "val" / "a"
    gt.mkdir(parents=True)
    (gt / "a_1_gtFine_polygons.json").write_text(json.dumps({"imgHeight": 60, "imgWidth": 80, "objects": objects}))
    ids = np.full(SIZE_HW, 7, np.uint16)
    ids[10:20, 5:15], ids[30:40, 50:70], ids[2:5, 2:5] = 26001, 24000, 26
    cv2.imwrite(str(gt / "a_2_gtFine_instanceIds.png"), ids)
    cv2.imwrite(str(gt / "a_2_gtFine_labelIds.png"), (ids // np.where(ids > 999, 1000, 1)).astype(np.uint8))
    return root


def lines_of(file):
    return [[float(value) for value in line.split()] for line in file.read_text().splitlines()]


def test_cityscapes_to_ten_detection_classes(tmp_path):
    root, out = cityscapes(tmp_path / "city"), tmp_path / "out"
    report = labels("cityscapes", "yolo", root, out, "--style", "boxes")
    first = lines_of(out / "labels" / "val" / "a" / "a_1_leftImg8bit.txt")
    np.testing.assert_allclose(
        first, [[0, 20 / 80, 25 / 60, 20 / 80, 10 / 60], [1, 42 / 80, 8 / 60, 4 / 80, 6 / 60]], atol=1e-6
    )
    second = lines_of(out / "labels" / "val" / "a" / "a_2_leftImg8bit.txt")
    np.testing.assert_allclose(
        second, [[3, 60 / 80, 35 / 60, 20 / 80, 10 / 60], [0, 10 / 80, 15 / 60, 10 / 80, 10 / 60]], atol=1e-6
    )
    assert report["objects left out"] == {f"class {name!r} not among the names": 1 for name in ("cargroup", "road")}
    names = load_data(str(out / "data.yaml")).names
    assert names[:4] == ("car", "traffic sign", "rider", "person") and len(names) == 10


def test_cityscapes_centre_offset(tmp_path):
    root, out = cityscapes(tmp_path / "city"), tmp_path / "out"
    labels("cityscapes", "yolo", root, out, "--style", "boxes", "--shift-centre")
    car = lines_of(out / "labels" / "val" / "a" / "a_1_leftImg8bit.txt")[0]
    np.testing.assert_allclose(car, [0, 19 / 80, 24 / 60, 20 / 80, 10 / 60], atol=1e-6)


def test_cityscapes_train_ids(tmp_path):
    root, out = cityscapes(tmp_path / "city"), tmp_path / "out"
    report = labels("cityscapes", "masks", root, out)
    mask = cv2.imread(str(next((out / "masks").rglob("a_2*.png"))), cv2.IMREAD_UNCHANGED)
    assert {int(mask[y, x]) for y, x in ((50, 5), (12, 6), (35, 60))} == {0, 13, 11}  # road, car, person
    assert len(report["images skipped"]) == 1 and "a_1_gtFine_labelIds.png" in report["images skipped"][0]["why"]


def test_real_cityscapes_frame(shared, tmp_path):
    root = shared / "datasets" / "cityscapes_sample"
    if not root.is_dir():
        pytest.skip(f"no Cityscapes frame at {root}")
    report = labels("cityscapes", "yolo", root, tmp_path / "out")
    assert report["objects"] == {"person": 4, "car": 3}
    labels("cityscapes", "masks", root, tmp_path / "masks")
    made = cv2.imread(str(next((tmp_path / "masks" / "masks").rglob("*.png"))), cv2.IMREAD_UNCHANGED)
    wanted = cv2.imread(str(next(root.rglob("*labelTrainIds.png"))), cv2.IMREAD_UNCHANGED)
    assert (made == wanted).mean() > 0.98  # the sample's two maps were made smaller each by itself


def test_panoptic_masks(coco128, tmp_path):
    content = json.loads((coco128 / "annotations" / "panoptic_train2017.json").read_text())
    content["annotations"] = content["annotations"][::10]
    (tmp_path / "panoptic_some.json").write_text(json.dumps(content))
    folders = (
        "--masks",
        coco128 / "annotations" / "panoptic_train2017",
        "--pictures",
        coco128 / "images" / "train2017",
    )
    source = tmp_path / "panoptic_some.json"
    report = labels("panoptic", "masks", source, tmp_path / "out", "--images", "none", *folders)
    assert report["images"] == {"some": 10}
    for row in content["annotations"]:
        wanted = coco128 / "masks_semantic" / "train2017" / row["file_name"]
        made = tmp_path / "out" / "masks" / "some" / row["file_name"]
        assert np.array_equal(cv2.imread(str(made), -1), cv2.imread(str(wanted), -1))


def test_labelme_to_masks(shared, tmp_path):
    root = shared / "datasets" / "crack"
    if not root.is_dir():
        pytest.skip(f"no crack photos at {root}")
    labels(
        "labelme", "masks", root / "labelme" / "seg", tmp_path / "out", "--names", root / "labelme" / "seglabels.txt"
    )
    overlaps = []
    for number in range(1, 11):
        made, wanted = (
            cv2.imread(str(folder / f"{number}.png"), -1) == 1
            for folder in (tmp_path / "out" / "masks" / "train", root / "seglabels" / "train")
        )
        overlaps.append((made & wanted).sum() / (made | wanted).sum())
    assert min(overlaps) > 0.97 and np.mean(overlaps) > 0.99


def test_mask_polygon_round_trip(tmp_path):
    mask = np.zeros(SIZE_HW, np.uint8)
    cv2.circle(mask, (20, 20), 9, 1, -1)
    cv2.rectangle(mask, (40, 10), (60, 50), 2, -1)
    mask[5, 70], mask[:, 78:] = 1, 255
    write_image(tmp_path / "set" / "images" / "x.png")
    (tmp_path / "set" / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "set" / "masks" / "x.png"), mask)
    names = ("--names", "_background_,cat,dog")
    report = labels("masks", "labelme", tmp_path / "set", tmp_path / "shapes", *names)
    assert report["objects"] == {"cat": 2, "dog": 1}
    labels("labelme", "masks", tmp_path / "shapes", tmp_path / "again", *names)
    again = cv2.imread(str(tmp_path / "again" / "masks" / "train" / "x.png"), -1)
    mask[mask == 255] = 0  # unlabelled pixels have no polygon
    assert (again != mask).sum() <= 3  # the single pixel's square ends on pixels of its own
    report = labels("masks", "yolo", tmp_path / "set", tmp_path / "large", *names, "--least-px", 2)
    assert report["objects"] == {"cat": 1, "dog": 1}
    assert load_data(str(tmp_path / "large" / "data.yaml")).names == NAMES  # background is no class of objects


def test_arrays_to_png_masks(tmp_path):
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "a.npy", np.array([[-1, 0], [1, 2]], np.int32))
    labels("masks", "masks", tmp_path / "npy", tmp_path / "out")
    made = cv2.imread(str(tmp_path / "out" / "masks" / "train" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert made.tolist() == [[255, 0], [1, 2]]


def test_labelme_rectangles_to_boxes(tmp_path):
    square = {"label": "cat", "points": [[8, 6], [24, 18]], "shape_type": "rectangle"}
    triangle = {"label": "dog", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"}
    write_image(tmp_path / "set" / "x.png")
    labelme_file(tmp_path / "set" / "x.json", [square, triangle])
    labels("labelme", "yolo", tmp_path / "set", tmp_path / "out", "--only", "rectangle", "--names", "cat,dog")
    np.testing.assert_allclose(lines_of(tmp_path / "out" / "labels" / "train" / "x.txt"), [[0, 0.2, 0.2, 0.2, 0.2]])


def test_bdd100k(tmp_path):
    crowd = {"category": "car", "box2d": {"x1": 1, "y1": 1, "x2": 9, "y2": 9}, "attributes": {"crowd": True}}
    box = {"category": "car", "box2d": {"x1": 8, "y1": 6, "x2": 24, "y2": 18}}
    line = {"category": "lane/road curb", "poly2d": [{"vertices": [[1, 1], [5, 5]], "types": "LL", "closed": False}]}
    outline = {"category": "bus", "poly2d": [{"vertices": [[0, 0], [40, 0], [40, 30]], "types": "LLL"}]}
    frames = [{"name": "x.jpg", "labels": [crowd, box, line, outline]}, {"name": "gone.jpg", "labels": []}]
    write_image(tmp_path / "images" / "x.jpg")
    (tmp_path / "labels.json").write_text(json.dumps(frames))
    more = ("--pictures", tmp_path / "images")
    report = labels("bdd100k", "yolo", tmp_path / "labels.json", tmp_path / "out", *more, "--style", "boxes")
    wanted = [[1, 0.2, 0.2, 0.2, 0.2], [0, 0.25, 0.25, 0.5, 0.5]]  # bus, car: sorted names
    np.testing.assert_allclose(lines_of(tmp_path / "out" / "labels" / "train" / "x.txt"), wanted)
    assert report["objects left out"] == {"crowd": 1} and report["notes"] == {"1 of 2 images not found": 1}


def test_kitti(tmp_path):
    write_image(tmp_path / "set" / "image_2" / "1.png")
    (tmp_path / "set" / "label_2").mkdir()
    lines = "Car 0.0 0 1.5 8 6 24 18 1 1 1 1 1 1 1\nDontCare -1 -1 -10 1 1 9 9 -1 -1 -1 -1 -1 -1 -1\n"
    (tmp_path / "set" / "label_2" / "1.txt").write_text(lines)
    labels("kitti", "yolo", tmp_path / "set", tmp_path / "out")
    np.testing.assert_allclose(lines_of(tmp_path / "out" / "labels" / "train" / "1.txt"), [[0, 0.2, 0.2, 0.2, 0.2]])


@pytest.mark.parametrize(
    "text",
    [
        "filename,width,height,class,xmin,ymin,xmax,ymax\nx.png,80,60,car,8,6,24,18\n",
        "xmin,ymin,xmax,ymax,Frame,Label,Preview URL\n8,6,24,18,deep\\x.png,car,nowhere\n",
        'x.png 8 6 24 18 0 "car"\n',
    ],
)
def test_csv_tables(tmp_path, text):
    write_image(tmp_path / "set" / "x.png")
    (tmp_path / "set" / "labels.csv").write_text(text)
    labels("csv", "yolo", tmp_path / "set" / "labels.csv", tmp_path / "out")
    np.testing.assert_allclose(lines_of(tmp_path / "out" / "labels" / "train" / "x.txt"), [[0, 0.2, 0.2, 0.2, 0.2]])


def test_csv_faults_name_the_line(tmp_path):
    write_image(tmp_path / "x.png")
    for text, says in (
        ("a,b\n", ":1: no column for image, label"),
        ("x.png 8 six 24 18 0 car\n", ":1: expected an"),
    ):
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(UserError, match=r"labels\.csv" + says):
            labels("csv", "yolo", tmp_path / "labels.csv", tmp_path / "out")


# ----------------------------------------------------------------------------------------------------------------------
# Care with files


def test_existing_output_needs_exist_ok(tmp_path):
    source, out = yolo_set(tmp_path / "set"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"exists and is not empty.*--exist-ok"):
        labels("yolo", "coco", source, out)
    labels("yolo", "coco", source, out, "--exist-ok")
    assert (out / "mine.txt").read_text() == "mine" and (out / "data.yaml").is_file()


@pytest.mark.parametrize("out", ["set", "set/../set", "."])
def test_source_is_not_modified(tmp_path, out):
    yolo_set(tmp_path / "set")
    before = state_of(tmp_path)
    with pytest.raises(UserError, match="never changed"):
        source = tmp_path / "set" / ("data.yaml" if out != "." else "")
        labels("yolo", "yolo", source, tmp_path / out if out != "." else tmp_path / "set", "--exist-ok")
    assert state_of(tmp_path) == before


def test_dry_run(tmp_path, caplog):
    caplog.set_level("INFO", "polyolo")
    source = yolo_set(tmp_path / "set")
    before = state_of(tmp_path)
    for target in ("yolo", "coco", "voc", "labelme", "masks"):
        assert labels("yolo", target, source, tmp_path / "out", "--dry-run") is None
    run("split", "--source", source, "--out", tmp_path / "out", "--dry-run")
    assert state_of(tmp_path) == before
    said = [record.getMessage() for record in caplog.records]
    assert said.count("images: 4 train, 2 val; objects: 18 in 2 classes") == 4 and any("would be" in s for s in said)


def test_interrupted_conversion_leaves_no_folder(tmp_path, monkeypatch):
    from tools.converters.targets.yolo import YoloTarget

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(YoloTarget, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        labels("yolo", "yolo", yolo_set(tmp_path / "set"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_images_linked_or_omitted(tmp_path):
    source = yolo_set(tmp_path / "set")
    labels("yolo", "yolo", source, tmp_path / "linked", "--images", "link")
    links = list((tmp_path / "linked" / "images").rglob("*.png"))
    assert len(links) == 6 and all(path.is_symlink() and path.resolve().is_file() for path in links)
    labels("yolo", "yolo", source, tmp_path / "bare", "--images", "none")
    assert not list((tmp_path / "bare").rglob("*.png")) and len(list((tmp_path / "bare").rglob("*/*.txt"))) == 6


def test_duplicate_file_names(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / "set" / split / "1.png")
        voc_file(tmp_path / "set" / split / "1.xml", [("cat", 1, 1, 9, 9, 0)])
    labels("voc", "voc", tmp_path / "set", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "JPEGImages").iterdir()) == ["1.png", "val_1.png"]
    assert [len(index) for index in indexes(tmp_path / "out" / "data.yaml").values()] == [1, 1]


def test_faulty_inputs_are_skipped(tmp_path):
    source = yolo_set(tmp_path / "set")
    (tmp_path / "set" / "labels" / "train" / "deep" / "0.txt").write_text("0 1 2\n")
    (tmp_path / "set" / "images" / "train" / "deep" / "1.png").write_bytes(b"junk")
    report = labels("yolo", "coco", source, tmp_path / "out")
    reasons = [row["why"] for row in report["images skipped"]]
    assert len(reasons) == 2 and "0.txt:1: 3 fields" in reasons[0] and "1.png: not an image" in reasons[1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("labels", "--from", "yolo", "--to", "voc", "--source", "nowhere", "--out", "o"), "nowhere: no such file"),
        (("labels", "--from", "yolo", "--to", "voc", "--source", "SET", "--out", "o"), "set --names"),
        (("labels", "--from", "voc", "--to", "yolo", "--source", "SET", "--out", "o"), "no class names"),
        (("labels", "--from", "coco", "--to", "yolo", "--source", "SET", "--out", "o"), "no instances_"),
        (("labels", "--from", "cityscapes", "--to", "yolo", "--source", "SET", "--out", "o"), "no folder leftImg8bit"),
        (("labels", "--from", "masks", "--to", "yolo", "--source", "SET", "--out", "o"), "masks contain numbers only"),
        (("labels", "--from", "yolo", "--to", "exe", "--source", "SET", "--out", "o"), "invalid choice"),
        (("split", "--source", "SET", "--out", "o", "--names", "n.txt"), "no such file"),
        (("split", "--source", "SET", "--out", "o", "--names", "a,a"), "occurs twice"),
        (("split", "--source", "SET", "--out", "o"), "set --names"), (("mend",), "invalid choice"), ((), "required"),
        (("split", "--source", "SET", "--out", "o", "--shares", "1"), "two or three positive numbers"),
        (("split", "--source", "SET", "--out", "o", "--stratify", "none", "--group", "("), "not a valid regular"),
        (("checkpoint", "--weights", "x.pt", "--out", "o.pt"), "x.pt: no such file"),
    ],
)  # fmt: skip
def test_invalid_commands(tmp_path, monkeypatch, line, says):
    write_image(tmp_path / "set" / "images" / "a.png")
    write_image(tmp_path / "set" / "images" / "b.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        run(*("set" if part == "SET" else part for part in line))
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["set"]


def test_options_match_registries():
    assert convert.format_names(sources) == SOURCES.names()
    assert convert.format_names(targets) == TARGETS.names()


def test_convert_program(tmp_path, root):
    source = yolo_set(tmp_path / "set")
    line = ["labels", "--from", "yolo", "--to", "coco", "--source", str(source), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "convert.py", *line], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "files written to" in done.stdout
    done = subprocess.run([sys.executable, "convert.py", *line], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


# ----------------------------------------------------------------------------------------------------------------------
# Splits and weights


def test_stratified_split():
    rng = np.random.default_rng(3)
    counts = rng.poisson((4, 1, 0.3, 0.05), (1000, 4))
    part = stratify(counts, np.ones(1000, np.int64), (0.7, 0.2, 0.1), seed=0)
    for label in range(4):
        shares = np.array([counts[part == n, label].sum() for n in range(3)]) / counts[:, label].sum()
        one = counts[:, label].max() / counts[:, label].sum()  # an image cannot be divided
        assert np.abs(shares - (0.7, 0.2, 0.1)).max() <= max(one, 0.005)
    assert np.abs(np.bincount(part) - (700, 200, 100)).max() <= 20
    assert np.array_equal(part, stratify(counts, np.ones(1000, np.int64), (0.7, 0.2, 0.1), seed=0))
    assert not np.array_equal(part, stratify(counts, np.ones(1000, np.int64), (0.7, 0.2, 0.1), seed=1))


def test_stratified_split_of_small_class():
    counts = np.zeros((20, 2), np.int64)
    counts[:, 0], counts[[4, 5], 1] = 1, 1
    part = stratify(counts, np.ones(20, np.int64), (0.5, 0.5), seed=0)
    assert part[4] != part[5]


def test_split_lists_and_groups(tmp_path):
    for i in range(24):
        write_image(tmp_path / "set" / "images" / f"street{i % 8}_{i}.png", i)
        file = tmp_path / "set" / "labels" / f"street{i % 8}_{i}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{i % 2} 0.5 0.5 0.2 0.2\n")
    before = state_of(tmp_path / "set")
    more = ("--names", "cat,dog", "--group", r"street\d+", "--shares", 0.5, 0.25, 0.25)
    run("split", "--source", tmp_path / "set", "--out", tmp_path / "out", *more)
    assert state_of(tmp_path / "set") == before
    data = load_data(str(tmp_path / "out" / "data.yaml"))
    found = {split: build_index(data, split) for split in ("train", "val", "test")}
    assert {split: len(index) for split, index in found.items()} == {"train": 12, "val": 6, "test": 6}
    groups = [{Path(index.path(i)).name.split("_")[0] for i in range(len(index))} for index in found.values()]
    assert sum(map(len, groups)) == 8 and not groups[0] & groups[1] and not groups[1] & groups[2]
    assert [index.class_counts(2).tolist() for index in found.values()] == [[6, 6], [3, 3], [3, 3]]


@pytest.mark.parametrize("layout", ["Pascal VOC", "LabelMe"])
def test_split_finds_classes_in_annotations(tmp_path, layout, caplog):
    write, images, ending = (voc_file, "JPEGImages", "xml") if layout == "Pascal VOC" else (labelme_file, "", "json")
    for i in range(6):
        image = write_image(tmp_path / "photos" / images / f"{i}.png", i)
        file = tmp_path / "photos" / "Annotations" / f"{i}.xml" if ending == "xml" else image.with_suffix(".json")
        name = ("owl", "ant")[i % 2]
        if ending == "xml":
            write(file, [(name, 1, 1, 9, 9, 0)])
        else:
            write(file, [{"label": name, "shape_type": "rectangle", "points": [[1, 1], [9, 9]]}])
    with pytest.raises(UserError, match=f"a {layout} folder without a data YAML; run `python convert.py split"):
        load_data(str(tmp_path / "photos"))
    with caplog.at_level("INFO", logger="polyolo"):
        run("split", "--source", tmp_path / "photos", "--out", tmp_path / "out", "--shares", 4, 2)
    assert f"train: python train.py --data {tmp_path / 'out'}" in caplog.text
    found = indexes(tmp_path / "out" / "data.yaml")
    assert [index.class_counts(2).tolist() for index in found.values()] == [[2, 2], [1, 1]]
    assert load_data(str(tmp_path / "out")).names == ("ant", "owl")


@pytest.mark.parametrize("command", [("labels", "--from", "yolo", "--to", "labelme"), ("split",)])
def test_generated_sources_are_written_first(tmp_path, command):
    generate = {"kind": "shapes", "train": 3, "val": 2, "size": 64, "seed": 0}
    splits = {"train": "images/train", "val": "images/val"}
    names = list(load_data("shapes").names)
    (tmp_path / "d.yaml").write_text(yaml.safe_dump({"path": "made", **splits, "names": names, "generate": generate}))
    run(*command, "--source", tmp_path / "d.yaml", "--out", tmp_path / "out")
    images = json.loads((tmp_path / "out" / "convert-report.json").read_text())["images"]
    assert sum(images.values()) == 5


def test_split_of_coco_and_class_folders(tmp_path):
    for i in range(4):
        write_image(tmp_path / "set" / "images" / f"{i}.png", i)
    coco_file(tmp_path / "set" / "a.json", [{"image_id": 10 * i} for i in (1, 2, 3, 4)], images=4)
    values = {"format": "coco", "train": "images", "annotations": {"train": "a.json"}, "names": ["cat", "dog"]}
    (tmp_path / "set" / "d.yaml").write_text(yaml.safe_dump(values))
    run("split", "--source", tmp_path / "set" / "d.yaml", "--out", tmp_path / "out", "--shares", 0.5, 0.5)
    assert [len(index.boxes) for index in indexes(tmp_path / "out" / "data.yaml").values()] == [2, 2]
    for i in range(10):
        write_image(tmp_path / "folders" / ("ants" if i < 6 else "bees") / f"{i}.png", i)
    more = ("--stratify", "folders", "--shares", 0.5, 0.5)
    run("split", "--source", tmp_path / "folders", "--out", tmp_path / "halves", *more)
    for split in ("train", "val"):
        lines = (tmp_path / "halves" / f"{split}.txt").read_text().splitlines()
        assert (sum("/ants/" in line for line in lines), sum("/bees/" in line for line in lines)) == (3, 2)


def test_weights_safetensors_round_trip(tmp_path):
    source = two_class_network(tmp_path / "two.pt")
    before = source.read_bytes()
    run("checkpoint", "--weights", source, "--out", tmp_path / "two.safetensors")
    run("checkpoint", "--weights", tmp_path / "two.safetensors", "--out", tmp_path / "again.pt", "--half")
    first, second = load_checkpoint(source), load_checkpoint(tmp_path / "again.pt")
    assert first.names == second.names == ("a", "b") and source.read_bytes() == before
    for name, tensor in first.network.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="--exist-ok"):
        run("checkpoint", "--weights", source, "--out", tmp_path / "again.pt")
    with pytest.raises(UserError, match="never changed"):
        run("checkpoint", "--weights", source, "--out", source, "--exist-ok")
    with pytest.raises(UserError, match=r"expected the suffix \.pt"):
        run("checkpoint", "--weights", source, "--out", tmp_path / "x.onnx")


def test_convert_official_checkpoint(shared, tmp_path):
    run("checkpoint", "--weights", shared / "weights" / "yolov5n.pt", "--out", tmp_path / "n.pt")
    made, official = load_checkpoint(tmp_path / "n.pt"), load_checkpoint(shared / "weights" / "yolov5n.pt")
    assert (made.source, official.source) == ("polyolo", "yolov5") and made.names == official.names
    picture_tensor = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = (c.network.float()(picture_tensor)["detect"] for c in (made, official))
    assert all(torch.equal(first[name], second[name]) for name in first if isinstance(first[name], torch.Tensor))
