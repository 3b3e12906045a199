"""The data files' own formats: VisDrone, SKU-110K, xView, Argoverse, folders called otherwise than their classes."""

import json

import pytest
from helpers_labels import coco_file, write_image

from utils.core.data_config import DataConfig, load_data
from utils.core.errors import UserError
from utils.core.yaml_file import write_yaml
from utils.datasets.labels.label_scan import build_index
from utils.datasets.labels.readers.xview import TYPES


def boxes_of(index):
    return [index.labels(number).astype(float).round(4).tolist() for number in range(len(index))]


def test_visdrone(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")  # 80 x 60
    write_image(tmp_path / "images" / "b.jpg", 1)
    (tmp_path / "annotations").mkdir()
    rows = ["8,6,16,12,1,4,0,0", "0,0,80,60,0,0,0,0", "0,0,8,8,0,4,0,0", "0,0,8,8,1,11,0,0", "40,30,40,30,1,1,1,2,", ""]
    (tmp_path / "annotations" / "a.txt").write_text("\n".join(rows))
    data = DataConfig(tmp_path / "d.yaml", tmp_path, tuple("abcdefghij"), {"train": (tmp_path / "images",)}, "visdrone")
    index = build_index(data, "train")
    assert boxes_of(index) == [[[3, 0.2, 0.2, 0.2, 0.2], [0, 0.75, 0.75, 0.5, 0.5]], []]
    (tmp_path / "annotations" / "b.txt").write_text("1,2,3,4,1,4,0,0\n1,2,3\n")
    with pytest.raises(UserError, match=r"b\.txt:2: expected 8 integers"):
        build_index(data, "train")


def test_sku110k(tmp_path):
    for name in ("train_0.jpg", "train_1.jpg", "val_0.jpg"):
        write_image(tmp_path / "images" / name)
    (tmp_path / "annotations").mkdir()
    table = tmp_path / "annotations" / "annotations_train.csv"
    table.write_text("train_0.jpg,8,6,24,18,object,80,60\ntrain_1.jpg,0,0,40,60,object,80,60\n")
    data = DataConfig(tmp_path / "d.yaml", tmp_path, ("object",), {"train": (table,)}, "sku110k")
    assert boxes_of(build_index(data, "train")) == [[[0, 0.2, 0.2, 0.2, 0.2]], [[0, 0.25, 0.5, 0.5, 1.0]]]
    table.write_text("train_0.jpg,8,6,24,18,object,80,60\n../evil.jpg,0,0,40,60,object,80,60\n")
    with pytest.raises(UserError, match=r"annotations_train\.csv:2: expected image,x1"):
        build_index(data, "train")


def test_xview(tmp_path):
    write_image(tmp_path / "train_images" / "5.tif")
    write_image(tmp_path / "train_images" / "6.tif", 1)

    def feature(image, kind, bounds):
        return {"properties": {"image_id": image, "type_id": kind, "bounds_imcoords": bounds}, "type": "Feature"}

    features = [feature("5.tif", 94, "8,6,24,18"), feature("5.tif", 75, "0,0,9,9"), feature("9.tif", 11, "0,0,9,9")]
    (tmp_path / "xView_train.geojson").write_text(json.dumps({"type": "x", "features": features}))
    names = tuple(f"type {kind}" for kind in TYPES)
    data = DataConfig(tmp_path / "d.yaml", tmp_path, names, {"train": (tmp_path / "train_images",)}, "xview")
    index = build_index(data, "train")
    assert boxes_of(index) == [[[59, 0.2, 0.2, 0.2, 0.2]]] and index.path(0).endswith("5.tif")
    assert len(load_data("xView").names) == 60 == len(set(TYPES)) and list(TYPES) == sorted(TYPES)


def test_argoverse(tmp_path):
    write_image(tmp_path / "train" / "log" / "0.png")
    path = coco_file(tmp_path / "a.json", [{"category_id": 3}], images=1)
    path.write_text(path.read_text().replace("file_name", "name"))
    places, files = {"train": (tmp_path / "train",)}, {"train": path}
    data = DataConfig(tmp_path / "d.yaml", tmp_path, ("cat", "dog"), places, format="coco", annotations=files)
    assert boxes_of(build_index(data, "train")) == [[[0, 0.2, 0.2, 0.2, 0.2]]]


def test_class_folder_names(tmp_path):
    for number, name in enumerate(("n01", "n02")):
        write_image(tmp_path / "train" / name / "0.jpg", number)
    values = {"train": "train", "val": "train", "format": "folders", "names": ["tench", "dog"]}
    write_yaml(tmp_path / "d.yaml", values | {"label_names": ["n01", "n02"]})
    data = load_data(str(tmp_path / "d.yaml"))
    assert data.names == ("tench", "dog") and [row[0][0] for row in boxes_of(build_index(data, "train"))] == [0, 1]
    assert data.single_class().label_names == ("n01", "n02")
    write_yaml(tmp_path / "d.yaml", values | {"label_names": ["n01"]})
    with pytest.raises(UserError, match="`label_names` lists 1 classes, `names` 2"):
        load_data(str(tmp_path / "d.yaml"))


@pytest.mark.parametrize(("name", "count", "some"), [
    ("VOC", 20, {0: "aeroplane", 19: "tvmonitor"}), ("VisDrone", 10, {3: "car", 9: "motor"}), ("SKU-110K", 1, {}),
    ("Objects365", 365, {0: "Person", 364: "Table Tennis"}), ("ImageNet", 1000, {0: "tench", 999: "toilet tissue"}),
    ("imagewoof160", 10, {9: "dingo"}), ("mnist", 10, {7: "7"}), ("cifar100", 100, {0: "apple", 99: "worm"}),
    ("coco128-seg", 80, {79: "toothbrush"}), ("Argoverse", 8, {7: "stop_sign"}),
])  # fmt: skip
def test_data_files_class_counts(name, count, some):
    names = load_data(name).names
    assert len(names) == len(set(names)) == count
    assert {number: names[number] for number in some} == some
