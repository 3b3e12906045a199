"""Programs with networks that have a detection and a semantic head: training, validation and prediction."""

import csv
import json

import cv2
import numpy as np
import pytest
from helpers_run import results, script

from utils.core.yaml_file import read_yaml, write_yaml

TINY = ("--img", 64, "--batch", 4, "--workers", 0, "--epochs", 2)


@pytest.fixture(scope="module")
def both(tmp_path_factory, data):
    """A finished run of boxes and pixels."""
    runs = tmp_path_factory.mktemp("runs")
    text = script("train.py", "--data", data, "--semantic", "psp", *TINY, "--project", runs, "--name", "run")
    return runs / "run", text


@pytest.fixture(scope="module")
def pixels(tmp_path_factory, data):
    """A finished run of pixels alone, on a data set that has nothing else."""
    folder = tmp_path_factory.mktemp("pixels")
    values = read_yaml(data)
    alone = {
        "path": str(data.parent / "tiny"),
        "semantic": {**values["semantic"], "names": [*values["names"], "other"]},
    }
    write_yaml(folder / "pixels.yaml", alone)
    options = ("--data", folder / "pixels.yaml", "--cfg", "yolov5n", "--semantic", "lab", *TINY)
    script("train.py", *options, "--project", folder, "--name", "run")
    return folder


def test_multitask_training(both):
    folder, text = both
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines(), skipinitialspace=True))
    columns = {name.strip() for name in rows[0]}
    assert {"train/box_loss", "train/seg_loss", "metrics/mAP_0.5", "metrics/mIoU", "val/seg_loss"} <= columns
    found = results(folder)
    assert 0 < found["semantic/miou"] < 1 and 0 < found["semantic/pixel_accuracy"] < 1 and "detect/map50" in found
    names = (
        "val_batch0_pred.jpg",
        "semantic_val_batch0_pred.jpg",
        "train_batch0.jpg",
        "semantic_IoU.png",
        "PR_curve.png",
    )
    assert [name for name in names if not (folder / name).is_file()] == []
    assert "validating detect" in text and "validating semantic" in text


def test_val_matches_training_on_one_and_two_processes(both, data, tmp_path):
    best = both[0] / "weights" / "best.pt"
    options = ("--weights", best, "--data", data, "--img", 64, "--batch", 8, "--workers", 0, "--project", tmp_path)
    script("val.py", *options, "--name", "one")
    script("val.py", *options, "--name", "two", "--noplots", processes=2)
    one, two, trained = results(tmp_path / "one"), results(tmp_path / "two"), results(both[0])
    scores = [name for name in one if name.startswith(("detect/", "semantic/"))]
    assert any(name.startswith("semantic/iou/") for name in scores)
    for name in scores:
        assert one[name] == two[name], name
        assert one[name] == pytest.approx(trained[name], abs=1e-6), name


def test_instance_and_semantic_training(data, tmp_path):
    write_yaml(tmp_path / "dice.yaml", {"seg_dice": 0.5, "warmup_epochs": 0})
    options = ("--data", data, "--cfg", "yolov5n-seg", "--semantic", "base", *TINY[:-1], 1, "--noplots")
    options += ("--hyp", tmp_path / "dice.yaml")
    text = script("segment/train.py", *options, "--project", tmp_path, "--name", "run")
    found = results(tmp_path / "run")
    assert 0 < found["semantic/pixel_accuracy"] < 1 and "segment/mask_map50" in found
    assert "7 classes (segment), 8 classes (semantic)" in text and "seg_loss   dice_loss" in text
    row = next(csv.DictReader((tmp_path / "run" / "results.csv").read_text().splitlines(), skipinitialspace=True))
    losses = {name.strip(): float(value) for name, value in row.items() if name.strip().endswith("_loss")}
    kinds = ("box", "seg", "obj", "cls", "semantic_seg", "dice")
    assert set(losses) == {f"{part}/{kind}_loss" for part in ("train", "val") for kind in kinds}
    assert all(value > 0 for value in losses.values()) and losses["train/seg_loss"] != losses["train/semantic_seg_loss"]


def test_multi_scale_flip_and_window_scoring(both, data, tmp_path):
    best = both[0] / "weights" / "best.pt"
    options = ("--weights", best, "--data", data, "--img", 64, "--workers", 0, "--project", tmp_path, "--noplots")
    script("val.py", *options, "--name", "a", "--seg-scales", 0.75, 1, "--seg-flip")
    script("val.py", *options, "--name", "b", "--seg-window", 64, "--base-size", 96)
    script("val.py", *options, "--name", "c", "--seg-mode", "native", "--absent-as-zero")
    found = [results(tmp_path / name) for name in "abc"]
    assert all(0 < one["semantic/pixel_accuracy"] < 1 for one in found)
    assert found[2]["semantic/miou"] == found[2]["semantic/miou_absent_zero"]
    assert len({one["detect/map50"] for one in found}) == 1  # boxes are scored as always


def test_fitness_weights(data, tmp_path):
    options = ("--data", data, "--semantic", "psp", *TINY, "--noplots", "--project", tmp_path, "--name", "run")
    script("train.py", *options, "--fitness", 0, 0, 0, 0, 1, 0)
    assert "needs" not in script("train.py", *options, "--fitness", 1, 2, status=2)


def test_semantic_only_training(pixels, tmp_path):
    found = results(pixels / "run")
    assert "semantic/miou" in found and not any(name.startswith(("detect/", "coco/")) for name in found)
    best = pixels / "run" / "weights" / "best.pt"
    source = pixels.parent / "source"
    source.mkdir(exist_ok=True)
    cv2.imwrite(str(source / "a.png"), np.full((80, 120, 3), 90, np.uint8))
    options = ("--weights", best, "--source", source, "--img", 64, "--project", tmp_path, "--name", "d")
    text = script("detect.py", *options, "--save-mask")
    mask = cv2.imread(str(tmp_path / "d" / "masks" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (80, 120) and mask.max() < 8 and "%" in text


def test_val_scores_labelled_heads_only(both, pixels, data, tmp_path):
    best = both[0] / "weights" / "best.pt"
    values = {key: value for key, value in read_yaml(data).items() if key != "semantic"}
    values["path"] = str(data.parent / "tiny")
    write_yaml(tmp_path / "boxes.yaml", values)
    options = ("--weights", best, "--img", 64, "--workers", 0, "--noplots", "--project", tmp_path)
    script("val.py", *options, "--data", tmp_path / "boxes.yaml", "--name", "boxes")
    script("val.py", *options, "--data", pixels / "pixels.yaml", "--name", "pixels")
    heads = [
        {name.split("/")[0] for name in json.loads((tmp_path / run / "results.json").read_text())}
        & {"detect", "semantic"}
        for run in ("boxes", "pixels")
    ]
    assert heads == [{"detect"}, {"semantic"}]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--semantic", "fpn"), "invalid choice"),
        (("--semantic", "psp", "--seg-share", 1.5), "--seg-share"),
        (("--semantic", "psp", "--quad"), "--quad cannot be combined"),
        (("--semantic", "psp", "--batch", 1), "at least 2"),
        (("--semantic", "psp", "--data", "coco128.yaml"), "coco128.yaml"),
        (("--fitness", 1, 2), "--fitness"),
    ],
)
def test_invalid_trainings(data, tmp_path, options, says):
    text = script("train.py", "--data", data, *TINY, "--project", tmp_path, *options, status=2)
    assert says in text


def test_detector_needs_boxes(pixels, tmp_path):
    text = script(
        "train.py", "--data", pixels / "pixels.yaml", "--cfg", "yolov5n", *TINY, "--project", tmp_path, status=2
    )
    assert "pixels.yaml" in text
