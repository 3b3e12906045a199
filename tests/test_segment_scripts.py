"""segment/train.py, val.py and predict.py from end to end on a tiny generated data set, as a user runs them."""

import csv
import json
import os

import cv2
import numpy as np
import pytest
import torch
from helpers_run import ROOT, results, script

TINY = ("--img", 64, "--batch", 4, "--workers", 0, "--epochs", 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    runs = tmp_path_factory.mktemp("runs")
    script("segment/train.py", "--data", data, *TINY, "--project", runs, "--name", "run")
    return runs / "run"


def test_training_output_files(trained):
    header = next(csv.reader((trained / "results.csv").read_text().splitlines(), skipinitialspace=True))
    columns = """epoch train/box_loss train/seg_loss train/obj_loss train/cls_loss
        metrics/precision(B) metrics/recall(B) metrics/mAP_0.5(B) metrics/mAP_0.5:0.95(B)
        metrics/precision(M) metrics/recall(M) metrics/mAP_0.5(M)
        metrics/mAP_0.5:0.95(M) val/box_loss val/seg_loss val/obj_loss val/cls_loss x/lr0 x/lr1 x/lr2"""
    assert [name.strip() for name in header] == columns.split()
    for name in ("BoxPR_curve.png", "MaskPR_curve.png", "train_batch0.jpg", "val_batch0_pred.jpg", "results.png"):
        assert (trained / name).is_file(), name


def test_val_matches_training_on_one_and_two_processes(trained, data, tmp_path):
    options = ("--weights", trained / "weights" / "best.pt", "--data", data, "--img", 64, "--workers", 0)
    options = (*options, "--batch", 8, "--project", tmp_path, "--noplots")
    script("segment/val.py", *options, "--name", "one")
    script("segment/val.py", *options, "--name", "two", processes=2)
    one, two, before = results(tmp_path / "one"), results(tmp_path / "two"), results(trained)
    for kind in ("box", "mask"):
        for name in ("map50", "map50_95", "precision", "recall"):
            key = f"segment/{kind}_{name}"
            assert one[key] == two[key] == pytest.approx(before[key], abs=1e-6), key


def test_json_masks_and_coco_scores(trained, data, tmp_path):
    written = f"./{os.path.relpath(data, ROOT)}"
    options = ("--weights", trained / "weights" / "best.pt", "--data", written, "--img", 64, "--workers", 0)
    script("segment/val.py", *options, "--project", tmp_path, "--name", "j", "--noplots", "--save-json")
    assert results(tmp_path / "j")["data"] == written
    rows = json.loads((tmp_path / "j" / "best_predictions.json").read_text())
    image = cv2.imread(str(data.parent / "tiny" / "images" / "val" / f"{rows[0]['image_id']}.jpg"))
    assert rows[0]["segmentation"]["size"] == list(image.shape[:2])
    assert isinstance(rows[0]["segmentation"]["counts"], str)
    assert 0 <= results(tmp_path / "j")["coco/segm/AP"] <= 1


def test_mask_options(data, tmp_path):
    options = ("--mask-ratio", 2, "--no-overlap", "--noplots", "--epochs", 1)
    script("segment/train.py", "--data", data, *TINY, *options, "--project", tmp_path, "--name", "run")
    assert results(tmp_path / "run")["val/segment/seg"] > 0


def test_predict_outputs(trained, data, tmp_path):
    source = sorted((data.parent / "tiny" / "images" / "val").glob("*.jpg"))[0]
    size_hw = list(cv2.imread(str(source)).shape[:2])
    found = []
    for name, more in (("a", ()), ("b", ("--retina-masks",))):
        script(
            "segment/predict.py", "--weights", trained / "weights" / "best.pt", "--source", source, "--img", 64,
            "--conf", 0, "--max-det", 5, "--save-txt", "--save-crop", "--save-json", *more,
            "--project", tmp_path, "--name", name,
        )  # fmt: skip
        folder = tmp_path / name
        assert (folder / source.name).is_file()
        found.append(json.loads((folder / "predictions.json").read_text()))
        assert len(found[-1]) == 5 and found[-1][0]["segmentation"]["size"] == size_hw
        crops = list((folder / "crops").rglob("*.png"))
        assert crops and cv2.imread(str(crops[0]), cv2.IMREAD_UNCHANGED).shape[2] == 4
        for line in (folder / "labels" / f"{source.stem}.txt").read_text().splitlines():
            values = np.array(line.split(), float)
            assert len(values) % 2 == 1 and (values[1:] >= 0).all() and (values[1:] <= 1).all()
    assert [row["bbox"] for row in found[0]] == [row["bbox"] for row in found[1]]


@pytest.fixture(scope="module")
def boxes_only(tmp_path_factory):
    """A network without masks."""
    import torch

    from models.builder import build_network, read_architecture
    from models.checkpoint import save_checkpoint

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "boxes.pt"
    save_checkpoint(path, build_network(read_architecture("yolov5n"), 7, tuple("abcdefg")), {"task": "detect"})
    return path


def error_of(text):
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    return errors[0]


def test_networks_of_another_task_are_refused(trained, boxes_only, data, tmp_path):
    common = ("--data", data, "--project", tmp_path)
    assert "needs the head segment" in error_of(script("segment/val.py", "--weights", boxes_only, *common, status=2))
    best = trained / "weights" / "best.pt"
    assert "needs the head detect" in error_of(script("val.py", "--weights", best, *common, status=2))
    assert "has no mask head" in error_of(script("segment/predict.py", "--weights", boxes_only, *common, status=2))
    text = script("segment/train.py", "--cfg", "yolov5n", *TINY, *common, status=2)
    assert "needs the head segment" in error_of(text)


def test_save_hybrid_is_refused_for_masks(trained, data, tmp_path):
    options = ("--weights", trained / "weights" / "best.pt", "--data", data, "--save-hybrid", "--project", tmp_path)
    assert "--save-hybrid: not supported" in error_of(script("segment/val.py", *options, status=2))


def test_labels_without_polygons(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "labels" / split).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / split / "a.jpg"), np.zeros((64, 64, 3), np.uint8))
        (tmp_path / "labels" / split / "a.txt").write_text("0 .5 .5 .2 .2\n")
    yaml = tmp_path / "boxes.yaml"
    yaml.write_text(f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames: [thing]\n")
    text = script("segment/train.py", "--data", yaml, *TINY, "--project", tmp_path / "runs", status=2)
    assert "masks need polygons" in error_of(text)


def test_official_weights_detections(shared, tmp_path):
    """The known scores are those of the weights before they were stored: half precision rounded sqrt(1 + eps) = 1.0005,
    the factor of every BatchNorm that does nothing, up to 1.00098. As stored they are up to .009 higher.
    """
    from models.checkpoint import load_checkpoint, save_checkpoint

    network = load_checkpoint(shared / "weights" / "yolov5n-seg.pt").network
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, (1 + module.eps) ** 0.5)
    save_checkpoint(tmp_path / "exact.pt", network, meta={})
    options = ("--source", shared / "images" / "bus.jpg", "--save-txt", "--save-conf", "--project", tmp_path)
    text = script("segment/predict.py", "--weights", tmp_path / "exact.pt", *options, "--name", "p")
    assert "640x480 4 persons, 1 bus, 1 skateboard" in text
    lines = [line.split() for line in (tmp_path / "p" / "labels" / "bus.txt").read_text().splitlines()]
    assert [int(line[0]) for line in lines] == [0, 0, 0, 5, 36, 0]
    assert [float(line[-1]) for line in lines] == pytest.approx([0.827, 0.742, 0.724, 0.625, 0.540, 0.279], abs=0.001)
