"""COCO JSON, Pascal VOC and LabelMe read directly: what becomes a label, what is a fault, and that it trains."""

import base64
import codecs
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers_labels import NAMES, coco_file, labelme_file, voc_file, write_image
from pycocotools import mask as coco_mask

from utils.core.data_config import DataConfig, load_data
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.core.yaml_file import write_yaml
from utils.datasets.labels.annotation_objects import (
    bezier,
    decompress_counts,
    join_pieces,
    mask_pieces,
    run_length_pieces,
)
from utils.datasets.labels.json_stream import stream_json
from utils.datasets.labels.label_scan import build_index
from utils.datasets.labels.readers import coco as coco_reader
from utils.datasets.labels.readers.auto import detect_format
from utils.datasets.pipeline.box_samples import open_box_loader
from utils.ops.masks import polygon_mask


def coco_data(root, annotations, images=3, names=NAMES, **more):
    for i in range(images):
        write_image(root / "images" / f"{i}.png", i)
    coco_file(root / "a.json", annotations, images, **more)
    places = {"train": (root / "images",)}
    return DataConfig(root / "d.yaml", root, names, places, format="coco", annotations={"train": root / "a.json"})


def files_data(root, form="auto"):
    return DataConfig(root / "d.yaml", root, NAMES, {"train": (root,)}, format=form)


def report_of(caplog):
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.fixture
def said(caplog):
    """Return a function that gives the log so far."""
    caplog.set_level("INFO", "polyolo")
    return lambda: report_of(caplog)


# ----------------------------------------------------------------------------------------------------------------------
# COCO


def test_coco_categories_with_gaps(tmp_path):
    data = coco_data(tmp_path, [{"category_id": 7}, {"image_id": 30, "category_id": 3, "bbox": [40, 30, 40, 30]}])
    index = build_index(data, "train")
    assert [index.labels(i).tolist() for i in range(3)] == [
        [pytest.approx([1, 0.2, 0.2, 0.2, 0.2])],  # centre 16 of 80, 12 of 60
        [],
        [pytest.approx([0, 0.75, 0.75, 0.5, 0.5])],
    ]
    other = build_index(replace(data, names=("x", "y")), "train")  # other names, as many: by the order of the ids
    assert other.boxes[:, 0].tolist() == [1, 0]
    with pytest.raises(UserError, match=r"none is named 'bird'"):
        build_index(replace(data, names=("cat", "bird", "dog")), "train")


def test_coco_category_subset(tmp_path, said):
    data = coco_data(tmp_path, [{"category_id": 7}, {}, {"category_id": 7, "image_id": 20}], names=("cat",))
    assert build_index(data, "train").boxes[:, 0].tolist() == [0]
    assert "2 objects of categories that" in said()


def test_coco_crowds_are_skipped(tmp_path, said):
    runs = {"size": [60, 80], "counts": [0, 4800]}
    index = build_index(coco_data(tmp_path, [{}, {"iscrowd": 1, "segmentation": runs}]), "train")
    assert len(index.boxes) == 1 and "1 crowd regions are not used for training" in said()


def test_coco_segmentation_forms(tmp_path):
    mask = np.zeros((60, 80), np.uint8)
    cv2.circle(mask, (30, 25), 12, 1, -1)
    packed = coco_mask.encode(np.asfortranarray(mask))
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    plain = np.diff([0, *edges, flat.size]).tolist()  # starts with zeros
    box = {"bbox": [18, 13, 25, 25]}
    rows = [
        {"segmentation": {"size": [60, 80], "counts": packed["counts"].decode()}, **box},
        {"segmentation": {"size": [60, 80], "counts": plain}, "image_id": 20, **box},
        {"segmentation": [[8, 6, 24, 6, 24, 18, 8, 18]], "image_id": 30},
    ]
    index = build_index(coco_data(tmp_path, rows), "train")
    for image in range(2):
        assert np.array_equal(polygon_mask(index.polygons(image)[0] * (80, 60), (60, 80)), mask)
    np.testing.assert_allclose(index.polygons(2)[0] * (80, 60), [[8, 6], [24, 6], [24, 18], [8, 18]], atol=1e-4)
    assert index.first_without_polygon() is None


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"bbox": [1, 2, 3]}, "no `bbox"), ({"bbox": [1, 2, "x", 4]}, "no `bbox"),
        ({"bbox": [1, 2, float("nan"), 4]}, "number that is not finite"), ({"category_id": 99}, "category is not in"),
        ({"category_id": None}, "no `category_id`"), ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "pairs of finite"),
        ({"segmentation": {"size": [60, 80], "counts": [5, 5]}}, "do not add up"),
        ({"segmentation": {"size": [60000, 80000], "counts": "x"}}, "run lengths of an invalid size, 80000"),
        ({"segmentation": {"size": [60, 80], "counts": "o" * 50}}, "do not add up"), ({"segmentation": 3}, "neither"),
    ],
)  # fmt: skip
def test_coco_faulty_annotation(tmp_path, said, row, says):
    data = coco_data(tmp_path, [{"image_id": 20}, row])
    with pytest.raises(UserError, match=r"1 faulty label files among 3.*a\.json: annotation 101: .*" + says):
        build_index(data, "train")
    index = build_index(data, "train", allow_faults=True)
    assert [index.path(i)[-5:] for i in range(len(index))] == ["1.png", "2.png"]
    assert "a.json: annotation 101" in said()


def test_coco_empty_boxes(tmp_path, said):
    rows = [{"image_id": 10 + 10 * (n % 3), "bbox": [n % 40, n // 40, 9, 9]} for n in range(150)]
    data = coco_data(tmp_path, [*rows, {"bbox": [5, 5, 0, 7]}])
    index = build_index(data, "train")
    assert (len(index), len(index.boxes), index.count["lost"]) == (3, 150, 1)
    assert "annotation 250 (0.png): a box of 0 x 7 pixels at 5, 5, dropped" in said()
    data = coco_data(tmp_path, [*rows, {"bbox": [5, 5, 0, 7]}, {"bbox": [90, 5, 4, 7]}])
    with pytest.raises(UserError, match=r"2 invalid objects among 152, see.*--allow-label-faults"):
        build_index(data, "train")
    assert len(build_index(data, "train", allow_faults=True).boxes) == 150


def test_coco_boxes_are_clipped(tmp_path):
    index = build_index(coco_data(tmp_path, [{"bbox": [-8, 30, 16, 60]}]), "train")
    np.testing.assert_allclose(index.boxes, [[0, 0.05, 0.75, 0.1, 0.5]], atol=1e-6)


def test_coco_image_list(tmp_path, said):
    data = coco_data(tmp_path, [{}, {"image_id": 999}])
    write_image(tmp_path / "images" / "other.png")
    (tmp_path / "images" / "2.png").unlink()
    assert len(build_index(data, "train")) == 2
    for text in ("does not list 1 of the images found", "1 of its 3 images not found, such as 2.png", "1 annotations"):
        assert text in said()


def test_coco_wrong_or_missing_json(tmp_path):
    data = coco_data(tmp_path, [{}])
    (tmp_path / "elsewhere").mkdir()
    write_image(tmp_path / "elsewhere" / "x.png")
    with pytest.raises(UserError, match=r"none of its 3 images, such as 0.png"):
        build_index(replace(data, splits={"train": (tmp_path / "elsewhere",)}), "train")
    with pytest.raises(UserError, match=r"needs the JSON of this split"):
        build_index(replace(data, annotations={}), "train")
    with pytest.raises(UserError, match=r"not found; looked for"):
        build_index(replace(data, annotations={"train": tmp_path / "no.json"}), "train")


def test_coco_image_size_mismatch(tmp_path):
    data = coco_data(tmp_path, [{}, {"image_id": 20}])
    write_image(tmp_path / "images" / "1.png", 1, (120, 160))
    index = build_index(data, "train")
    assert index.labels(1).tolist() == index.labels(0).tolist()
    write_image(tmp_path / "images" / "1.png", 1, (80, 60))
    with pytest.raises(UserError, match=r"a.json: size of .*1.png is 80 x 60 pixels in the labels but 60 x 80 in"):
        build_index(data, "train")


def test_coco_cache(tmp_path, monkeypatch):
    data, reads = coco_data(tmp_path, [{}]), []
    original = coco_reader.read_coco_json
    monkeypatch.setattr(coco_reader, "read_coco_json", lambda path: (reads.append(path), original(path))[1])
    first, again = build_index(data, "train"), build_index(data, "train")
    assert len(reads) == 1 and all(np.array_equal(a, again.arrays()[k]) for k, a in first.arrays().items())
    build_index(replace(data, names=("dog", "cat")), "train")
    assert len(reads) == 2
    coco_file(tmp_path / "a.json", [{}, {"image_id": 20}])
    assert len(build_index(data, "train").boxes) == 2


@pytest.mark.parametrize("text", ['a"]}, ü', "1e999", "NaN"])
@pytest.mark.parametrize("head", [b"", codecs.BOM_UTF8])
def test_json_stream_matches_json(tmp_path, text, head):
    value = text if text.startswith("a") else float(text)
    rows = [{"segmentation": [[1.5, 2, 3, 4, 5, 6]], "text": value}] * 5
    path = coco_file(tmp_path / "a.json", rows, info={"x": [1, 2]})
    written = path.read_text().replace("Infinity", "1e999")
    path.write_bytes(head + written.encode())
    wanted = json.loads(written)
    found, sizes = {"images": [], "annotations": []}, []
    for key, item in stream_json(path, ("images", "annotations"), sizes.append):
        found[key].append(item)
    assert repr(found) == repr({key: wanted[key] for key in found})  # NaN is not equal to itself
    assert bool(sizes) == (text != "NaN")


def test_json_stream_names_the_item(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": [{"b": 1}, {"b": "\xff"}]}')
    items = stream_json(path, ("a",), lambda _: None)
    assert next(items) == ("a", {"b": 1})
    with pytest.raises(UserError, match=r"a\.json: item 2 of `a`: not valid JSON"):
        next(items)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"images": [\n{"id": 1', ":2: not valid JSON"), ("[]", ":1: not valid JSON"), ("", ":1: not valid JSON"),
        ('{"images": []}', "no `images` in it"), ('{"images": [3]}', "must be a list of objects"),
        ('{"images": [{"id": 1}]}', "needs an `id` and a `file_name`"), ("[" * 100_000, "not valid JSON"),
        ('{"images": [{"id": 1, "file_name": "0.png"}, {"id": 1, "file_name": "1.png"}]}', "two images have the id 1"),
    ],
)  # fmt: skip
def test_not_a_coco_json(tmp_path, text, says):
    data = coco_data(tmp_path, [{}])
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json.*" + says):
        build_index(data, "train")


def request(data, **more):
    settings = {"split": "train", "training": True, "image_size": 64, "batch_size": 4, "stride": 32, "workers": 0}
    return LoadRequest(data=data, hyp=Hyp(), **settings | more)


def same_batches(first, second, tolerance_px, size):
    """Compare every batch of an epoch: pixels equal, boxes to so many pixels; return how many boxes there were."""
    count = 0
    for one, other in zip(open_box_loader(first).epoch(0), open_box_loader(second).epoch(0), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.boxes[:, :2], other.boxes[:, :2])
        assert float((one.boxes[:, 2:] - other.boxes[:, 2:]).abs().max() * size) < tolerance_px
        count += len(one.boxes)
    return count


def test_json_and_text_labels_give_equal_batches(tmp_path):
    rng, rows = np.random.default_rng(5), []
    for image in range(8):
        lines = []
        for _ in range(4):
            x, y, w, h = (rng.uniform(0.05, 0.45, 4) * (80, 60, 80, 60)).round(2).tolist()
            label = int(rng.integers(2))
            rows.append({"image_id": 10 * (image + 1), "category_id": (3, 7)[label], "bbox": [x, y, w, h]})
            lines.append(f"{label} {(x + w / 2) / 80:.6f} {(y + h / 2) / 60:.6f} {w / 80:.6f} {h / 60:.6f}\n")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{image}.txt").write_text("".join(lines))
    coco = coco_data(tmp_path, rows, images=8)
    yolo = replace(coco, format="yolo")
    assert same_batches(request(coco), request(yolo), tolerance_px=1e-3, size=64) > 30  # six decimals of 64 pixels


def test_coco128_json_and_text_train_alike(coco128, monkeypatch):
    monkeypatch.setenv("YOLOv5_DATASETS_DIR", str(coco128.parent))
    yolo = load_data("coco128.yaml")
    file = coco128 / "annotations" / "instances_train2017.json"
    coco = replace(yolo, format="coco", annotations={"train": file})
    boxes = [build_index(data, "train").boxes for data in (coco, yolo)]
    assert boxes[0].shape == (929, 5) and np.abs(boxes[0] - boxes[1]).max() < 1e-6
    settings = {"image_size": 128, "batch_size": 16}
    assert same_batches(request(coco, **settings), request(yolo, **settings), tolerance_px=1e-3, size=128) > 900


def test_mindspore_folders(tmp_path):
    for split, count in (("train2017", 3), ("val2017", 1)):
        for i in range(count):
            write_image(tmp_path / split / f"{i}.png", i)
        coco_file(tmp_path / "annotations" / f"instances_{split}.json", [{}], count)
    files = {split: f"annotations/instances_{split}2017.json" for split in ("train", "val")}
    values = {
        "path": str(tmp_path),
        "train": "train2017",
        "val": "val2017",
        "annotations": files,
        "names": ["cat", "dog"],
    }
    write_yaml(tmp_path / "d.yaml", values)
    data = load_data(str(tmp_path / "d.yaml"))
    assert [len(build_index(data, split)) for split in ("train", "val")] == [3, 1]


# ----------------------------------------------------------------------------------------------------------------------
# VOC


def test_voc_pixel_convention(tmp_path):
    write_image(tmp_path / "x.png")
    voc_file(tmp_path / "x.xml", [("dog", 9, 7, 24, 18, 0), ("Cat", 1, 1, 80, 60, 0), ("cat", 3, 3, 9, 9, 1)])
    index = build_index(files_data(tmp_path), "train")
    # 9 to 24 are 16 columns, from 8 to 24; the difficult one is not trained on
    np.testing.assert_allclose(index.boxes, [[1, 0.2, 0.2, 0.2, 0.2], [0, 0.5, 0.5, 1, 1]], atol=1e-6)


def test_voc_image_sets(tmp_path):
    for i in range(4):
        write_image(tmp_path / "JPEGImages" / f"{i}.png", i)
        voc_file(tmp_path / "Annotations" / f"{i}.xml", [("cat", 1, 1, 40 + i, 30, 0)])
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n2\n")
    (lists / "cat_val.txt").write_text("1  1\n3 -1\n")
    data = files_data(tmp_path)
    for place, wanted in (
        (lists / "train.txt", "02"),
        (lists / "cat_val.txt", "13"),
        (tmp_path / "JPEGImages", "0123"),
    ):
        index = build_index(replace(data, splits={"train": (place,)}), "train")
        assert "".join(index.path(i)[-5] for i in range(len(index))) == wanted
        assert len(index.boxes) == len(wanted)


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<annotation><object>", r"x\.xml:1: not valid XML"), ("", "not valid XML"),
        ("<html></html>", "got <html>"),
        (LAUGHS + "<annotation>&b;</annotation>", r"x\.xml:1: has a document type"),
        ((LAUGHS + "<annotation/>").encode("utf-16"), "document type"), ("<a>" * 100, "too deep"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "document type"),
        ("<annotation>\n\n<object><name>cat</name></object></annotation>", r"x\.xml:3: object 1: <bndbox> needs"),
        ("<annotation><size><width>a</width></size></annotation>", "<size> must have numbers"),
    ],
)  # fmt: skip
def test_voc_faulty_xml(tmp_path, text, says):
    for name in ("x", "y"):
        write_image(tmp_path / f"{name}.png")
        voc_file(tmp_path / f"{name}.xml", [("cat", 1, 1, 9, 9, 0)])
    (tmp_path / "x.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"1 faulty label files among 2.*" + says):
        build_index(files_data(tmp_path), "train")
    assert len(build_index(files_data(tmp_path), "train", allow_faults=True)) == 1


def test_unknown_class_name(tmp_path):
    write_image(tmp_path / "x.png")
    voc_file(tmp_path / "x.xml", [("bird", 1, 1, 9, 9, 0)])
    with pytest.raises(UserError, match=r"x.xml: object 1: class 'bird' is not among the `names`"):
        build_index(files_data(tmp_path), "train")


def test_single_cls_label_names(tmp_path):
    write_image(tmp_path / "x.png")
    voc_file(tmp_path / "x.xml", [("dog", 1, 1, 9, 9, 0)])
    index = build_index(files_data(tmp_path).single_class(), "train", single_class=True)
    assert index.boxes[:, 0].tolist() == [0]


def test_bccd(shared, said):
    root = shared / "datasets" / "bccd"
    if not root.is_dir():
        pytest.skip(f"no bccd at {root}")
    lists = {split: (root / "ImageSets" / "Main" / f"{split}.txt",) for split in ("train", "val", "test")}
    data = DataConfig(root, root, ("RBC", "WBC", "Platelets"), lists)
    found = {split: build_index(data, split) for split in lists}
    assert {split: len(index) for split, index in found.items()} == {"train": 205, "val": 87, "test": 72}
    assert {split: index.count["lost"] for split, index in found.items()} == {"train": 1, "val": 1, "test": 0}
    for text in ("BloodImage_00343.xml:50: object 4 (RBC)", "BloodImage_00338.xml:158: object 13 (RBC)"):
        assert text in said()


# ----------------------------------------------------------------------------------------------------------------------
# LabelMe


def shape(kind, points, label="cat", **more):
    return {"label": label, "points": points, "shape_type": kind, **more}


def labelme_index(root, shapes, **more):
    write_image(root / "x.png")
    labelme_file(root / "x.json", shapes, **more)
    return build_index(files_data(root), "train", allow_faults=True)


def test_labelme_rectangles_and_circles(tmp_path):
    index = labelme_index(
        tmp_path, [shape("rectangle", [[24, 18], [8, 6]]), shape("circle", [[40, 30], [40, 40]], "dog")]
    )
    np.testing.assert_allclose(index.boxes, [[0, 0.2, 0.2, 0.2, 0.2], [1, 0.5, 0.5, 0.25, 1 / 3]], atol=1e-6)
    mask = polygon_mask(index.polygons(0)[1] * (80, 60) * 8, (480, 640))
    assert mask.sum() == pytest.approx(np.pi * 80**2, rel=0.02)


def test_labelme_groups(tmp_path):
    squares = [[[2, 2], [8, 2], [8, 8], [2, 8]], [[20, 20], [30, 20], [30, 30], [20, 30]]]
    index = labelme_index(tmp_path, [shape("polygon", square, group_id=4) for square in squares])
    np.testing.assert_allclose(index.boxes, [[0, 0.2, 16 / 60, 28 / 80, 28 / 60]], atol=1e-6)
    mask = polygon_mask(index.polygons(0)[0] * (80, 60), (60, 80))
    both = sum(polygon_mask(np.array(square, np.float32), (60, 80)).astype(int) for square in squares) > 0
    assert mask[both].all() and mask.sum() - both.sum() <= 20  # a bridge of one pixel's width


def test_labelme_masks(tmp_path):
    mask = np.zeros((10, 12), np.uint8)
    mask[2:8, 3:9] = 255
    text = base64.b64encode(cv2.imencode(".png", mask)[1].tobytes()).decode()
    index = labelme_index(tmp_path, [shape("mask", [[20, 30], [31, 39]], mask=text)])
    drawn = polygon_mask(index.polygons(0)[0] * (80, 60), (60, 80))
    assert np.argwhere(drawn).min(0).tolist() == [32, 23] and drawn.sum() == 36


def test_labelme_empty_and_ignored_shapes(tmp_path, said):
    shapes = [shape("point", [[1, 1]]), shape("polygon", [[1, 1], [2, 2]]), shape("rectangle", [[1, 1], [9, 9]])]
    index = labelme_index(tmp_path, [*shapes, shape("polygon", [[1, 1], [5, 1], [5, 5]], "__ignore__")])
    assert (len(index.boxes), index.count["lost"]) == (1, 2)
    assert "x.json: shape 1 (cat): a point has no area, dropped" in said()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", r"x\.json:1: not valid JSON"), ('{"a": 1}', "no list `shapes`"), ("[" * 100_000, "not valid JSON"),
        (json.dumps({"shapes": [{"points": []}]}), "shape 1: no `label`"),
        (json.dumps({"shapes": [shape("polygon", [[1, "x"], [2, 2], [3, 3]])]}), r"shape 1 \(cat\)"),
        (json.dumps({"shapes": [shape("spiral", [[1, 1], [2, 2], [3, 3]])]}), "unknown shape_type 'spiral'"),
        (json.dumps({"shapes": [shape("mask", [[1, 1], [2, 2]], mask="%%")]}), "shape 1"),
    ],
)  # fmt: skip
def test_labelme_faulty_file(tmp_path, text, says):
    for name in ("x", "y"):
        write_image(tmp_path / f"{name}.png")
        labelme_file(tmp_path / f"{name}.json", [shape("rectangle", [[1, 1], [9, 9]])])
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"1 faulty label files among 2.*" + says):
        build_index(files_data(tmp_path, "labelme"), "train")


def test_train_from_labelme(shared):
    folder = shared / "datasets" / "crack" / "labelme" / "seg"
    if not folder.is_dir():
        pytest.skip(f"no crack photos at {folder}")
    data = DataConfig(folder, folder, ("crack",), {"train": (folder,)})
    batch = next(iter(open_box_loader(request(data, masks=True, mask_ratio=1, overlap=False, training=False)).epoch(0)))
    assert len(batch.boxes) == len(batch.masks) > 0
    for (_, _, cx, _, w, h), mask in zip(batch.boxes.tolist(), batch.masks, strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        assert float(columns.float().mean()) == pytest.approx(cx * 64, abs=w * 32 + 1)
        assert len(rows) and float(rows.max() - rows.min() + 1) == pytest.approx(h * 64, abs=3)


# ----------------------------------------------------------------------------------------------------------------------
# Which format it is, and outlines


def test_format_detection(tmp_path):
    found = {}
    for name in ("yolo", "coco", "voc", "labelme", "bare"):
        root = tmp_path / name
        write_image(root / "images" / "a.png")
        data = DataConfig(root / "d.yaml", root, NAMES, {"train": (root / "images",)})
        if name == "yolo":
            (root / "labels").mkdir()
            (root / "labels" / "a.txt").write_text("0 .5 .5 .1 .1\n")
            data = replace(data, annotations={"train": coco_file(root / "a.json", [{}])})
        if name == "coco":
            data = replace(data, annotations={"train": coco_file(root / "a.json", [{}])})
        if name == "voc":
            voc_file(root / "annotations" / "a.xml", [("cat", 1, 1, 9, 9, 0)])
        if name == "labelme":
            labelme_file(root / "images" / "a.json", [shape("rectangle", [[1, 1], [9, 9]])])
        found[name] = detect_format(data, "train")
        if name in ("voc", "labelme"):
            assert len(build_index(data, "train").boxes) == 1
    assert found == {"yolo": "yolo", "coco": "coco", "voc": "voc", "labelme": "labelme", "bare": "yolo"}


def test_unknown_format(tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises(
        UserError,
        match=r"unknown label format 'coko'; did you mean 'coco'.* all of them are in utils/datasets/labels/readers/",
    ):
        build_index(files_data(tmp_path, "coko"), "train")


def test_join_polygons():
    squares = [np.array([[x, y], [x + 2, y], [x + 2, y + 2], [x, y + 2]], float) for x, y in ((0, 0), (9, 0), (4, 1))]
    joined = join_pieces(squares)
    assert len(joined) == 3 * 4 + 2 * 2  # each bridge has both its ends twice
    x, y = joined[:, 0], joined[:, 1]
    assert abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 == pytest.approx(12)
    assert join_pieces([]).shape == (0, 2)


def test_compressed_rle_matches_pycocotools():
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 1):
        mask = (rng.random((37, 53)) < share).astype(np.uint8)
        runs = decompress_counts(coco_mask.encode(np.asfortranarray(mask))["counts"].decode())
        assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs).reshape(53, 37).T, mask)
    assert decompress_counts("\x00") == decompress_counts("oooooooooo") == [-1]
    with pytest.raises(ValueError, match="add up"):
        run_length_pieces({"size": [3, 3], "counts": "5"})


def test_mask_to_polygons_min_area():
    mask = np.zeros((20, 20), bool)
    mask[2:10, 2:10], mask[15, 15] = True, True
    assert len(mask_pieces(mask)) == 2 and len(mask_pieces(mask, min_px=2)) == 1
    assert mask_pieces(mask[15:16, 15:16])[0].tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]


def test_bezier_curve():
    corners = np.array([[0, 0], [0, 4], [8, 4], [8, 0]], float)
    curve = bezier(corners, "LCCL")
    assert curve[0].tolist() == [0, 0] and curve[-1].tolist() == [8, 0] and len(curve) == 10
    assert curve[:, 1].max() == pytest.approx(3, abs=0.05)  # 3/4 of the way to the control points
    assert bezier(corners, "LLLL").tolist() == corners.tolist()
