"""YAML files, labels and images that a user can get wrong: one line that names the file, or a counted warning."""

import importlib
import os

import cv2
import numpy as np
import pytest
from helpers_bad import TINY, error_of, image_set

from models.builder import build_network, read_architecture
from utils.core.cli import one_line
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.core.train_options import resolve_training
from utils.core.yaml_file import write_yaml
from utils.datasets.image_files import ImageFault, probe_image, read_image
from utils.datasets.image_suffixes import IMAGE_SUFFIXES
from utils.datasets.labels.label_scan import build_index
from utils.datasets.labels.yolo_lines import parse_labels
from utils.datasets.pipeline.box_samples import open_box_loader
from utils.plots import prediction_sinks as sinks
from utils.programs.train import recommended_for

# ----------------------------------------------------------------------------------------------------------------------
# YAML files

GOOD = "path: ROOT\ntrain: images/train\nval: images/val\nnames: [a, b]\n"
DATA = {
    "syntax": ("train: [a\nval: x", ":2: invalid YAML"),
    "tab": ("path: a\n\ttrain: x\n", ":2: invalid YAML"),
    "empty": ("", "is empty"),
    "a list": ("- a\n", "got a list"),
    "no names": (GOOD.replace("names: [a, b]", ""), "`names:` is missing"),
    "names a number": (GOOD.replace("[a, b]", "7"), "`names:` must be a list"),
    "names nested": (GOOD.replace("[a, b]", "[[a]]"), "`names:` must be a list"),
    "names with gaps": (GOOD.replace("[a, b]", "{0: a, 2: b}"), "without gaps"),
    "no class": (GOOD.replace("[a, b]", "[]"), "`names` is empty"),
    "nc differs": (GOOD + "nc: 3\n", "`nc: 3`"),
    "nc a word": (GOOD + "nc: two\n", "`nc:` must be"),
    "train a number": (GOOD.replace("images/train", "3"), "`train:` must be a folder"),
    "train missing": (GOOD.replace("train: images/train\n", ""), "no `train:` key"),
    "val not there": (GOOD.replace("images/val", "images/nothing"), "`val:` does not exist; looked for"),
    "path not there": (GOOD.replace("ROOT", "/nowhere"), "`train:` does not exist"),
    "path with a zero byte": (GOOD.replace("ROOT", '"a\\0b"'), "`train:` does not exist"),
    "list of missing images": (GOOD.replace("images/val", "missing.txt"), "none of 2 images can be used"),
    "empty list": (GOOD.replace("images/val", "blank.txt"), "no images"),
    "list is a folder": (GOOD.replace("images/val", "folder.txt"), "no images"),
    "list is binary": (GOOD.replace("images/val", "binary.txt"), "not a text file"),
    "list of words": (GOOD.replace("images/val", "words.txt"), "words.txt:1: 'hello' is not an image"),
    "zero byte in a list": (GOOD.replace("images/val", "zero.txt"), "zero.txt:1"),
    "alias": (GOOD.replace("[a, b]", "&x [a, b]") + "o: *x\n", "aliases"),
    "key twice": (GOOD + "val: images/train\n", "duplicate key"),
    "python tag": (GOOD + "x: !!python/object/apply:os.getcwd []\n", "invalid YAML"),
    "unknown format": (GOOD + "format: coconut\n", "unknown label format 'coconut'"),
    "unknown generator": (GOOD + "generate: {kind: cubes}\n", "unknown data generator 'cubes'"),
    "deep": (GOOD + "x: " + "[" * 3000 + "]" * 3000, "invalid YAML"),
}


@pytest.mark.parametrize("kind", DATA)
def test_malformed_data_yaml(images, tmp_path, kind):
    text, says = DATA[kind]
    root = tmp_path / "set"
    image_set(root)
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


@pytest.mark.parametrize(
    "content", [b"\xff\xfea\x00", "names: [ü]".encode("latin1"), b"\0" * (33 * 2**20)], ids=["utf-16", "latin", "huge"]
)
def test_binary_data_yaml(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert error_of("train", "--data", path, *TINY, project=tmp_path / "p").startswith(f"{path}: ")


DEFAULTS = [
    "epochs: three",
    "imgsz: [a]",
    "batch_size: many",
    "freeze: x",
    "noval: maybe",
    "patience: [1]",
    "seed: null",
    "optimizer: 3",
    "name: 7",
    "epoch_count: 3",
]


@pytest.mark.parametrize("entry", DEFAULTS)
def test_invalid_recommended_options(tmp_path, entry):
    path = tmp_path / "data.yaml"
    path.write_text(GOOD + f"defaults: {{{entry}}}\n")
    data = load_data(str(path))
    parser = importlib.import_module("train").build_parser()
    with pytest.raises(UserError, match=entry.split(":")[0]) as caught:
        resolve_training(parser, {}, data.defaults, data.source)
    assert str(caught.value).startswith(str(path))
    settings, _ = resolve_training(parser, {}, {"freeze": 3, "imgsz": 64, "noval": True}, path)
    assert (settings.freeze, settings.imgsz, settings.noval) == ((3,), (64,), True)


def test_recommended_options_per_task(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(GOOD + "defaults: {epochs: 9, imgsz: 64, segment: {epochs: 5}}\n")
    data = load_data(str(path))
    assert recommended_for("detect", data) == {"epochs": 9, "imgsz": 64}
    assert recommended_for("segment", data) == {"epochs": 5, "imgsz": 64}
    path.write_text(GOOD + "defaults: {segmnt: {epochs: 5}}\n")
    with pytest.raises(UserError, match="unknown key 'segmnt'"):
        recommended_for("segment", load_data(str(path)))


def rows(text):
    """Return {first cell: other cells} of a table with | between the cells; a semicolon stands for a new line."""
    cells = [line.replace("; ", "\n").split(" | ") for line in text.strip().splitlines()]
    return {first: others for first, *others in cells}


MODEL = """nc: 2
depth_multiple: 0.33
width_multiple: 0.25
anchors: [[10,13, 16,30], [30,61, 62,45]]
backbone: [[-1, 1, Conv, [64, 6, 2, 2]], [-1, 1, Conv, [128, 3, 2]], [-1, 1, C3, [128]], [-1, 1, Conv, [256, 3, 2]]]
head: [[[2, 3], 1, Detect, [nc, anchors]]]
"""
MODELS = rows("""
no backbone | backbone: | bone: | backbone
no head | head: | hed: | head
nc a word | nc: 2 | nc: two | nc: two
nc zero | nc: 2 | nc: 0 | nc: 0
depth negative | 0.33 | -1 | depth_multiple
width a word | 0.25 | wide | width_multiple
anchors odd | 16,30] | 16] | anchors
anchors negative | 10,13 | -10,13 | above 0
anchors infinite | 10,13 | .inf,13 | above 0
too few levels | , [30,61, 62,45] |  | levels
unknown module | C3 | C9 | row 2 (C9)
code for a module | C3 | os.system | row 2
row too short | [-1, 1, C3, [128]] | [-1, 1, C3] | row 2
row of text | [-1, 1, C3, [128]] | x | row 2
input from nowhere | [-1, 1, C3, | [9, 1, C3, | row 9
input a word | [-1, 1, C3, | [x, 1, C3, | row 2
no repeats | [-1, 1, C3, | [-1, 0, C3, | repeats
channels a word | C3, [128] | C3, [big] | row 2
channels negative | C3, [128] | C3, [-8] | row 2
kernel negative | [256, 3, 2] | [256, -3, 2] | row 3
stride zero | [256, 3, 2] | [256, 3, 0] | row 3
no head at all | Detect, [nc, anchors] | Concat, [1] | head
head without anchors | [nc, anchors] | [nc] | expected [nc, anchors]
head swapped | [nc, anchors] | [anchors, nc] | row 4
unknown base | nc: 2 | nc: 2; base: nothing | base: nothing
activation | nc: 2 | nc: 2; activation: os.x() | activation
activation infinite | nc: 2 | nc: 2; activation: nn.LeakyReLU(1e999) | finite
""")


@pytest.mark.parametrize("kind", MODELS)
def test_malformed_model_yaml(tmp_path, kind):
    old, new, says = MODELS[kind]
    assert old in MODEL
    path = tmp_path / "model.yaml"
    path.write_text(MODEL.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        build_network(read_architecture(str(path)))
    text = str(caught.value)
    assert text.startswith(str(path)) and says in text and "\n" not in text, text


def test_valid_model_yaml_is_accepted(images, tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(MODEL)
    build_network(read_architecture(str(path)))
    path.write_text(MODEL + "ch: 4\n")
    assert "4 input channels" in error_of("train", "--data", images, *TINY, "--cfg", path, project=tmp_path / "p")


HYPS = (
    """
lr0: 0 | lr0: .nan | box: .inf | momentum: 1 | cls_pw: 0 | obj_pw: -1 | anchors: 0 | anchors: 1000000
label_smoothing: 1 | shear: 90 | degrees: 1000 | hsv_s: 9 | warmup_momentum: 5 | mosaic: true | lr1: 1
""".strip()
    .replace("\n", " | ")
    .split(" | ")
)


@pytest.mark.parametrize("line", HYPS)
def test_malformed_hyp_yaml(tmp_path, line):
    path = tmp_path / "hyp.yaml"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=line.split(":")[0]) as caught:
        Hyp.from_file(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------------
# Labels

LABELS = {
    "words": b"a dog here and there\n",
    "four columns": b"0 .5 .5 .3\n",
    "six columns": b"0 .5 .5 .3 .3 .9\n",
    "negative": b"0 -.5 .5 .3 .3\n",
    "above one": b"0 .5 .5 30 .3\n",
    "nan": b"0 nan .5 .3 .3\n",
    "inf": b"0 inf .5 .3 .3\n",
    "class not whole": b"0.5 .5 .5 .3 .3\n",
    "class negative": b"-1 .5 .5 .3 .3\n",
    "class huge": b"1e308 .5 .5 .3 .3\n",
    "odd polygon": b"0 .1 .1 .2 .2 .3 .3 .4\n",
    "two kinds": b"0 .1 .1 .2 .2\n0 .1 .1 .2 .2 .3 .3\n",
    "binary": b"\xff\x00\x81\xfe",
    "utf-16": "0 .5 .5 .3 .3\n".encode("utf-16"),
    "zero byte": b"0 .5 .5 .3 .3\0\n",
    "commas": b"0, .5, .5, .3, .3\n",
    "header": b"class x y w h\n0 .5 .5 .3 .3\n",
    "class unknown": b"7 .5 .5 .3 .3\n",
}


@pytest.mark.parametrize("kind", LABELS)
def test_faulty_label_file(images, tmp_path, kind):
    data = load_data(str(image_set(tmp_path / "set")))
    file = data.root / "labels" / "train" / "3.txt"
    file.write_bytes(LABELS[kind])
    with pytest.raises(UserError) as caught:
        build_index(data, "train")
    assert f"{file}:1: " in str(caught.value) and "\n" not in str(caught.value)
    index = build_index(data, "train", allow_faults=True)
    assert len(index) == 7 and index.count["faulty_labels"] == 1 and index.count["corrupt"] == 1
    assert index.count["found"] == 7 and len(index.boxes) == 7
    assert str(data.root / "images" / "train" / "3.jpg") not in [index.path(i) for i in range(7)]


def test_pipes_do_not_block(images, tmp_path):
    data = load_data(str(image_set(tmp_path / "set")))
    label = data.root / "labels" / "train" / "3.txt"
    label.unlink()
    os.mkfifo(label)
    os.mkfifo(data.root / "images" / "train" / "pipe.jpg")
    index = build_index(data, "train", allow_faults=True)
    assert len(index) == 7 and index.count["corrupt"] == 2


def test_empty_label_files(images, tmp_path):
    data = load_data(str(image_set(tmp_path / "set")))
    for path in (data.root / "labels" / "train").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no labels for any image"):
        build_index(data, "train", need_labels=True)
    request = LoadRequest(data, "train", False, 64, 4, 32, Hyp(), workers=0, rect=True)
    loader = open_box_loader(request)  # validation without a single label
    assert sum(len(batch) for batch in loader.epoch(0)) == 8 and loader.class_counts.tolist() == [0, 0]


def test_random_label_lines():
    """Ten thousand lines made of plausible and implausible words: faults name their line, the rest is sound."""
    rng = np.random.default_rng(7)
    words = [
        "0",
        "1",
        "17",
        "-1",
        "0.5",
        ".25",
        "1.0",
        "1e-3",
        "1e400",
        "nan",
        "inf",
        "-0",
        "x",
        "",
        "\0",
        "٣",
        "0x1",
        "1_0",
        "1,5",
        "💥",
        "0.9999999",
        "1.0000001",
        "--1",
        "+.5",
        "9" * 40,
        "\ufeff0",
        "0\r1",
    ]
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
def test_bad_images(shared):
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
def test_bad_images_in_data_set_are_counted(shared, tmp_path):
    yaml = tmp_path / "data.yaml"
    write_yaml(
        yaml, {"path": str(shared / "badimages"), "val": ["exif", "pillow", "heif", "synthetic"], "names": ["a"]}
    )
    index = build_index(load_data(str(yaml)), "val")
    assert len(index) > 40 and index.count["corrupt"] >= 10 and index.count["missing"] == len(index)


def test_detect_skips_and_counts_bad_files(shared, network_file, tmp_path):
    detect = importlib.import_module("detect")
    report = detect.run(
        weights=[str(network_file)], source=str(shared / "badimages" / "synthetic"), imgsz=[64], project=str(tmp_path)
    )
    assert report.unreadable_files == 1 and len(list((tmp_path / "exp").iterdir())) == 6


SOURCES = rows("""
nothing.jpg | no such file
nothing*.jpg | no images or videos
a; b | no such file
http://[bad/a.jpg | not a valid address
rtsp://host:port/x | not a valid address
screen 1 2 | expected `screen [n]
text.mp4 | cannot be opened as a video
zero.gif | cannot be opened as a video
empty | no images or videos
blank.txt | empty list
gone.txt | none of 2 files
bad.streams | not a valid address
video.jpg | not an image
words.doc | not a supported image or video
""")


@pytest.mark.parametrize("source", SOURCES)
def test_bad_sources(network_file, tmp_path, source):
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    (tmp_path / "zero.gif").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("# nothing\n")
    (tmp_path / "gone.txt").write_text("a.jpg\nb.mp4\n")
    (tmp_path / "bad.streams").write_text("http://[bad/x\n")
    (tmp_path / "video.jpg").write_text("hello")
    (tmp_path / "words.doc").write_text("hello")
    place = tmp_path / source
    chosen = place if "/" not in source and len(source) < 255 and place.exists() else source
    module = importlib.import_module("detect")
    options = module.build_parser().parse_args(
        ["--weights", str(network_file), "--source", str(chosen), "--img", "64", "--project", str(tmp_path / "p")]
    )
    with pytest.raises(UserError) as caught:
        module.main(options)
    assert SOURCES[source][0] in str(caught.value) and "\n" not in one_line(str(caught.value))
    assert not list(tmp_path.glob("p/*"))


def test_view_without_display_is_refused(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sinks.sys, "platform", "linux")
    with pytest.raises(UserError, match="--view-img"):
        sinks.WindowSink()


def test_long_source_names_are_truncated(network_file, tmp_path):
    image_path = tmp_path / f"{'ü' * 124}.jpg"  # 252 bytes
    cv2.imencode(".jpg", np.zeros((40, 40, 3), np.uint8))[1].tofile(image_path)
    importlib.import_module("detect").run(
        weights=[str(network_file)], source=str(image_path), imgsz=[64], conf_thres=0.0, max_det=3, save_crop=True,
        save_txt=True, project=str(tmp_path / "прое кт"), name="имя/图",
    )  # fmt: skip
    folder = tmp_path / "прое кт" / "имя" / "图"
    assert len(list(folder.glob("*.jpg"))) == 1 and len(list((folder / "labels").iterdir())) == 1
    assert len(list((folder / "crops").rglob("*.jpg"))) == 3
