"""Data-set check: it finds the planted faults, and nothing else."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest
from helpers_dataset_check import NAMES, PLANTS, scene, valid_set
from helpers_labels import coco_file, labelme_file, voc_file, write_image

import check
import convert
from tools.dataset_check.check_settings import CheckSettings
from tools.dataset_check.collect import collect_records
from tools.dataset_check.findings import KINDS, counted
from tools.dataset_check.html_charts import class_table
from tools.dataset_check.image_hash import (
    compute_fingerprint,
    connected_groups,
    is_near_duplicate,
    near_duplicate_pairs,
)
from tools.dataset_check.program import check_dataset, run_checks
from utils.core.data_config import DataConfig, load_data
from utils.core.errors import UserError
from utils.core.yaml_file import write_yaml

OF_CLASSES = {"empty-class", "rare-class", "imbalance"}  # say something about the set as a whole


def findings_of(data):
    """Return {(kind, name of the image or of the file in the text)} of all findings about single files."""
    found = run_checks(collect_records(load_data(str(data)), 640))
    names = [(one.kind, re.split(r"[/\\]", one.image or one.text.split(": ")[0])[-1]) for one in found]
    assert len(set(names)) == len({(one.kind, one.image, one.text) for one in found}), "duplicate finding"
    return {pair for pair in names if pair[0] not in OF_CLASSES}


def plant_all(root, images):
    """Plant every fault into an image of its own; return the findings that must follow."""
    expected = set()
    for (kinds, plant), image in zip(PLANTS.values(), images, strict=False):
        label = root / "labels" / "train" / f"{image.stem}.txt"
        plant(image, label)
        name = "lost.txt" if "orphan-label" in kinds else image.name
        expected |= {(kind, name) for kind in kinds}
    assert len(images) >= len(PLANTS)
    return expected


def group_members(data, kind):
    """Return the sets of names of the images in connected_groups of a kind."""
    found = run_checks(collect_records(load_data(str(data)), 640))
    return [{re.split(r"[/\\]", path)[-1] for path in (one.image, *one.others)} for one in found if one.kind == kind]


def test_valid_set_reports_only_absent_class(tmp_path):
    found = run_checks(collect_records(load_data(str(valid_set(tmp_path / "set"))), 640))
    assert [(one.kind, one.text) for one in found] == [("empty-class", "1 of 3 classes have no objects: cow")]


@pytest.mark.parametrize("name", PLANTS)
def test_single_fault(name, tmp_path):
    data = valid_set(tmp_path / "set", train=3, val=2)
    kinds, plant = PLANTS[name]
    image = tmp_path / "set" / "images" / "train" / "001.jpg"
    plant(image, tmp_path / "set" / "labels" / "train" / "001.txt")
    assert {kind for kind, _ in findings_of(data)} == kinds


def test_all_faults_together(tmp_path):
    data = valid_set(tmp_path / "set")
    expected = plant_all(tmp_path / "set", sorted((tmp_path / "set" / "images" / "train").iterdir()))
    found = findings_of(data)
    # of a group the first image by name is the one a finding names: copies come after numbers
    assert found == expected
    assert group_members(data, "near-leak") == [{"paler_in_val.jpg", "025.jpg"}]


def test_faults_in_coco128(tmp_path, coco128):
    root = tmp_path / "coco128"
    images = sorted((coco128 / "images" / "train2017").glob("*.jpg"))
    for number, path in enumerate(images):
        split = "val" if number % 5 == 4 else "train"
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / "images" / split)
        if (label := coco128 / "labels" / "train2017" / f"{path.stem}.txt").is_file():
            shutil.copy(label, root / "labels" / split)
    names = (coco128 / "names.txt").read_text().split("\n")[:80]
    write_yaml(root / "data.yaml", {"train": "images/train", "val": "images/val", "names": names})
    before = findings_of(root / "data.yaml")
    assert {KINDS[kind].severity for kind, _ in before - {pair for pair in before if pair[0] == "never-trained"}} == {
        "note"
    }
    labels = {path: root / "labels" / "train" / f"{path.stem}.txt" for path in sorted(root.glob("images/train/*"))}
    classes = {
        path: [line.split()[0] for line in file.read_text().split("\n") if line]
        for path, file in labels.items()
        if file.is_file()
    }
    often = Counter(number for numbers in classes.values() for number in set(numbers))
    about = {name for _, name in before}
    chosen = [path for path, numbers in classes.items() if numbers and path.name not in about]
    chosen.sort(key=lambda path: -min(often[number] for number in classes[path]))  # so that no class dies out
    expected = plant_all(root, chosen)
    found = findings_of(root / "data.yaml")
    assert found - before == expected and before <= found


# ----------------------------------------------------------------------------------------------------------------------
# Other formats


def found_in(data):
    """Count the findings of each kind, without those about classes."""
    return Counter(one.kind for one in run_checks(collect_records(data, 640)) if one.kind not in OF_CLASSES)


def test_coco_json_checks(tmp_path):
    for number in range(4):
        cv2.imwrite(str(write_image(tmp_path / "images" / f"{number}.png")), scene(number, (60, 80)))
    square = [[10, 10, 40, 10, 40, 40, 10, 40]]
    rows = [
        {"segmentation": square, "bbox": [10, 10, 30, 30]},
        {"segmentation": square, "bbox": [50, 10, 20, 30], "category_id": 7},  # drawn elsewhere
        {"image_id": 20, "bbox": [90, 10, 20, 20]},  # outside
        {"image_id": 20, "bbox": [10, 10, 20, 0]},
        {"image_id": 20, "bbox": [20, 20, 30, 30]},
        {"image_id": 30, "segmentation": [[10, 10, 40, 40, 10, 10]], "bbox": [10, 10, 30, 30]},  # a line
    ]
    coco_file(tmp_path / "a.json", rows)
    places, files = {"train": (tmp_path / "images",)}, {"train": tmp_path / "a.json"}
    data = DataConfig(tmp_path / "d.yaml", tmp_path, NAMES[:2], places, format="coco", annotations=files)
    assert found_in(data) == {"outline": 1, "degenerate": 2, "flat-outline": 1, "annotations": 1}


@pytest.mark.parametrize(("suffix", "write"), [
    (".xml", lambda path: voc_file(path, [("cat", 10, 10, 40, 40, 0)])),
    (".json", lambda path: labelme_file(path, [{"label": "cat", "points": [[9, 9], [40, 9], [40, 40]]}])),
])  # fmt: skip
def test_voc_and_labelme_checks(suffix, write, tmp_path):
    for number in range(4):
        cv2.imwrite(str(write_image(tmp_path / f"{number}.png")), scene(number, (60, 80)))
        write(tmp_path / f"{number}{suffix}")
    data = DataConfig(tmp_path / "d.yaml", tmp_path, NAMES, {"train": (tmp_path,)})
    assert found_in(data) == {}
    cv2.imwrite(str(tmp_path / "0.png"), scene(0, (80, 60)))  # turned after it was labelled
    (tmp_path / f"1{suffix}").write_text("<annotation>" if suffix == ".xml" else "{")
    (tmp_path / f"2{suffix}").unlink()
    write(tmp_path / f"9{suffix}")
    path = tmp_path / f"3{suffix}"
    path.write_text(path.read_text().replace("cat", "cats"))
    kinds = {"size-differs": 1, "label-fault": 1, "missing-label": 1, "orphan-label": 1, "unknown-class": 1}
    assert found_in(data) == kinds


def class_maps(root):
    """Write eight images, boxes and class maps that agree: a dog on the ground; return the data YAML."""
    for number in range(8):
        for folder in ("images", "labels", "masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / "images" / f"{number}.png"), scene(number, (60, 80)))
        (root / "labels" / f"{number}.txt").write_text("1 0.5 0.5 0.5 0.5\n")
        mask = np.zeros((60, 80), np.uint8)
        mask[15:45, 20:60] = 1
        cv2.imwrite(str(root / "masks" / f"{number}.png"), mask)
    semantic = {"train": "images", "names": ["ground", "dog", "cat"]}
    write_yaml(root / "d.yaml", {"train": "images", "names": list(NAMES), "semantic": semantic})
    return root / "d.yaml"


def test_semantic_map_checks(tmp_path):
    path = class_maps(tmp_path)
    assert found_in(load_data(str(path))) == {}
    masks = tmp_path / "masks"
    (masks / "0.png").unlink()
    cv2.imwrite(str(masks / "1.png"), np.zeros((30, 40), np.uint8))
    cv2.imwrite(str(masks / "2.png"), np.full((60, 80), 9, np.uint8))
    cv2.imwrite(str(masks / "3.png"), np.zeros((60, 80, 3), np.uint8))
    cv2.imwrite(str(masks / "4.png"), np.zeros((60, 80), np.uint8))  # no dog in the box
    (tmp_path / "labels" / "5.txt").write_text("")  # no box on the dog
    cv2.imwrite(str(masks / "99.png"), np.zeros((60, 80), np.uint8))
    assert found_in(load_data(str(path))) == {"mask": 4, "mask-lacks-box": 1, "box-lacks-mask": 1, "orphan-mask": 1}


def test_class_folder_checks(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(NAMES):
            for i in range(count):
                path = write_image(tmp_path / split / name / f"{i}.jpg")
                cv2.imwrite(str(path), scene(100 * number + 10 * count + i))
    data = load_data(str(tmp_path))
    assert found_in(data) == {}
    shutil.copy(tmp_path / "train" / "cat" / "0.jpg", tmp_path / "val" / "cat" / "leak.jpg")
    shutil.copy(tmp_path / "train" / "cat" / "1.jpg", tmp_path / "train" / "dog" / "same.jpg")  # cat or dog?
    (tmp_path / "train" / "cow" / "0.jpg").write_bytes(b"")
    assert found_in(data) == {"leak": 1, "duplicate-image": 1, "conflict": 1, "unreadable": 1}


def test_split_and_label_notes(tmp_path):
    path = valid_set(tmp_path, train=4, val=2)
    (tmp_path / "labels" / "val" / "000.txt").write_text("2 0.5 0.5 0.2 0.2\n")
    for number in range(3):
        (tmp_path / "labels" / "train" / f"{number:03}.txt").unlink()
    values = {"train": "images/train", "val": "images/val", "test": "images/test", "names": list(NAMES)}
    write_yaml(path, values)
    assert found_in(load_data(str(path))) == {
        "never-trained": 1, "no-test": 1, "missing-label": 3, "many-unlabelled": 1,
    }  # fmt: skip


def test_identical_splits_are_not_a_leak(tmp_path):
    path = valid_set(tmp_path, train=4, val=2)
    (tmp_path / "images" / "train" / "000.jpg").write_bytes(b"")
    write_yaml(path, {"train": "images/train", "val": "images/train", "names": list(NAMES)})
    report = check_dataset(CheckSettings(str(path), project=tmp_path / "runs"))
    assert Counter(one.kind for one in report.findings) - Counter(OF_CLASSES) == {"unreadable": 1, "same-split": 1}


# ----------------------------------------------------------------------------------------------------------------------
# Looks


def test_similar_images_are_not_duplicates():
    def seen(image):
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        return compute_fingerprint(image.tobytes(), grey, image.shape[:2])

    image = scene(1)
    changed = [
        cv2.resize(image, (300, 225)),
        np.clip(image * 0.8 + 20, 0, 255).astype(np.uint8),
        cv2.blur(image, (3, 3)),
    ]
    other = [cv2.flip(image, 1), scene(2), np.ascontiguousarray(image[:, :64]), np.full_like(image, 90)]
    assert all(is_near_duplicate(seen(image), seen(one)) for one in changed)
    prints = [seen(one) for one in (image, *changed, *other, np.full_like(image, 91))]
    assert connected_groups(len(prints), near_duplicate_pairs(prints)) == [[0, 1, 2, 3]]


# ----------------------------------------------------------------------------------------------------------------------
# Reports, anchors, the cleaned copy


def test_html_report_is_self_contained_and_escaped(tmp_path):
    path = valid_set(tmp_path / "set", train=3, val=2)
    evil = tmp_path / "set" / "images" / "train" / "<script>alert(1)<&>'.jpg"
    (tmp_path / "set" / "images" / "train" / "000.jpg").rename(evil)
    evil.write_bytes(evil.read_bytes()[:-900])
    write_yaml(path, {"train": "images/train", "val": "images/val", "names": ["<b>cat</b>", "dog", "cow"]})
    report = check_dataset(CheckSettings(str(path), anchors=9, project=tmp_path / "runs"))
    text = (tmp_path / "runs" / "exp" / "report.html").read_text()
    assert "<script" not in text and "<b>cat" not in text and "&lt;script&gt;alert(1)" in text
    addresses = re.findall(r"""(?:src|href|srcset)\s*=\s*['"]?([^'">\s]*)""", text)
    assert addresses and all(one.startswith("data:image/jpeg;base64,") for one in addresses) and "url(" not in text
    assert "prefers-color-scheme:dark" in text and text.count("data:image/jpeg") >= 1
    values = json.loads((tmp_path / "runs" / "exp" / "report.json").read_text())
    assert values["summary"] == {
        "errors": report.counts["error"],
        "warnings": report.counts["warning"],
        "notes": report.counts["note"],
    }
    assert [row["kind"] for row in values["findings"]][:1] == ["truncated"]
    assert values["splits"]["val"]["per_class"] == [2, 2, 0] and sum(values["splits"]["val"]["sizes_px"]) == 4


def marked(data_url):
    """Return the mean position of the red marks in a thumbnail, normalised."""
    image = cv2.imdecode(np.frombuffer(base64.b64decode(data_url.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    red = (image[:, :, 2] > 180) & (image[:, :, :2] < 110).all(axis=2)
    rows, columns = np.nonzero(red)
    return columns.mean() / image.shape[1], rows.mean() / image.shape[0]


@pytest.mark.parametrize("suffix", [".xml", ".json"])
def test_degenerate_points_are_marked(suffix, tmp_path):
    """VOC and LabelMe objects without area, which reading drops, have a ring around them in the report."""
    for seed, split in enumerate(("train", "val")):
        (tmp_path / split).mkdir()
        cv2.imwrite(str(tmp_path / split / "a.jpg"), cv2.cvtColor(scene(seed, (100, 200)), cv2.COLOR_BGR2GRAY))
        if suffix == ".xml":
            sides = "<xmin>150</xmin><ymin>25</ymin><xmax>150</xmax><ymax>25</ymax>"
            (tmp_path / split / "a.xml").write_text(
                f"<annotation><object><name>cell</name><bndbox>{sides}</bndbox></object></annotation>"
            )
        else:
            shape = {"label": "cell", "points": [[150, 25]], "shape_type": "point"}
            values = {"shapes": [shape], "imagePath": "a.jpg", "imageHeight": 100, "imageWidth": 200}
            (tmp_path / split / "a.json").write_text(json.dumps(values))
    kind = {".xml": "voc", ".json": "labelme"}[suffix]
    write_yaml(tmp_path / "d.yaml", {"train": "train", "val": "val", "names": ["cell"], "format": kind})
    report = check_dataset(CheckSettings(str(tmp_path / "d.yaml"), project=tmp_path / "runs"))
    found = [one for one in report.findings if one.kind == "degenerate"]
    assert len(found) == 2 and report.counts["error"] == 0, report.findings
    assert all(one.boxes == ((0.75, 0.25, 0.0, 0.0),) for one in found)
    text = (tmp_path / "runs" / "exp" / "report.html").read_text()
    first = re.search(r"data:image/jpeg;base64,[^']+", text[text.index("<code>degenerate") :])[0]
    assert marked(first) == pytest.approx((0.75, 0.25), abs=0.02)


def test_class_bars_have_one_scale():
    table = class_table(["cat"], {"train": [200], "val": [50]})
    assert re.findall(r"width:([\d.]+)%", table) == ["100.0", "25.0"]


def test_counts_are_inflected():
    assert [counted(number, "error") for number in (0, 1, 2)] == ["0 errors", "1 error", "2 errors"]


def test_anchor_fit_report(tmp_path):
    path = valid_set(tmp_path / "set", train=24, val=2)
    sides = ((0.25, 0.25), (0.5, 0.75), (0.75, 0.5))
    for number, label in enumerate(sorted((tmp_path / "set" / "labels" / "train").iterdir())):
        w, h = sides[number % 3]
        label.write_text(f"0 0.5 0.5 {w} {h}\n")
    values = []
    for size in (128, 256):
        report = check_dataset(CheckSettings(str(path), imgsz=size, anchors=3, project=tmp_path / "runs"))
        values.append(report.anchors.anchors.reshape(-1, 2))
    # images of 128 x 96: a box of a quarter is 32 x 24, of half and three quarters 64 x 72, the other way 96 x 48
    assert values[0] == pytest.approx(np.array([[32, 24], [64, 72], [96, 48]])[[0, 1, 2]], rel=0.02) or values[
        0
    ] == pytest.approx(np.array([[32, 24], [96, 48], [64, 72]]), rel=0.02)
    assert sorted(map(tuple, values[1].round())) == sorted(map(tuple, (2 * values[0]).round()))
    with pytest.raises(UserError, match="multiple of 3"):
        check_dataset(CheckSettings(str(path), anchors=7, project=tmp_path / "runs"))


def everything(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_cleaned_copy(tmp_path):
    path = valid_set(tmp_path / "set")
    plant_all(tmp_path / "set", sorted((tmp_path / "set" / "images" / "train").iterdir()))
    before = everything(tmp_path / "set")
    check_dataset(CheckSettings(str(path), fix=tmp_path / "clean", project=tmp_path / "runs"))
    assert everything(tmp_path / "set") == before
    left = found_in(load_data(str(tmp_path / "clean" / "data.yaml")))
    # what no rule can decide stays: which of two boxes, whether a needle is one, whether grey is an image
    assert left == {
        "duplicate-box": 1,
        "odd-shape": 1,
        "tiny": 1,
        "flat-end": 1,
        "blank": 1,
        "near-duplicate": 1,
        "missing-label": 1,
    }
    about = json.loads((tmp_path / "clean" / "fix-report.json").read_text())
    assert {row["image"].rpartition("/")[2] for row in about["left_out"] if "leak" in row["image"]} == set()
    assert about["changed"] == {
        "repeated labels dropped": 1, "impossible objects dropped": 1, "boxes cut at the edge": 1,
        "images turned upright": 1, "suffixes corrected": 1,
    }  # fmt: skip
    with pytest.raises(UserError, match="exists and is not empty"):
        check_dataset(CheckSettings(str(path), fix=tmp_path / "clean", project=tmp_path / "runs"))


def test_cleaned_copy_of_semantic_and_class_folders(tmp_path):
    path = class_maps(tmp_path / "maps")
    (tmp_path / "maps" / "masks" / "0.png").unlink()
    check_dataset(CheckSettings(str(path), fix=tmp_path / "clean", project=tmp_path / "runs"))
    records = collect_records(load_data(str(tmp_path / "clean" / "data.yaml")), 640)
    assert [len(records.splits["train"]), len(records.maps["train"])] == [7, 7] and not [
        one for one in run_checks(records) if one.kind not in OF_CLASSES
    ]
    for number in range(3):
        cv2.imwrite(str(write_image(tmp_path / "folders" / "train" / "cat" / f"{number}.jpg")), scene(number))
        cv2.imwrite(str(write_image(tmp_path / "folders" / "val" / "cat" / f"{number}.jpg")), scene(9 + number))
    (tmp_path / "folders" / "train" / "cat" / "0.jpg").write_bytes(b"")
    check_dataset(CheckSettings(str(tmp_path / "folders"), fix=tmp_path / "clean2", project=tmp_path / "runs"))
    assert len([name for name in everything(tmp_path / "clean2") if name.endswith(".jpg")]) == 5
    assert found_in(load_data(str(tmp_path / "clean2" / "data.yaml"))) == {}


def test_bccd_is_fit_for_training(tmp_path, shared):
    """The recommended data set has two boxes that are points, which training drops, and a near duplicate."""
    root = shared / "datasets" / "bccd"
    if not root.is_dir():
        pytest.skip("the data set is not here")
    splits = {split: f"ImageSets/Main/{split}.txt" for split in ("train", "val", "test")}
    write_yaml(tmp_path / "bccd.yaml", {"path": str(root), **splits, "names": ["RBC", "WBC", "Platelets"]})
    report = check_dataset(CheckSettings(str(tmp_path / "bccd.yaml"), fast=True, project=tmp_path / "runs"))
    assert report.counts["error"] == 0
    (first, second) = [one for one in report.findings if one.kind == "degenerate"]
    assert first.boxes == ((504 / 640, 337 / 480, 0, 0),) and second.boxes == ((181 / 640, 329 / 480, 0, 0),)


def test_cleaned_copy_of_classification_shards(tmp_path):
    """Images of class shards go to class folders; they have no boxes, whose labels would be of the whole image."""
    for split, count in (("train", 3), ("val", 2)):
        for number, name in enumerate(NAMES[:2]):
            for i in range(count):
                path = write_image(tmp_path / "folders" / split / name / f"{i}.jpg")
                cv2.imwrite(str(path), scene(100 * number + 10 * count + i))
    convert.main(["shards", "--source", str(tmp_path / "folders"), "--out", str(tmp_path / "shards")])
    chosen = {"data": str(tmp_path / "shards"), "project": tmp_path / "runs"}
    with pytest.raises(UserError, match="--anchors requires boxes"):
        check_dataset(CheckSettings(**chosen, anchors=9))
    report = check_dataset(CheckSettings(**chosen, fix=tmp_path / "clean"))
    assert report.records.classification
    written = everything(tmp_path / "clean")
    assert not [name for name in written if name.endswith(".txt")]
    images = [name.split("/")[:2] for name in written if name.endswith(".jpg")]
    assert Counter(map(tuple, images)) == {
        ("train", "cat"): 3,
        ("train", "dog"): 3,
        ("val", "cat"): 2,
        ("val", "dog"): 2,
    }
    assert found_in(load_data(str(tmp_path / "clean" / "data.yaml"))) == {}


# ----------------------------------------------------------------------------------------------------------------------
# The program


def test_exit_status(tmp_path, monkeypatch):
    path = valid_set(tmp_path / "set", train=3, val=2)
    line = ["--data", str(path), "--project", str(tmp_path / "runs")]
    check.main(line)
    PLANTS["box beyond the image"][1](None, tmp_path / "set" / "labels" / "train" / "000.txt")
    check.main(line)  # a warning
    with pytest.raises(SystemExit) as left:
        check.main([*line, "--strict"])
    assert left.value.code == 1
    PLANTS["no width"][1](None, tmp_path / "set" / "labels" / "train" / "001.txt")
    check.main([*line, "--fast"])  # a warning: training drops the box
    PLANTS["unknown class"][1](None, tmp_path / "set" / "labels" / "train" / "002.txt")
    with pytest.raises(SystemExit) as left:
        check.main([*line, "--fast"])
    assert left.value.code == 1


def test_help_and_missing_data(root, tmp_path):
    line = [sys.executable, str(root / "check.py"), "--data", "nothing-there.yaml"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: --data nothing-there.yaml: no such data-set YAML")
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())
