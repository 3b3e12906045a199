"""Sets of small images that come as arrays in few files: written as image files in a folder per class."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from utils.core.errors import UserError
from utils.core.log import progress

MAX_BYTES = 2**30  # that such a file may unpack to
_CIFAR_SIDE = 32
_NAMES = {"cifar10": "batches.meta.txt", "cifar100": "fine_label_names.txt"}  # of the classes, among the files

Arrays = Iterator[tuple[str, np.ndarray, np.ndarray]]  # split, images (n, h, w) grey or (n, h, w, 3) BGR, classes (n,)


def write_pictures(kind: str, folder: Path, names: Sequence[str]) -> None:
    """Write the arrays in `folder` as `<split>/<class>/<number>.png` there; UserError for what does not fit together.

    `names` are the folders of the classes by their numbers in the arrays.
    """
    import cv2  # here, so that --help of the programs that may come here answers at once

    if bad := [name for name in names if "/" in name or "\\" in name or name in ("", ".", "..")]:
        raise UserError(f"{bad[0]!r} cannot be the name of a folder; give `label_names:`")
    _compare(folder / _NAMES.get(kind, "no names"), names)
    for split, images, classes in KINDS[kind](folder):
        if len(images) != len(classes) or not len(images):
            raise UserError(f"{folder}: {len(images)} images and {len(classes)} classes of them for {split}")
        if int(classes.max()) >= len(names):
            raise UserError(f"{folder}: class {int(classes.max())} in {split}, but there are {len(names)} names")
        for name in names:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        places = zip(images, classes.tolist(), strict=True)
        for number, (image, label) in enumerate(progress(places, len(images), f"writing {split}", "image")):
            path = folder / split / names[label] / f"{number:05}.png"
            path.write_bytes(cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


def _compare(file: Path, names: Sequence[str]) -> None:
    """Raise UserError if a list of names among the files is another than the YAML's."""
    stated = file.read_text(encoding="utf-8").split() if file.is_file() else list(names)
    if stated != list(names):
        wrong = next(
            (pair for pair in zip(stated, names, strict=False) if pair[0] != pair[1]), (len(stated), len(names))
        )
        raise UserError(f"{file}: has other classes than the data YAML: {wrong[0]} and {wrong[1]}")


def _idx(folder: Path) -> Arrays:
    """Return MNIST's files: big-endian sizes, then bytes."""
    for split, stem in (("train", "train"), ("val", "t10k")):
        images = _idx_array(folder / f"{stem}-images-idx3-ubyte.gz", 3)
        yield split, images, _idx_array(folder / f"{stem}-labels-idx1-ubyte.gz", 1)


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    header = 4 + 4 * dimensions
    try:
        with gzip.open(path) as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if len(data) > MAX_BYTES or len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        raise UserError(f"{path}: no IDX file of bytes in {dimensions} dimensions")
    shape = tuple(int(side) for side in np.frombuffer(data, ">i4", dimensions, 4))
    if min(shape) < 0 or int(np.prod(shape, dtype=object)) != len(data) - header:
        raise UserError(f"{path}: {len(data) - header} bytes, but its header says {' x '.join(map(str, shape))}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _cifar(labels: int, files: dict[str, tuple[str, ...]]) -> Callable[[Path], Arrays]:
    """Return a reader of CIFAR's binary files: some bytes of labels, of which the last counts, and planes R, G, B."""
    size = labels + 3 * _CIFAR_SIDE**2

    def read(folder: Path) -> Arrays:
        for split, names in files.items():
            parts = []
            for path in (folder / name for name in names):
                if not path.is_file() or not 0 < path.stat().st_size <= MAX_BYTES or path.stat().st_size % size:
                    raise UserError(f"{path}: is not there, or no file of images of {size} bytes each")
                parts.append(np.fromfile(path, np.uint8).reshape(-1, size))
            rows = np.concatenate(parts)
            planes = rows[:, labels:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
            yield split, np.ascontiguousarray(planes[:, ::-1].transpose(0, 2, 3, 1)), rows[:, labels - 1]

    return read


KINDS: dict[str, Callable[[Path], Arrays]] = {
    "idx": _idx,
    "cifar10": _cifar(1, {"train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "val": ("test_batch.bin",)}),
    "cifar100": _cifar(2, {"train": ("train.bin",), "val": ("test.bin",)}),
}
