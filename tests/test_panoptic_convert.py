"""Conversion to and from panoptic maps, and their check."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SHARED
from helpers_panoptic import SEGMENTS, id_map, panoptic_data, write_panoptic

from tools.converters.convert_settings import LabelSettings
from tools.converters.labels import convert_labels
from tools.dataset_check.check_settings import CheckSettings
from tools.dataset_check.checks.panoptic_maps import check_panoptic
from tools.dataset_check.collect import collect_records
from tools.dataset_check.program import check_dataset
from utils.core.data_config import load_data
from utils.datasets.labels.label_scan import build_index
from utils.datasets.labels.panoptic_table import open_panoptic_split
from utils.ops.panoptic import decode_ids, encode_ids

SAMPLE = SHARED / "datasets" / "cityscapes_sample"


def convert(source, out, kind, target="panoptic", **more):
    return convert_labels(LabelSettings(Path(source), Path(out), kind, target, **more))


def read_ids(path):
    return decode_ids(cv2.imread(str(path)))


def test_a_panoptic_set_survives_the_way_to_itself(tmp_path):
    write_panoptic(tmp_path / "a", count=2)
    convert(tmp_path / "a" / "data.yaml", tmp_path / "b", "panoptic")
    data = load_data(str(tmp_path / "b" / "data.yaml"))
    assert data.names == ("cat", "dog") and data.semantic.names == ("cat", "dog", "grass")
    assert len(build_index(data, "train")) == 2
    png = next((tmp_path / "b" / "panoptic" / "panoptic_train").glob("*.png"))
    assert (read_ids(png) == id_map()).all()
    content = json.loads((tmp_path / "b" / "panoptic" / "panoptic_train.json").read_text())
    segments = {one["id"]: one for one in content["annotations"][0]["segments_info"]}
    assert {key: (one["area"], one["iscrowd"], one["bbox"]) for key, one in segments.items()} == {
        one["id"]: (one["area"], one["iscrowd"], one["bbox"]) for one in SEGMENTS
    }
    assert [one["category_id"] for one in content["annotations"][0]["segments_info"]] == [3, 1, 2, 2]


def test_panoptic_maps_give_outlines(tmp_path):
    write_panoptic(tmp_path / "a")
    convert(tmp_path / "a" / "data.yaml", tmp_path / "b", "panoptic", "yolo")
    lines = next((tmp_path / "b" / "labels").rglob("*.txt")).read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == ["0", "1"] and all(len(line.split()) > 6 for line in lines)


def test_outlines_become_panoptic_maps(tmp_path):
    write_panoptic(tmp_path / "a")
    convert(tmp_path / "a" / "data.yaml", tmp_path / "b", "panoptic", "yolo")
    convert(tmp_path / "b" / "data.yaml", tmp_path / "c", "yolo")
    data = load_data(str(tmp_path / "c" / "data.yaml"))
    assert data.semantic.names == data.names == ("cat", "dog")
    numbered = open_panoptic_split(data, "train").read(0)
    assert sorted(numbered.areas[1:].tolist()) == pytest.approx([200, 200], abs=12)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs the Cityscapes sample")
def test_cityscapes_instance_maps(tmp_path):
    convert(SAMPLE, tmp_path / "out", "cityscapes")
    data = load_data(str(tmp_path / "out" / "data.yaml"))
    shipped = load_data("cityscapes-panoptic.yaml")
    assert (data.names, data.semantic.names) == (shipped.names, shipped.semantic.names)
    split = next(iter(data.splits))
    found = open_panoptic_split(data, split)
    source = next(SAMPLE.rglob("*_instanceIds.png"))
    ids = cv2.imread(str(source), cv2.IMREAD_UNCHANGED).astype(np.int32)
    written = read_ids(found.map_path(0))
    assert (written[written > 0] == ids[written > 0]).all() and (written > 0).mean() > 0.5
    keys = found.table.ids
    names = np.array(data.semantic.names)[found.table.classes]
    assert all((name == "car") == (key == 26 or key // 1000 == 26) for key, name in zip(keys, names, strict=True))
    assert all(bool(crowd) == (24 <= key < 1000) for key, crowd in zip(keys, found.table.crowd, strict=True))


def findings(data):
    return {one.kind: one.text for one in check_panoptic(collect_records(data, 64))}


def test_faults_of_panoptic_maps_are_found(tmp_path):
    segments = [
        SEGMENTS[0],
        {**SEGMENTS[1], "area": 190},
        SEGMENTS[3],
        {"id": 9, "category_id": 3, "area": 7, "iscrowd": 0},
    ]
    found = findings(panoptic_data(tmp_path, segments=segments))
    assert "200 pixels of unlisted segments, such as 300" in found["panoptic-ids"]
    assert "no pixel of segment 9" in found["panoptic-empty"]
    assert "segment 1 has 200 pixels, `area` is 190" in found["panoptic-area"]
    assert ("panoptic-void" not in found and "train: 12.5%" in found["panoptic-labelled"]) or "val: 12.5%" in str(found)


def test_mostly_void_images_are_found(tmp_path):
    ids = id_map()
    ids[:, 25:] = 0
    assert (
        "of the pixels are void"
        in findings(panoptic_data(tmp_path, ids=ids, segments=[SEGMENTS[0], SEGMENTS[3]]))["panoptic-void"]
    )


def test_the_check_program_covers_panoptic_data(tmp_path):
    write_panoptic(tmp_path, count=2)
    cv2.imwrite(str(tmp_path / "panoptic" / "train" / "1.png"), encode_ids(np.full((60, 80), 4)))
    report = check_dataset(CheckSettings(data=str(tmp_path / "data.yaml"), project=tmp_path / "runs"))
    assert {"panoptic-ids", "panoptic-labelled", "label-fault"} <= {one.kind for one in report.findings}
