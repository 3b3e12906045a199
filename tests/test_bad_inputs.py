"""What a user can get wrong: one line that names the file, nothing left behind, and no traceback."""

import copy
import importlib
import os
import pickle
import threading
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers_run import ROOT, script, tiny_data

from models.builder import build_network, read_architecture
from models.checkpoint import load_checkpoint, save_checkpoint
from utils.core import dist
from utils.core.cli import given, one_line, resolve_training
from utils.core.config import load_data
from utils.core.contracts import LoadRequest
from utils.core.errors import UserError
from utils.core.files import atomic_path, drop_if_empty, run_folder
from utils.core.hyp import Hyp
from utils.core.yaml_file import write_yaml
from utils.datasets.images import IMAGE_SUFFIXES, ImageFault, probe_image, read_image
from utils.datasets.label_lines import parse_labels
from utils.datasets.loader import open_loader
from utils.datasets.scan import Pool, build_index
from utils.datasets.sources import open_source
from utils.engine.state import find_last, load_resumable
from utils.plots import sinks

TINY = ("--cfg", "yolov5n", "--img", "64", "--batch", "4", "--workers", "0", "--epochs", "1", "--noplots")
SCRIPTS = ("train", "val", "detect")


def error_of(name, *options, project):
    """Run a script in this process; return the message of the UserError it must end with. Nothing may be left."""
    module = importlib.import_module(name)
    line = [str(option) for option in (*options, *(() if "--project" in options else ("--project", project)))]
    start = {
        "train": lambda: module._train(given(module.build_parser(), line)),
        "val": lambda: module.run(**given(module.build_parser(), line)),
        "detect": lambda: module.main(module.build_parser().parse_args(line)),
    }[name]
    with pytest.raises(UserError) as caught:
        start()
    assert not project.exists() or not list(project.rglob("*")), "something was left behind"
    text = str(caught.value)
    assert "\n" not in text, text
    return text


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """The YAML of eight labelled noise images for training and for validation, two classes."""
    folder = tmp_path_factory.mktemp("set")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / "images" / split / f"{i}.jpg"), pixels)
            (folder / "labels" / split / f"{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.3 0.3\n")
    data = {"path": str(folder), "train": "images/train", "val": "images/val", "names": ["a", "b"]}
    write_yaml(folder / "data.yaml", data)
    return folder / "data.yaml"


def copy_of(images, folder):
    """Return the YAML of a copy of the data set that a test may spoil."""
    data = load_data(str(images))
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
            for path in (data.root / kind / split).iterdir():
                (folder / kind / split / path.name).write_bytes(path.read_bytes())
    write_yaml(folder / "data.yaml", {"train": "images/train", "val": "images/val", "names": ["a", "b"]})
    return folder / "data.yaml"


@pytest.fixture(scope="session")
def network_file(tmp_path_factory):
    """A checkpoint of a small network with two classes."""
    path = tmp_path_factory.mktemp("weights") / "two.pt"
    save_checkpoint(path, build_network(read_architecture("yolov5n"), 2, ("a", "b")), meta={"imgsz": 64})
    return path


def options_for(name, weights, images):
    """Return options that would work if the weights did."""
    if name == "detect":
        return ("--weights", weights, "--source", load_data(str(images)).split("val")[0], "--img", 64)
    return ("--weights", weights, "--data", images, "--img", 64, "--workers", 0)


# ----------------------------------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("name", SCRIPTS)
def test_adversarial_weights_are_one_line(shared, images, tmp_path, name):
    files = sorted((shared / "weights" / "adversarial").iterdir())
    assert len(files) >= 4
    for path in files:
        assert error_of(name, *options_for(name, path, images), project=tmp_path / "p").startswith(str(path))


class _Evil:
    def __reduce__(self):
        return (os.system, ("exit 1",))


def _zip_of_text(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")


WEIGHTS = {
    "empty.pt": (lambda p: p.write_bytes(b""), "empty"),
    "folder.pt": (lambda p: p.mkdir(), "folder"),
    "text.pt": (lambda p: p.write_text("hello"), "not a checkpoint"),
    "words.txt": (lambda p: p.write_text("hello"), "not a checkpoint|no format"),
    "zip.pt": (_zip_of_text, "without a checkpoint"),
    "bare.pt": (lambda p: torch.save({"a": torch.zeros(2)}, p), "bare weights"),
    "list.pt": (lambda p: torch.save([1, 2], p), "a list"),
    "evil.pt": (lambda p: p.write_bytes(pickle.dumps(_Evil())), "refused"),
    "short.safetensors": (lambda p: p.write_bytes(b"\0" * 20), "damaged"),
    "missing.pt": (lambda p: None, "no such file"),
    "yolov5s.pt": (lambda p: None, "--download"),
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("file", WEIGHTS)
def test_what_is_no_checkpoint_is_named(images, tmp_path, name, file):
    make, says = WEIGHTS[file]
    path = tmp_path / file
    make(path)
    text = error_of(name, *options_for(name, path, images), project=tmp_path / "p")
    assert text.startswith(str(path)) and any(part in text for part in says.split("|")), text


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("file", ["cls_kuih_nc10.pt", "yolov5n-seg.pt", "random_multi_base.pt"])
def test_weights_of_other_tasks_are_named(shared, images, tmp_path, name, file):
    weights = shared / "weights" / file
    text = error_of(name, *options_for(name, weights, images), project=tmp_path / "p")
    assert weights.stem in text and ("head" in text)


def test_weights_and_data_of_other_classes_are_told_apart(shared, images, network_file, tmp_path):
    options = options_for("val", shared / "weights" / "det_pvdefect_nc5.pt", images)
    assert "2 classes" in (text := error_of("val", *options, project=tmp_path / "p")) and "knows 5" in text
    both = ("--weights", network_file, shared / "weights" / "yolov5n.pt")
    text = error_of("val", *both, "--data", images, "--img", 64, project=tmp_path / "p")
    assert "2 and 80 classes" in text


# ----------------------------------------------------------------------------------------------------------------------
# YAML files

GOOD = "path: ROOT\ntrain: images/train\nval: images/val\nnames: [a, b]\n"
DATA = {
    "syntax": ("train: [a\nval: x", ":2: not valid YAML"),
    "tab": ("path: a\n\ttrain: x\n", ":2: not valid YAML"),
    "empty": ("", "is empty"),
    "a list": ("- a\n", "this is a list"),
    "no names": (GOOD.replace("names: [a, b]", ""), "`names:` is missing"),
    "names a number": (GOOD.replace("[a, b]", "7"), "`names:` must be a list"),
    "names nested": (GOOD.replace("[a, b]", "[[a]]"), "`names:` must be a list"),
    "names with gaps": (GOOD.replace("[a, b]", "{0: a, 2: b}"), "without gaps"),
    "no class": (GOOD.replace("[a, b]", "[]"), "`names` is empty"),
    "nc differs": (GOOD + "nc: 3\n", "`nc: 3`"),
    "nc a word": (GOOD + "nc: two\n", "`nc:` must be"),
    "train a number": (GOOD.replace("images/train", "3"), "`train:` must be a folder"),
    "train missing": (GOOD.replace("train: images/train\n", ""), "no `train:` key"),
    "val not there": (GOOD.replace("images/val", "images/nothing"), "`val:` is not there; looked for"),
    "path not there": (GOOD.replace("ROOT", "/nowhere"), "`train:` is not there"),
    "path with a zero byte": (GOOD.replace("ROOT", '"a\\0b"'), "`train:` is not there"),
    "list of missing images": (GOOD.replace("images/val", "missing.txt"), "none of 2 images can be used"),
    "empty list": (GOOD.replace("images/val", "blank.txt"), "no images"),
    "list is a folder": (GOOD.replace("images/val", "folder.txt"), "no images"),
    "list is binary": (GOOD.replace("images/val", "binary.txt"), "not a text file"),
    "list of words": (GOOD.replace("images/val", "words.txt"), "words.txt:1: 'hello' is not an image"),
    "zero byte in a list": (GOOD.replace("images/val", "zero.txt"), "zero.txt:1"),
    "alias": (GOOD.replace("[a, b]", "&x [a, b]") + "o: *x\n", "aliases"),
    "key twice": (GOOD + "val: images/train\n", "stands twice"),
    "python tag": (GOOD + "x: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    "unknown format": (GOOD + "format: coconut\n", "unknown label format 'coconut'"),
    "unknown generator": (GOOD + "generate: {kind: cubes}\n", "unknown data generator 'cubes'"),
    "deep": (GOOD + "x: " + "[" * 3000 + "]" * 3000, "not valid YAML"),
}


@pytest.mark.parametrize("kind", DATA)
def test_malformed_data_yaml_is_one_line(images, tmp_path, kind):
    text, says = DATA[kind]
    root = tmp_path / "set"
    copy_of(images, root)
    (root / "missing.txt").write_text("none/a.jpg\nnone/b.jpg\n")
    (root / "blank.txt").write_text("\n\n")
    (root / "folder.txt").mkdir()
    (root / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    (root / "words.txt").write_text("hello\n")
    (root / "zero.txt").write_bytes(b"a\x00b.jpg\n")
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace("ROOT", str(root)))
    before = sorted(root.rglob("*"))
    message = error_of("train", "--data", path, *TINY, project=tmp_path / "p")
    assert says in message and str(tmp_path) in message, message
    caches = set(root.rglob("*")) - set(before)
    assert all(entry.name.startswith("train.") for entry in caches), "a cache of what cannot be used"


@pytest.mark.parametrize("content", [b"\xff\xfea\x00", "names: [ü]".encode("latin1"), b"\0" * (33 * 2**20)], ids=["utf-16", "latin", "huge"])
def test_a_data_yaml_that_is_no_text_is_one_line(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert error_of("train", "--data", path, *TINY, project=tmp_path / "p").startswith(f"{path}: ")


DEFAULTS = ["epochs: three", "imgsz: [a]", "batch_size: 2.5", "freeze: x", "noval: maybe", "patience: [1]", "seed: null",
            "optimizer: LION", "name: 7", "epoch_count: 3"]  # fmt: skip


@pytest.mark.parametrize("entry", DEFAULTS)
def test_recommended_options_are_checked_like_typed_ones(tmp_path, entry):
    path = tmp_path / "data.yaml"
    path.write_text(GOOD + f"defaults: {{{entry}}}\n")
    data = load_data(str(path))
    parser = importlib.import_module("train").build_parser()
    with pytest.raises(UserError, match=entry.split(":")[0]) as caught:
        resolve_training(parser, {}, data.defaults, data.source)
    assert str(caught.value).startswith(str(path))
    settings, _ = resolve_training(parser, {}, {"freeze": 3, "imgsz": 64, "noval": True}, path)
    assert (settings.freeze, settings.imgsz, settings.noval) == ((3,), (64,), True)


MODEL = """nc: 2
depth_multiple: 0.33
width_multiple: 0.25
anchors: [[10,13, 16,30], [30,61, 62,45]]
backbone: [[-1, 1, Conv, [64, 6, 2, 2]], [-1, 1, Conv, [128, 3, 2]], [-1, 1, C3, [128]], [-1, 1, Conv, [256, 3, 2]]]
head: [[[2, 3], 1, Detect, [nc, anchors]]]
"""
MODELS = {
    "no backbone": ("backbone:", "bone:", "backbone"), "no head": ("head:", "hed:", "head"),
    "nc a word": ("nc: 2", "nc: two", "nc: two"), "nc zero": ("nc: 2", "nc: 0", "nc: 0"),
    "depth negative": ("0.33", "-1", "depth_multiple"), "width a word": ("0.25", "wide", "width_multiple"),
    "anchors odd": ("16,30]", "16]", "anchors"), "anchors negative": ("10,13", "-10,13", "above 0"),
    "anchors infinite": ("10,13", ".inf,13", "above 0"), "too few levels": (", [30,61, 62,45]", "", "levels"),
    "unknown module": ("C3", "C9", "row 2 (C9)"), "code for a module": ("C3", "os.system", "row 2"),
    "row too short": ("[-1, 1, C3, [128]]", "[-1, 1, C3]", "row 2"), "row of text": ("[-1, 1, C3, [128]]", "x", "row 2"),
    "input from nowhere": ("[-1, 1, C3,", "[9, 1, C3,", "row 9"), "input a word": ("[-1, 1, C3,", "[x, 1, C3,", "row 2"),
    "no repeats": ("[-1, 1, C3,", "[-1, 0, C3,", "repeats"), "channels a word": ("C3, [128]", "C3, [big]", "row 2"),
    "channels negative": ("C3, [128]", "C3, [-8]", "row 2"), "kernel negative": ("[256, 3, 2]", "[256, -3, 2]", "row 3"),
    "stride zero": ("[256, 3, 2]", "[256, 3, 0]", "row 3"), "no head at all": ("Detect, [nc, anchors]", "Concat, [1]", "head"),
    "head without anchors": ("[nc, anchors]", "[nc]", "two arguments"), "head swapped": ("[nc, anchors]", "[anchors, nc]", "row 4"),
    "unknown base": ("nc: 2", "nc: 2\nbase: nothing", "base: nothing"), "activation": ("nc: 2", "nc: 2\nactivation: os.x()", "activation"),
    "activation infinite": ("nc: 2", "nc: 2\nactivation: nn.LeakyReLU(1e999)", "finite"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_malformed_model_yaml_is_one_line(tmp_path, kind):
    old, new, says = MODELS[kind]
    assert old in MODEL
    path = tmp_path / "model.yaml"
    path.write_text(MODEL.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        build_network(read_architecture(str(path)))
    text = str(caught.value)
    assert text.startswith(str(path)) and says in text and "\n" not in text, text


def test_the_model_yaml_these_faults_are_put_into_is_good(images, tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(MODEL)
    build_network(read_architecture(str(path)))
    path.write_text(MODEL + "ch: 4\n")
    assert "4 channels" in error_of("train", "--data", images, *TINY, "--cfg", path, project=tmp_path / "p")


HYPS = ["lr0: 0", "lr0: .nan", "box: .inf", "momentum: 1", "cls_pw: 0", "obj_pw: -1", "anchors: 0", "anchors: 1000000",
        "label_smoothing: 1", "shear: 90", "degrees: 1000", "hsv_s: 9", "warmup_momentum: 5", "mosaic: true", "lr1: 1"]  # fmt: skip


@pytest.mark.parametrize("line", HYPS)
def test_malformed_hyp_yaml_is_one_line(tmp_path, line):
    path = tmp_path / "hyp.yaml"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=line.split(":")[0]) as caught:
        Hyp.from_file(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------------
# Labels

LABELS = {
    "words": b"a dog here and there\n", "four columns": b"0 .5 .5 .3\n", "six columns": b"0 .5 .5 .3 .3 .9\n",
    "negative": b"0 -.5 .5 .3 .3\n", "above one": b"0 .5 .5 30 .3\n", "nan": b"0 nan .5 .3 .3\n", "inf": b"0 inf .5 .3 .3\n",
    "class not whole": b"0.5 .5 .5 .3 .3\n", "class negative": b"-1 .5 .5 .3 .3\n", "class huge": b"1e308 .5 .5 .3 .3\n",
    "odd polygon": b"0 .1 .1 .2 .2 .3 .3 .4\n", "two kinds": b"0 .1 .1 .2 .2\n0 .1 .1 .2 .2 .3 .3\n",
    "binary": b"\xff\x00\x81\xfe", "utf-16": "0 .5 .5 .3 .3\n".encode("utf-16"), "zero byte": b"0 .5 .5 .3 .3\0\n",
    "commas": b"0, .5, .5, .3, .3\n", "header": b"class x y w h\n0 .5 .5 .3 .3\n", "class unknown": b"7 .5 .5 .3 .3\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", LABELS)
def test_a_faulty_label_file_stops_or_is_counted(images, tmp_path, kind):
    data = load_data(str(copy_of(images, tmp_path / "set")))
    file = data.root / "labels" / "train" / "3.txt"
    file.write_bytes(LABELS[kind])
    with pytest.raises(UserError) as caught:
        build_index(data, "train")
    assert f"{file}:1: " in str(caught.value) and "\n" not in str(caught.value)
    index = build_index(data, "train", allow_faults=True)
    assert len(index) == 7 and index.count["faulty_labels"] == 1 and index.count["corrupt"] == 1
    assert index.count["found"] == 7 and len(index.boxes) == 7
    assert str(data.root / "images" / "train" / "3.jpg") not in [index.path(i) for i in range(7)]


def test_a_pipe_instead_of_a_label_or_an_image_does_not_block(images, tmp_path):
    data = load_data(str(copy_of(images, tmp_path / "set")))
    label = data.root / "labels" / "train" / "3.txt"
    label.unlink()
    os.mkfifo(label)
    os.mkfifo(data.root / "images" / "train" / "pipe.jpg")
    index = build_index(data, "train", allow_faults=True)
    assert len(index) == 7 and index.count["corrupt"] == 2


def test_labels_of_nothing_at_all(images, tmp_path):
    data = load_data(str(copy_of(images, tmp_path / "set")))
    for path in (data.root / "labels" / "train").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no labels for any image"):
        build_index(data, "train", need_labels=True)
    request = LoadRequest(data, "train", False, 64, 4, 32, Hyp(), workers=0, rect=True)
    loader = open_loader(request)  # validation without a single label
    assert sum(len(batch) for batch in loader.epoch(0)) == 8 and loader.class_counts.tolist() == [0, 0]


def test_random_label_lines_never_crash_the_reader():
    """Ten thousand lines made of plausible and implausible words: faults name their line, the rest is sound."""
    rng = np.random.default_rng(7)
    words = ["0", "1", "17", "-1", "0.5", ".25", "1.0", "1e-3", "1e400", "nan", "inf", "-0", "x", "", "\0", "٣", "0x1", "1_0",
             "1,5", "💥", "0.9999999", "1.0000001", "--1", "+.5", "9" * 40, "\ufeff0", "0\r1"]  # fmt: skip
    sound = 0
    for _ in range(2000):
        lines = [" ".join(rng.choice(words, rng.integers(0, 10))) for _ in range(rng.integers(0, 6))]
        if rng.random() < 0.5:  # mostly good files, so that both ways are taken
            lines = [f"{rng.integers(0, 80)} {' '.join(f'{v:.4f}' for v in rng.random(4))}" for _ in range(4)]
        labels = parse_labels("\n".join(lines), "f.txt")
        assert all(fault.startswith("f.txt:") and "\n" not in fault for fault in labels.faults)
        boxes = labels.boxes
        assert boxes.shape[1:] == (5,) and boxes.dtype == np.float32 and np.isfinite(boxes).all()
        assert (
            (boxes[:, 1:] >= 0).all() and (boxes[:, 1:] <= 1).all() and (boxes[:, 0] == boxes[:, 0].astype(int)).all()
        )
        assert not (labels.faults and len(boxes)) and len(labels.polygons) in (0, len(boxes))
        sound += len(boxes) > 0
    assert 200 < sound < 1800


# ----------------------------------------------------------------------------------------------------------------------
# Images and other sources


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, about damaged headers
def test_every_bad_image_is_read_or_named(shared):
    files = sorted(path for path in (shared / "badimages").rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    assert len(files) > 50
    unreadable = 0
    for path in files:
        try:
            height_width = probe_image(path)
            assert read_image(path).shape == (*height_width, 3), path
        except ImageFault as fault:
            assert str(path) in str(fault) and "\n" not in str(fault)
            unreadable += 1
    assert 5 < unreadable < len(files) / 2


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, about damaged headers
def test_bad_images_as_a_data_set_are_counted(shared, tmp_path):
    yaml = tmp_path / "data.yaml"
    write_yaml(
        yaml, {"path": str(shared / "badimages"), "val": ["exif", "pillow", "heif", "synthetic"], "names": ["a"]}
    )
    index = build_index(load_data(str(yaml)), "val")
    assert len(index) > 40 and index.count["corrupt"] >= 10 and index.count["missing"] == len(index)


def test_detect_goes_on_past_bad_files_and_counts_them(shared, network_file, tmp_path):
    detect = importlib.import_module("detect")
    report = detect.run(
        weights=[str(network_file)], source=str(shared / "badimages" / "synthetic"), imgsz=[64], project=str(tmp_path)
    )
    assert report.faults == 1 and len(list((tmp_path / "exp").iterdir())) == 6


SOURCES = {
    "nothing.jpg": "no such file", "nothing*.jpg": "no images or videos", "a\nb": "no such file", 
    "http://[bad/a.jpg": "not a valid address", "rtsp://host:port/x": "not a valid address", "screen 1 2": "expected `screen`",
    "text.mp4": "not a video", "zero.gif": "not a video", "empty": "no images or videos", "blank.txt": "the list is empty",
    "gone.txt": "none of 2 files", "bad.streams": "not a valid address", "film.jpg": "not an image", "words.doc": "neither image nor video",
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_bad_sources_are_one_line(network_file, tmp_path, source):
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    (tmp_path / "zero.gif").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("# nothing\n")
    (tmp_path / "gone.txt").write_text("a.jpg\nb.mp4\n")
    (tmp_path / "bad.streams").write_text("http://[bad/x\n")
    (tmp_path / "film.jpg").write_text("hello")
    (tmp_path / "words.doc").write_text("hello")
    place = tmp_path / source
    chosen = place if "/" not in source and len(source) < 255 and place.exists() else source
    module = importlib.import_module("detect")
    options = module.build_parser().parse_args(
        ["--weights", str(network_file), "--source", str(chosen), "--img", "64", "--project", str(tmp_path / "p")]
    )
    with pytest.raises(UserError) as caught:
        module.main(options)
    assert SOURCES[source] in str(caught.value) and "\n" not in one_line(str(caught.value))
    assert not list(tmp_path.glob("p/*"))


def test_a_window_without_a_screen_is_refused_before_qt_ends_the_process(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sinks.sys, "platform", "linux")
    with pytest.raises(UserError, match="--view-img"):
        sinks.WindowSink()


def test_very_long_names_of_sources_are_cut_not_refused(network_file, tmp_path):
    picture = tmp_path / f"{'ü' * 124}.jpg"  # 252 bytes
    cv2.imencode(".jpg", np.zeros((40, 40, 3), np.uint8))[1].tofile(picture)
    importlib.import_module("detect").run(
        weights=[str(network_file)], source=str(picture), imgsz=[64], conf_thres=0.0, max_det=3, save_crop=True,
        save_txt=True, project=str(tmp_path / "прое кт"), name="имя/图",
    )  # fmt: skip
    folder = tmp_path / "прое кт" / "имя" / "图"
    assert len(list(folder.glob("*.jpg"))) == 1 and len(list((folder / "labels").iterdir())) == 1
    assert len(list((folder / "crops").rglob("*.jpg"))) == 3


# ----------------------------------------------------------------------------------------------------------------------
# Where results go


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_project_that_cannot_be_written_is_one_line(images, network_file, tmp_path, name):
    (tmp_path / "file").write_text("")
    for project in (tmp_path / "file", tmp_path / "file" / "runs", tmp_path / ("x" * 300), "a\0b"):
        options = options_for(name, network_file, images)
        text = error_of(name, *options, "--project", project, project=tmp_path / "p")
        assert "cannot write there" in text


def test_empty_folders_of_failed_runs_do_not_stay(images, network_file, tmp_path):
    runs = tmp_path / "p"
    options = options_for("val", network_file, images)
    assert "no such COCO JSON" in error_of("val", *options, "--annotations", "gone.json", project=runs)
    assert "unknown logger" in error_of("train", "--data", images, *TINY, "--log", "nothing", project=runs)
    folder = run_folder(runs, "exp")
    (folder / "labels" / "deeper").mkdir(parents=True)
    drop_if_empty(folder)
    assert not folder.exists()
    folder = run_folder(runs, "exp")
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text("")
    drop_if_empty(folder)
    assert (folder / "labels" / "a.txt").exists()


def test_a_video_that_the_disk_did_not_take_is_no_video(monkeypatch, tmp_path):
    from utils.core.contracts import Frame, Geometry, ImageInfo, Results

    picture = np.zeros((64, 64, 3), np.uint8)
    frames = [Frame(picture, "film.mp4", "", number, 3) for number in (1, 2, 3)]
    results = Results(ImageInfo(0, "film.mp4", Geometry((64, 64), (64, 64))))
    whole = sinks.VideoSink(tmp_path / "whole")
    for frame in frames:
        whole.write(frame, results, lambda: picture)
    assert "1 video" in whole.close() and sinks.count_frames(tmp_path / "whole" / "film.mp4") == 3
    cut = sinks.VideoSink(tmp_path / "cut")
    for frame in frames:
        cut.write(frame, results, lambda: picture)
    monkeypatch.setattr(sinks, "count_frames", lambda path: 2)
    with pytest.raises(UserError, match=r"film\.mp4: cannot write all 3 frames"):
        cut.close()
    assert not list((tmp_path / "cut").iterdir())


def test_a_table_that_the_disk_did_not_take_is_named(tmp_path):
    from utils.core.contracts import Frame, Geometry, ImageInfo, Results

    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

    info = ImageInfo(0, "a.jpg", Geometry((64, 64), (64, 64)))
    found = Results(info, torch.zeros(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.long))
    sink = sinks.CsvSink(tmp_path / "predictions.csv", ("a",))
    sink.write(Frame(np.zeros((64, 64, 3), np.uint8), "a.jpg", ""), found, lambda: np.zeros(0))
    path = tmp_path / "other.txt"
    with pytest.raises(UserError, match=r"other\.txt: cannot write there \(No space left"), atomic_path(path) as _:
        Full().write("x")
    assert "1 row" in sink.close() and sorted(entry.name for entry in tmp_path.iterdir()) == ["predictions.csv"]


# ----------------------------------------------------------------------------------------------------------------------
# Options, environment, resuming


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("train", "--epochs", "-1 0 x 1.5 nan"), ("train", "--imgsz", "0 -5 31 99999999999 x"), ("train", "--seed", "x 99999999999999999999"),
        ("train", "--freeze", "-1 26 99999999999999999999"), ("train", "--mosaic-window", "-1 x"), ("train", "--batch-size", "-1 0 1e9"),
        ("train", "--label-smoothing", "-1 1 nan inf"), ("train", "--patience", "-1"), ("train", "--optimizer", "LION"), ("train", "--nonsense", "1"),
        ("val", "--conf-thres", "-1 2 nan x"), ("val", "--iou-thres", "1.5"), ("val", "--max-det", "0"), ("val", "--imgsz", "1 99999999999"),
        ("val", "--task", "nothing"), ("val", "--workers", "-1"),
        ("detect", "--conf-thres", "-1 2 nan"), ("detect", "--imgsz", "0 99999999999"), ("detect", "--vid-stride", "0 -1"), ("detect", "--max-det", "-1"),
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_one_line(images, network_file, tmp_path, name, option, values):
    base = ("--data", images, *TINY) if name == "train" else options_for(name, network_file, images)
    for value in values.split():
        text = error_of(name, *base, f"{option}={value}", project=tmp_path / "p")
        assert option in text, text


@pytest.mark.parametrize(
    "wrong", [{"WORLD_SIZE": "x"}, {"WORLD_SIZE": "2", "RANK": "y"}, {"WORLD_SIZE": "2", "RANK": "5"}, {"WORLD_SIZE": "2"}]
)  # fmt: skip
def test_an_environment_that_no_launcher_made_is_one_line(monkeypatch, wrong):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="environment variable") as caught:
        dist.is_main()
        dist.start(torch.device("cpu"))
    assert "torchrun" in str(caught.value) and dist.is_launched()


def test_messages_stay_on_one_line():
    assert one_line("a\nb\tc\0d\x1b[31m ü 图") == "a\\nb\\tc\\x00d\\x1b[31m ü 图"


def test_queued_work_is_dropped_when_the_user_stops():
    done, start = [], threading.Event()

    def slow(number):
        start.set()
        time.sleep(0.02)
        done.append(number)

    with pytest.raises(KeyboardInterrupt), Pool(2) as pool:
        waiting = [pool.submit(slow, number) for number in range(500)]
        start.wait()
        raise KeyboardInterrupt
    assert len(done) < 50 and any(future.cancelled() for future in waiting)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The last.pt of a run that was stopped after its first epoch, and the YAML of its data."""
    from utils.engine import fit as engine

    folder = tmp_path_factory.mktemp("stopped")
    data = tiny_data(folder, train=8, val=4, size=64)
    keep = engine._finish_epoch

    class StopError(Exception):
        pass

    def stop(*arguments):
        keep(*arguments)
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_finish_epoch", stop)
        with pytest.raises(StopError):
            importlib.import_module("train").run(
                data=str(data), cfg="yolov5n", imgsz=[64], batch_size=4, workers=0, epochs=2, noplots=True,
                project=str(folder / "runs"),
            )  # fmt: skip
    return folder / "runs" / "exp" / "weights" / "last.pt", data


def _resume(path):
    with pytest.raises(UserError) as caught:
        importlib.import_module("train").run(resume=str(path))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_cannot_be_resumed_is_one_line(stopped, tmp_path):
    last, data = stopped
    content = last.read_bytes()
    run = tmp_path / "exp" / "weights"
    run.mkdir(parents=True)
    (run / "last.pt").write_bytes(content[: len(content) // 2])
    assert "cut short" in _resume(run / "last.pt")
    yaml = data.read_text()
    data.write_text(yaml.replace("- ring\n", ""))
    assert "6 classes, but the run to resume has 7" in _resume(last)
    data.write_text(yaml)
    data.rename(data.with_suffix(".gone"))
    assert "no such data-set YAML" in _resume(last)
    data.with_suffix(".gone").rename(data)
    with pytest.raises(UserError, match=r"no last\.pt under"):
        find_last("newest", tmp_path / "nothing")
    save_checkpoint(tmp_path / "plain.pt", load_checkpoint(last).network, meta={})
    with pytest.raises(UserError, match="holds weights only"):
        load_resumable(tmp_path / "plain.pt")


def test_bare_resume_takes_the_newest_run(tmp_path):
    for number, name in enumerate(("exp", "exp3", "exp2")):
        path = tmp_path / name / "weights" / "last.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        os.utime(path, (1000 + number, 1000 + number))
    assert find_last("newest", tmp_path) == tmp_path / "exp2" / "weights" / "last.pt"
    assert find_last(str(tmp_path / "exp"), tmp_path) == tmp_path / "exp" / "weights" / "last.pt"


FORGED = {
    "no optimizer": lambda training: training.pop("optimizer"),
    "settings a number": lambda training: training.update(settings=3),
    "epochs a word": lambda training: training["settings"].update(epochs="x"),
    "other groups": lambda training: training["optimizer"].update(param_groups=[]),
    "a tensor gone": lambda training: training["network"].popitem(),
    "epoch a word": lambda training: training["state"].update(epoch="x"),
    "random state": lambda training: training.update(random=[{"cpu": torch.zeros(3)}]),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_snapshot_is_one_line(stopped, tmp_path, kind):
    content = copy.deepcopy(torch.load(stopped[0], weights_only=True))
    FORGED[kind](content["training"])
    path = tmp_path / "exp" / "weights" / "last.pt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    assert _resume(path).startswith(str(path))


# ----------------------------------------------------------------------------------------------------------------------
# The same through the command line

LINES = [
    ("train.py", ("--epochs", "three"), {}, "--epochs"),
    ("val.py", ("--weights", "gone\n.pt"), {}, "no such file"),
    ("detect.py", ("--weights", "README.md"), {}, "README.md"),
    ("train.py", (), {"WORLD_SIZE": "two"}, "WORLD_SIZE"),
]


@pytest.mark.parametrize(("program", "options", "extra", "says"), LINES)
def test_the_programs_end_with_one_line_and_status_2(monkeypatch, tmp_path, program, options, extra, says):
    for name, value in extra.items():
        monkeypatch.setenv(name, value)
    text = script(program, *options, "--project", tmp_path / "p", status=2)
    lines = text.strip().splitlines()
    assert lines[-1].startswith("error: ") and says in lines[-1]
    assert sum(line.startswith("error: ") for line in lines) == 1 and "usage" not in text
    assert not (tmp_path / "p").exists() and not (ROOT / "exp").exists()


def test_names_of_files_reach_the_user_whole(tmp_path):
    long = Path(tmp_path, "図" * 60, "x" * 200)
    with pytest.raises(UserError, match="図" * 60):
        open_source(str(long / "a.jpg"))
