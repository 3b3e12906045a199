"""classify/train.py, val.py and predict.py from end to end on a tiny generated data set, as a user runs them."""

import csv
import importlib
import signal
import subprocess
import time

import cv2
import numpy as np
import pytest
from helpers_run import ROOT, command, environment, results, same, script, weights

from models.builder import build_network, read_architecture
from models.checkpoint import save_checkpoint
from utils.core.cli import explicit_options
from utils.core.errors import UserError
from utils.core.yaml_file import write_yaml

TINY = ("--img", 64, "--batch", 8, "--workers", 0, "--epochs", 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data YAML of three generated classes with a few images each."""
    path = tmp_path_factory.mktemp("data") / "tiny.yaml"
    generate = {"kind": "shape-classes", "train": 6, "val": 3, "size": 64, "seed": 3}
    names = ["circle", "star", "cross"]
    values = {"path": "tiny", "train": "train", "val": "val", "names": names, "format": "folders", "generate": generate}
    write_yaml(path, values)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    runs = tmp_path_factory.mktemp("runs")
    text = script("classify/train.py", "--data", data, *TINY, "--project", runs, "--name", "run")
    return runs / "run", text


def test_training_output_files(trained):
    folder, text = trained
    rows = list(csv.reader((folder / "results.csv").read_text().splitlines(), skipinitialspace=True))
    columns = "epoch train/loss val/loss metrics/accuracy_top1 metrics/accuracy_top5 lr/0"
    assert [name.strip() for name in rows[0]] == columns.split() and len(rows) == 3
    assert [float(row[-1]) for row in rows[1:]] == pytest.approx([0.001, 0.000505])  # no warm-up, a straight line
    expected = """args.yaml hyp.yaml results.json results.png labels.jpg train_batch0.jpg val_batch0_labels.jpg
        val_batch0_pred.jpg confusion_matrix.png weights/last.pt weights/best.pt"""
    assert [name for name in expected.split() if not (folder / name).is_file()] == []
    assert "6 star" in text and "top1_acc" in text and "post-process" in text
    assert 0 <= results(folder)["classify/top1"] <= results(folder)["classify/top5"] == 1


def test_val_matches_training_on_one_and_two_processes(trained, data, tmp_path):
    options = ("--weights", trained[0] / "weights" / "best.pt", "--workers", 0, "--batch", 4, "--project", tmp_path)
    run_here("classify.val", *options, "--name", "one")
    script("classify/val.py", *options, "--name", "two", "--noplots", "--data", data.parent / "tiny", processes=2)
    one, two, before = results(tmp_path / "one"), results(tmp_path / "two"), results(trained[0])
    for key in ("classify/top1", "classify/top5"):
        assert one[key] == two[key] == pytest.approx(before[key], abs=1e-6), key
    assert one["images"] == two["images"] == 9 and (tmp_path / "one" / "confusion_matrix.png").is_file()


def test_predict_top5_of_images_and_videos(trained, data, tmp_path):
    place = tmp_path / "in"
    place.mkdir()
    cv2.imwrite(str(place / "a.jpg"), np.full((60, 90, 3), 128, np.uint8))
    video = cv2.VideoWriter(str(place / "b.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(3):
        video.write(np.zeros((48, 64, 3), np.uint8))
    video.release()
    options = ("--weights", trained[0] / "weights" / "best.pt", "--project", tmp_path, "--augment", "--visualize")
    text = script("classify/predict.py", *options, "--source", place, "--name", "p", "--save-txt")
    assert "64x64" in text and "image 1/2" in text and text.count("star 0.") == 4  # one image and three frames
    assert (tmp_path / "p" / "a.jpg").is_file() and (tmp_path / "p" / "b.mp4").is_file()
    assert sorted(p.name for p in (tmp_path / "p" / "labels").iterdir()) == [
        "a.txt",
        *(f"b_{i}.txt" for i in (1, 2, 3)),
    ]
    lines = [line.split() for line in (tmp_path / "p" / "labels" / "a.txt").read_text().splitlines()]
    assert {name for _, name in lines} == {"circle", "star", "cross"}
    chances = [float(chance) for chance, _ in lines]
    assert chances == sorted(chances, reverse=True) and sum(chances) == pytest.approx(1, abs=0.02)
    assert list((tmp_path / "p" / "features" / "a").glob("*.npy"))


KEEP = ("--noplots", "--noval", "--save-steps", 2, "--epochs", 3, "--seed", 5, "--dropout", 0.2)


def test_resume_is_bit_exact(data, tmp_path):
    options = ("--data", data, *TINY, *KEEP, "--project", tmp_path)
    script("classify/train.py", *options, "--name", "whole")
    last = tmp_path / "cut" / "weights" / "last.pt"
    line = command("classify/train.py", *options, "--name", "cut")
    with subprocess.Popen(
        line, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        while not last.exists() and run.poll() is None:
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL, "the run ended before it was killed"
    script("classify/train.py", "--resume", last, "--workers", 0)
    assert same(weights(last), weights(tmp_path / "whole" / "weights" / "last.pt"))


def run_here(name, *options):
    """Run a script in this process; return what it returns."""
    module, line = importlib.import_module(name), list(map(str, options))
    if "train" in name or "val" in name:
        return module.run(**explicit_options(module.build_parser(), line))
    return module.main(module.build_parser().parse_args(line))


def test_torchvision_networks(data, tmp_path, caplog):
    options = ("--data", data, *TINY, "--optimizer", "RMSProp", "--noplots", "--epochs", 1, "--project", tmp_path)
    with caplog.at_level("INFO", logger="polyolo"):
        found = run_here("classify.train", "--model", "squeezenet1_1", *options, "--name", "t")
    assert "squeezenet1_1: training from scratch; use --download" in caplog.text
    best = tmp_path / "t" / "weights" / "best.pt"
    again = run_here("classify.val", "--weights", best, "--workers", 0, "--noplots", "--project", tmp_path)
    assert again["classify/top1"] == found["classify/top1"]
    source = data.parent / "tiny" / "val" / "star" / "shape_000000.jpg"
    assert sum(run_here("detect", "--weights", best, "--source", source, "--nosave").found.values()) == 1


def test_reference_predictions(shared, tmp_path):
    files = ("--weights", shared / "weights" / "cls_kuih_nc10.pt", "--source", shared / "images" / "bus.jpg")
    with np.load(shared / "reference" / "cls_kuih_nc10_bus.npz") as reference:
        logits = reference["logits"][0]
    chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    run_here("classify.predict", *files, "--save-txt", "--nosave", "--project", tmp_path, "--name", "p")
    lines = (tmp_path / "p" / "labels" / "bus.txt").read_text().splitlines()
    assert [float(line.split()[0]) for line in lines] == pytest.approx(np.sort(chances)[::-1][:5], abs=0.011)


BAD = [
    ("train", ("--data", "nothing"), "no such data-set YAML"),
    ("train", ("--model", "resnet5"), "no such model YAML"),
    ("train", ("--model", "gone.pt"), "no such file"),
    ("train", ("--model", "a.pt", "--weights", "b.pt"), "give one of them"),
    ("train", ("--pretrained", "maybe"), "--pretrained maybe"),
    ("train", ("--cutoff", "1"), "--cutoff"),
    ("train", ("--dropout", "1"), "--dropout"),
    ("train", ("--lr0", "0"), "--lr0"),
    ("train", ("--model", "vit_b_32", "--img", "64"), "only takes images of 224 x 224"),
    ("val", ("--weights", "gone.pt"), "no such file"),
    ("predict", ("--weights", "gone.pt"), "no such file"),
]


@pytest.mark.parametrize(("name", "options", "says"), BAD)
def test_invalid_options(data, tmp_path, name, options, says):
    with pytest.raises(UserError) as caught:
        run_here(f"classify.{name}", "--data", data, "--project", tmp_path / "p", *options)
    assert says in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "p").exists()


def test_networks_of_another_task_are_refused(trained, data, tmp_path):
    boxes, classes = tmp_path / "boxes.pt", trained[0] / "weights" / "best.pt"
    save_checkpoint(boxes, build_network(read_architecture("yolov5n"), 3), {"task": "detect"})
    for name, path, says in (
        ("classify.val", boxes, "needs the head classify"),
        ("classify.predict", boxes, "has no classification head"),
        ("val", classes, "needs the head detect"),
    ):
        with pytest.raises(UserError, match=says):
            run_here(name, "--weights", path, "--data", data, "--project", tmp_path / "p")
