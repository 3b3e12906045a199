"""Sets of small images that are fetched as arrays become files in a folder per class, or one clear error."""

import gzip
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers_server import everything, tar_of

from utils.core.data_config import load_data
from utils.core.data_paths import find_data
from utils.core.errors import UserError
from utils.core.files import ROOT
from utils.core.log import LOGGER
from utils.core.yaml_file import read_yaml, write_yaml
from utils.datasets.fetch import array_files
from utils.datasets.fetch.array_files import write_images
from utils.datasets.fetch.dataset_download import parse_download, resolve_dataset
from utils.datasets.labels.label_scan import build_index


def idx(values):
    """Return an IDX file of bytes, as MNIST has them."""
    return gzip.compress(struct.pack(f">HBB{values.ndim}i", 0, 8, values.ndim, *values.shape) + values.tobytes())


CIFAR10_FILES = (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin")


def digits(count, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10


def idx_files(train=20, val=10):
    found = {}
    for stem, count in (("train", train), ("t10k", val)):
        images, labels = digits(count, count)
        found |= {f"{stem}-images-idx3-ubyte.gz": idx(images), f"{stem}-labels-idx1-ubyte.gz": idx(labels)}
    return found


def cifar_rows(count, label_bytes, classes, seed):
    rows = np.random.default_rng(seed).integers(0, 256, (count, label_bytes + 3072), dtype=np.uint8)
    rows[:, label_bytes - 1] = np.arange(count) % classes
    return rows


def ours(server, folder, name, files):
    """Return a copy of our data YAML that fetches `files` from the test's server."""
    values = read_yaml(find_data(name))
    server.files |= files
    for entry in values["download"]:
        entry["url"] = server.url(entry["url"].rsplit("/", 1)[-1])
        del entry["md5"]
    folder.mkdir(exist_ok=True)
    write_yaml(folder / "set.yaml", values | {"path": "set"})
    return str(folder / "set.yaml")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_conversion(name, server, tmp_path):
    data = resolve_dataset(ours(server, tmp_path, name, idx_files()), download=True)
    found = everything(tmp_path / "set")
    assert len(found) == 30 and not [path for path in found if path.endswith(".gz")]
    images, labels = digits(20, 20)
    for number in (0, 13):
        path = f"train/{data.names[labels[number]]}/{number:05}.png"
        drawn = cv2.imdecode(np.frombuffer(found[path], np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(drawn, images[number])
    index = build_index(data, "val")
    assert index.class_counts(10).tolist() == [1] * 10
    resolve_dataset(str(tmp_path / "set.yaml"), download=True)
    assert len(server.asked) == 4  # nothing is fetched twice


@pytest.mark.parametrize(("name", "label_bytes", "files"), [
    ("cifar10", 1, list(CIFAR10_FILES)),
    ("cifar100", 2, ["train.bin", "test.bin"]),
])  # fmt: skip
def test_cifar_conversion(name, label_bytes, files, server, tmp_path):
    classes = len(load_data(name).names)
    rows = {file: cifar_rows(classes, label_bytes, classes, seed) for seed, file in enumerate(files)}
    archive = tar_of({f"cifar/{file}": content.tobytes() for file, content in rows.items()})
    (entry,) = read_yaml(find_data(name))["download"]
    data = resolve_dataset(ours(server, tmp_path, name, {entry["url"].rsplit("/", 1)[-1]: archive}), download=True)
    found = everything(tmp_path / "set")
    assert len(found) == classes * len(files) and all(path.endswith(".png") for path in found)
    last = rows[files[-2]][-1]  # of the training images
    path = f"train/{data.names[classes - 1]}/{classes * (len(files) - 1) - 1:05}.png"
    drawn = cv2.imdecode(np.frombuffer(found[path], np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(drawn[..., ::-1], last[label_bytes:].reshape(3, 32, 32).transpose(1, 2, 0))


def test_interrupted_generation_restarts(server, tmp_path, monkeypatch):
    path = ours(server, tmp_path, "mnist", idx_files())
    encode, count = cv2.imencode, []

    def stop(*given):
        count.append(1)
        if len(count) == 7:
            raise KeyboardInterrupt
        return encode(*given)

    monkeypatch.setattr(cv2, "imencode", stop)
    with pytest.raises(KeyboardInterrupt):
        resolve_dataset(path, download=True)
    assert not (tmp_path / "set").exists()
    monkeypatch.setattr(cv2, "imencode", encode)
    resolve_dataset(path, download=True)
    assert len(everything(tmp_path / "set")) == 30 and len(server.asked) == 4
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["set", "set.yaml"]


def damaged(**changed):
    return {name: content for name, content in (idx_files() | changed).items() if content is not None}


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
LIAR = gzip.compress(struct.pack(">HBB3i", 0, 8, 3, 2**30, 2**30, 2**30) + b"x")
FAULTS = {
    "no gzip": (damaged(**{IMAGES: b"<html>"}), "cannot be read"),
    "cut short": (damaged(**{IMAGES: idx(digits(20, 1)[0])[:-900]}), "cannot be read"),
    "missing": (damaged(**{LABELS: None}), "cannot be read"),
    "another type": (damaged(**{IMAGES: gzip.compress(b"\0\0\x0d\x03" + bytes(12))}), "not an IDX file"),
    "labels for images": (damaged(**{IMAGES: idx(digits(20, 1)[1])}), "not an IDX file"),
    "a header that lies": (damaged(**{IMAGES: LIAR}), "the header says"),
    "fewer labels": (damaged(**{LABELS: idx(digits(19, 1)[1])}), "20 images but 19 labels"),
    "a class too many": (
        damaged(**{LABELS: idx(np.full(20, 10, np.uint8))}),
        "class 10 in split train, but the data YAML has 10",
    ),
    "no images": (damaged(**{IMAGES: idx(digits(0, 1)[0]), LABELS: idx(digits(0, 1)[1])}), "0 images"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_invalid_arrays(what, tmp_path):
    files, says = FAULTS[what]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        write_images("idx", tmp_path, [str(number) for number in range(10)])


def test_decompression_bomb_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "MAX_BYTES", 1000)
    for name, content in idx_files().items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="not an IDX file"):
        write_images("idx", tmp_path, list("0123456789"))


@pytest.mark.parametrize("content", [None, b"", b"x" * 3074, b"x" * 3073 + b"y"])
def test_cifar_wrong_size(content, tmp_path):
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(bytes(3074 * 2))
    if content is None:
        (tmp_path / "test.bin").unlink()
    else:
        (tmp_path / "test.bin").write_bytes(content if len(content) != 3074 else content[:-1])
    with pytest.raises(UserError, match=r"test\.bin: missing, or not a file"):
        write_images("cifar100", tmp_path, [str(number) for number in range(100)])


def test_class_order_mismatch(tmp_path):
    for name in CIFAR10_FILES:
        (tmp_path / name).write_bytes(cifar_rows(10, 1, 10, 0).tobytes())
    names = list(load_data("cifar10").names)
    (tmp_path / "batches.meta.txt").write_text("\n".join([*names, ""]))
    write_images("cifar10", tmp_path, names)
    with pytest.raises(UserError, match=r"batches\.meta\.txt: lists other classes .*: airplane, expected truck"):
        write_images("cifar10", tmp_path, names[::-1])
    with pytest.raises(UserError, match="other classes than the data YAML: 10 classes, expected 9"):
        write_images("cifar10", tmp_path, names[:9])


@pytest.mark.parametrize("name", ["a/b", "..", "a\\b", ""])
def test_class_names_cannot_escape_the_folder(name, tmp_path):
    with pytest.raises(UserError, match="cannot be a folder name"):
        write_images("idx", tmp_path, [name])


def test_unknown_array_kind(tmp_path):
    values = {"train": "x", "val": "x", "names": ["a"], "download": [{"url": "https://a.org/b.gz", "pictures": "npz"}]}
    write_yaml(tmp_path / "a.yaml", values)
    with pytest.raises(UserError, match="`pictures: npz` is not a known array format; choose idx, cifar10, cifar100"):
        parse_download(load_data(str(tmp_path / "a.yaml")))


@pytest.mark.parametrize(("text", "file"), [
    ("mnist", "mnist.yaml"), ("imagenet", "ImageNet.yaml"), ("voc.yaml", "VOC.yaml"), ("cifar10", "cifar10.yaml"),
    ("data/visdrone.yaml", "VisDrone.yaml"),
])  # fmt: skip
def test_find_data_by_name(text, file):
    assert find_data(text).name == file


def test_folder_with_the_name_of_a_shipped_yaml(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(LOGGER, "warning", warnings.append)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco128").mkdir()
    for text in ("coco128/", "./coco128", str(tmp_path / "coco128")):
        assert find_data(text) == Path(text) and not warnings
    file = ROOT / "data" / "coco128.yaml"
    assert find_data("coco128") == file
    assert warnings == [f"--data coco128: using {file}, not the folder coco128; write coco128/ for the folder"]
