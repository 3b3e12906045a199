"""A COCO folder without a YAML, sizes from a list, seldom validation, few checkpoints: what MindSpore's users bring."""

import importlib
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers_run import results, script

from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.engine.train_epoch import random_input_hw
from utils.loggers.csv_file import read_results

CATEGORIES = [{"id": 18, "name": "disc"}, {"id": 3, "name": "box"}]  # rising ids: box, disc


def coco_folder(root, splits=("train2017", "val2017"), below="", count=6):
    """Write images with a bright box or disc on grey, and their JSON."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split in splits:
        folder = root / below / split
        folder.mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            image = rng.integers(90, 110, (64, 64, 3), np.uint8)
            x, y, side = (int(value) for value in rng.integers(4, 24, 3))
            side += 8
            if number % 2:
                cv2.circle(image, (x + side // 2, y + side // 2), side // 2, (40, 40, 250), -1)
            else:
                cv2.rectangle(image, (x, y), (x + side, y + side), (250, 250, 40), -1)
            cv2.imwrite(str(folder / f"{number}.png"), image)
            images.append({"id": number + 50, "file_name": f"{number}.png", "width": 64, "height": 64})
            box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            annotations.append(box | {"id": number, "image_id": number + 50, "category_id": 18 if number % 2 else 3})
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_load_coco_folder(tmp_path):
    data = load_data(str(coco_folder(tmp_path / "coco")))
    assert (data.names, data.format, set(data.splits)) == (("box", "disc"), "coco", {"train", "val"})
    assert data.annotations["val"].name == "instances_val2017.json" and not data.is_class_folders
    below = load_data(str(coco_folder(tmp_path / "other", ("train", "val"), below="images")))
    assert below.splits["train"] == (tmp_path / "other" / "images" / "train",)
    with pytest.raises(UserError, match=r"no annotations/instances_test\*\.json"):
        data.split("test")


def test_coco_folder_with_broken_json(tmp_path):
    root = coco_folder(tmp_path / "coco")
    for text in ('{"images": []}', "{", '{"categories": []}', '{"categories": [{"id": "x", "name": "a"}]}', "[]"):
        (root / "annotations" / "instances_val2017.json").write_text(text)
        with pytest.raises(UserError, match=r"instances_val2017\.json: .*categories"):
            load_data(str(root))


def test_train_and_val_on_coco_folder(tmp_path):
    """Also: sizes from a list, validation from the second epoch on every second one, and the two newest checkpoints."""
    root = coco_folder(tmp_path / "coco")
    importlib.import_module("train").run(
        data=str(root), cfg="yolov5n", imgsz=[64], batch_size=3, workers=0, epochs=5, noplots=True,
        multi_scale=[64, 96], resize_rate=2, val_start=2, val_interval=2, save_period=1, save_keep=2,
        project=str(tmp_path / "runs"),
    )  # fmt: skip
    folder = tmp_path / "runs" / "exp"
    scores = [row["metrics/mAP_0.5"] for row in read_results(folder / "results.csv").values()]
    assert np.isfinite(scores).tolist() == [False, True, False, True, True]  # the last one always
    assert sorted(path.name for path in folder.glob("weights/epoch*")) == ["epoch3.pt", "epoch4.pt"]
    text = script(
        "val.py", "--weights", folder / "weights" / "best.pt", "--data", root, "--workers", 0, "--imgsz", 64,
        "--project", tmp_path / "val", "--save-json",
    )  # fmt: skip
    first, second = text[text.index("COCO: ") :].splitlines()[:2]
    assert len(f"{first} {second.strip()}".split(", ")) == 12 and "AR100" in second
    assert sum(name.startswith("coco/") for name in results(tmp_path / "val" / "exp")) == 12


def sizes(multi_scale, rate=1, seed=0, steps=12):
    settings = SimpleNamespace(multi_scale=multi_scale, imgsz=(128,), resize_rate=rate, seed=seed)
    found = []
    for step in range(steps):
        found.append(random_input_hw((128, 128), settings, stride=32, epoch=0, step=step)[1])
    return found


def test_multi_scale_sizes_and_resize_rate(monkeypatch):
    drawn = sizes((64, 96, 160), rate=4, steps=48)
    assert set(drawn) == {64, 96, 160}
    assert all(len({*drawn[start : start + 4]}) == 1 for start in range(0, 48, 4))
    assert sizes((64, 96, 160), rate=1) != sizes((64, 96, 160), rate=4)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sizes((64, 96, 160), rate=4, steps=48) == drawn  # every rank draws the same
    assert {*sizes(True, steps=60)} == {64, 96, 128, 160, 192} and sizes(False) == [128] * 12


def test_invalid_multi_scale_sizes(tmp_path):
    with pytest.raises(UserError, match=r"--multi-scale 100: not a multiple of 32"):
        importlib.import_module("train").run(
            data=str(coco_folder(tmp_path / "coco")), cfg="yolov5n", imgsz=[64], multi_scale=[64, 100], workers=0,
            project=str(tmp_path / "runs"),
        )  # fmt: skip
    assert not (tmp_path / "runs").exists()
