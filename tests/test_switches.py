"""Every switch of train.py at work in a short run: several at once, since each run costs seconds."""

import csv
import importlib
import math

import pytest
import torch
from helpers_run import results, script, tiny_data, weights

from models.checkpoint import load_checkpoint, save_checkpoint
from utils.core.yaml_file import write_yaml
from utils.engine.build_run import has_folded_statistics

BASE = {"cfg": "yolov5n", "imgsz": [64], "batch_size": 4, "workers": 0, "epochs": 2, "noplots": True}
LOUD = {
    "mosaic9": 0.5,
    "mixup": 0.5,
    "copy_paste": 0.5,
    "perspective": 0.0005,
    "degrees": 20.0,
    "shear": 5.0,
    "flipud": 0.5,
    "translate": 0.3,
    "scale": 0.9,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"), train=12, val=4, size=64)


def train(data, runs, hyp=None, **chosen):
    """Train with the given options in this process; return the run's folder and the rows of its results.csv."""
    if hyp is not None:
        write_yaml(runs / "hyp.yaml", hyp)
        chosen["hyp"] = str(runs / "hyp.yaml")
    importlib.import_module("train").run(data=str(data), project=str(runs), **(BASE | chosen))
    folder = runs / chosen.get("name", "exp")
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines(), skipinitialspace=True))
    return folder, [{name.strip(): float(value) for name, value in row.items()} for row in rows]


def losses(rows):
    return [row[name] for row in rows for name in row if name.startswith("train/")]


def changed(first, second, prefix):
    """Tell whether any weight below `prefix` differs between two checkpoints."""
    return any(not torch.equal(first[name], second[name]) for name in first if name.startswith(prefix))


def test_geometry_cache_and_checkpoint_options(data, tmp_path):
    chosen = {
        "cache": "ram",
        "save_period": 1,
        "multi_scale": True,
        "cos_lr": True,
        "optimizer": "AdamW",
        "amp": "fp32",
    }
    folder, rows = train(data, tmp_path, hyp=LOUD, **chosen)
    names = {path.name for path in (folder / "weights").iterdir()}
    assert names == {"best.pt", "last.pt", "epoch0.pt", "epoch1.pt"}
    assert all(math.isfinite(value) for row in rows for value in row.values()) and len(rows) == 2


def test_freeze(data, tmp_path):
    folder, rows = train(
        data, tmp_path, freeze=[10], freeze_bn=True, noval=True, save_period=1, hyp={"nominal_batch": 4}
    )
    assert [math.isnan(row["metrics/mAP_0.5"]) for row in rows] == [True, False]  # scored after the last epoch only
    first, last = (
        torch.load(folder / "weights" / f"epoch{epoch}.pt", weights_only=True)["training"]["network"]
        for epoch in (0, 1)
    )
    for layer in range(10):
        assert not changed(first, last, f"model.{layer}."), layer
    assert changed(first, last, "model.10.") and changed(first, last, "model.24.")


def test_fused_weights_train(tmp_path, images, network_file, caplog):
    """Statistics of batches would ruin them; so do those of a network that is merely new not count as folded."""
    checkpoint = load_checkpoint(network_file)
    assert not has_folded_statistics(checkpoint.network)
    for module in checkpoint.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.bias, 0.1)
    assert has_folded_statistics(checkpoint.network)
    save_checkpoint(tmp_path / "folded.pt", checkpoint.network, meta={})
    folder, _ = train(images, tmp_path, weights=str(tmp_path / "folded.pt"), cfg="", epochs=1)
    assert "folded into its weights" in caplog.text
    state = weights(folder / "weights" / "best.pt")
    assert all(float(value.abs().max()) == 0 for name, value in state.items() if name.endswith("running_mean"))


def test_single_cls_rect_and_image_weights(data, tmp_path):
    chosen = {
        "single_cls": True,
        "rect": True,
        "image_weights": True,
        "label_smoothing": 0.1,
        "cache": "disk",
        "nosave": True,
    }
    folder, rows = train(data, tmp_path, **chosen)
    assert torch.load(folder / "weights" / "best.pt", weights_only=True)["names"] == ["item"]
    assert all(row["train/cls_loss"] == 0 for row in rows) and all(math.isfinite(value) for value in losses(rows))
    numbers = importlib.import_module("val").run(
        weights=[str(folder / "weights" / "best.pt")],
        data=str(data),
        single_cls=True,
        imgsz=[64],
        workers=0,
        noplots=True,
        project=str(tmp_path / "val"),
    )
    assert numbers["detect/map50"] == pytest.approx(results(folder)["detect/map50"], abs=1e-6)


def test_quad_focal_autobalance(data, tmp_path):
    hyp = {"fl_gamma": 1.5, "cls_pw": 2.0, "obj_pw": 0.5, "label_smoothing": 0.2}
    _, rows = train(data, tmp_path, hyp=hyp, quad=True, autobalance=True, workers=2, amp="bf16")
    assert all(math.isfinite(value) for value in losses(rows))


def test_anchor_count(data, tmp_path):
    folder, _ = train(data, tmp_path, hyp={"anchors": 2.0}, epochs=1)
    assert weights(folder / "weights" / "best.pt")["model.24.anchors"].shape == (3, 2, 2)


def test_autoanchor(tmp_path, images, network_file, caplog):
    """Boxes of 58 x 2 pixels: no anchor matches."""
    for path in (images.parent / "labels").rglob("*.txt"):
        path.write_text("0 0.5 0.5 0.9 0.05\n")
    before = weights(network_file)["model.24.anchors"]
    with caplog.at_level("INFO", logger="polyolo"):
        for name in ("kept", "fitted"):
            options = {"weights": str(network_file), "cfg": "", "epochs": 1, "name": name}
            folder, _ = train(images, tmp_path, **options, noautoanchor=name == "kept")
            after = weights(folder / "weights" / "best.pt")["model.24.anchors"]
            assert torch.equal(before.float(), after.float()) == (name == "kept")
    assert "replaced by" in caplog.text and "give --noautoanchor" in caplog.text


def test_patience(data, tmp_path):
    folder, rows = train(
        data, tmp_path, hyp={"lr0": 1e-9, "warmup_epochs": 0.0, "warmup_bias_lr": 0.0}, patience=2, epochs=30
    )
    best = max(
        range(len(rows)), key=lambda i: (rows[i]["metrics/mAP_0.5"] * 0.1 + rows[i]["metrics/mAP_0.5:0.95"] * 0.9, -i)
    )
    assert len(rows) == best + 3 < 30
    assert (folder / "results.json").is_file()


def test_patience_ignores_unscored_epochs(data, tmp_path):
    _, rows = train(data, tmp_path, noval=True, nosave=True, patience=1, epochs=4)
    assert len(rows) == 4


def test_tiny_data_set(data, tmp_path):
    import cv2
    import numpy as np

    for kind in ("images", "labels"):
        (tmp_path / "one" / kind).mkdir(parents=True)
    cv2.imwrite(
        str(tmp_path / "one" / "images" / "a.png"), np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    )
    (tmp_path / "one" / "labels" / "a.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    write_yaml(tmp_path / "one.yaml", {"path": "one", "train": "images", "val": "images", "names": ["a/b: ü"]})
    folder, rows = train(
        tmp_path / "one.yaml", tmp_path, batch_size=16, multi_scale=True, hyp={"mosaic9": 1.0, "mixup": 1.0}
    )
    assert all(math.isfinite(value) for row in rows for value in row.values())
    found = importlib.import_module("detect").run(
        weights=[str(folder / "weights" / "best.pt")],
        source=str(tmp_path / "one" / "images"),
        imgsz=[32, 96],
        conf_thres=0.0,
        max_det=3,
        save_crop=True,
        project=str(tmp_path / "found"),
    )
    assert found.frames == 1 and len(list((tmp_path / "found" / "exp" / "crops" / "a_b_ ü").iterdir())) == 3


def test_old_spellings(data, tmp_path):
    old = "--batch 4 --img-size 64 --adam --notest --cache-images --linear-lr --bbox_iou_optim --multi_tensor_optimize"
    line = ("--data", data, *old.split(), "--local_rank", -1, "--weights", " ", "--cfg", "models/yolov5n.yaml")
    options = (*line, "--hyp", "hyp.scratch.yaml", "--epochs", 1, "--noplots", "--workers", 0, "--project", tmp_path)
    script("train.py", *options, "--exist-ok")
    script("train.py", *options, "--exist-ok", "--name", "exp")
    assert [path.name for path in tmp_path.iterdir()] == ["exp"]
    assert "optimizer: Adam\n" in (tmp_path / "exp" / "args.yaml").read_text()
