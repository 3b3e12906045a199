"""Conversion of image sets distributed as arrays (MNIST's IDX, CIFAR's binaries) to image files per class."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core.errors import UserError
from utils.core.log import progress

if TYPE_CHECKING:
    import numpy as np

MAX_BYTES = 2**30  # decompressed, per file
_CIFAR_SIDE = 32
_CLASS_LISTS = {"cifar10": "batches.meta.txt", "cifar100": "fine_label_names.txt"}  # among the downloaded files

# split, images (n, h, w) grey or (n, h, w, 3) BGR, classes (n,)
Arrays = Iterator[tuple[str, "np.ndarray", "np.ndarray"]]


def write_images(array_format: str, folder: Path, class_folders: Sequence[str]) -> None:
    """Write the arrays in `folder` as `<split>/<class>/<number>.png` there.

    Args:
        array_format: A key of ARRAY_FORMATS.
        folder: Folder with the array files.
        class_folders: Folder name of each class, by its number in the arrays.

    Raises:
        UserError: Files are missing or invalid, or the classes differ from those of the arrays.
    """
    import cv2  # not at the top: programs parse their options before OpenCV is needed

    if bad := [name for name in class_folders if "/" in name or "\\" in name or name in ("", ".", "..")]:
        raise UserError(f"class name {bad[0]!r} cannot be a folder name; set `label_names:` in the data YAML")
    _check_class_list(folder / _CLASS_LISTS.get(array_format, "no list"), class_folders)
    for split, images, classes in ARRAY_FORMATS[array_format](folder):
        if len(images) != len(classes) or not len(images):
            raise UserError(f"{folder}: {len(images)} images but {len(classes)} labels in split {split}")
        if int(classes.max()) >= len(class_folders):
            raise UserError(
                f"{folder}: class {int(classes.max())} in split {split}, but the data YAML has "
                f"{len(class_folders)} names"
            )
        for name in class_folders:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        pairs = zip(images, classes.tolist(), strict=True)
        for number, (image, label) in enumerate(progress(pairs, len(images), f"writing {split}", "image")):
            path = folder / split / class_folders[label] / f"{number:05}.png"
            path.write_bytes(cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


def _check_class_list(file: Path, names: Sequence[str]) -> None:
    """Compare the class list that comes with the arrays, if there is one, with the data YAML's."""
    listed = file.read_text(encoding="utf-8").split() if file.is_file() else list(names)
    if listed != list(names):
        differing = (pair for pair in zip(listed, names, strict=False) if pair[0] != pair[1])
        theirs, ours = next(differing, (f"{len(listed)} classes", f"{len(names)} classes"))
        raise UserError(f"{file}: lists other classes than the data YAML: {theirs}, expected {ours}")


def _read_idx(folder: Path) -> Arrays:
    """Read MNIST's files: big-endian sizes, then bytes."""
    for split, stem in (("train", "train"), ("val", "t10k")):
        images = _read_idx_array(folder / f"{stem}-images-idx3-ubyte.gz", 3)
        yield split, images, _read_idx_array(folder / f"{stem}-labels-idx1-ubyte.gz", 1)


def _read_idx_array(path: Path, dimensions: int) -> np.ndarray:
    import numpy as np  # not at the top: --help does not need it

    header = 4 + 4 * dimensions
    try:
        with gzip.open(path) as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if len(data) > MAX_BYTES or len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        raise UserError(f"{path}: not an IDX file of bytes in {dimensions} dimensions")
    shape = tuple(int(side) for side in np.frombuffer(data, ">i4", dimensions, 4))
    if min(shape) < 0 or int(np.prod(shape, dtype=object)) != len(data) - header:
        raise UserError(f"{path}: the header says {' x '.join(map(str, shape))}, got {len(data) - header} bytes")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _cifar_reader(label_bytes: int, files: dict[str, tuple[str, ...]]) -> Callable[[Path], Arrays]:
    """Create a reader of CIFAR's binary files: label bytes, of which the last counts, then planes R, G, B."""
    row_bytes = label_bytes + 3 * _CIFAR_SIDE**2

    def read(folder: Path) -> Arrays:
        import numpy as np  # not at the top: --help does not need it

        for split, names in files.items():
            parts = []
            for path in (folder / name for name in names):
                if not path.is_file() or not 0 < path.stat().st_size <= MAX_BYTES or path.stat().st_size % row_bytes:
                    raise UserError(f"{path}: missing, or not a file of images of {row_bytes} bytes each")
                parts.append(np.fromfile(path, np.uint8).reshape(-1, row_bytes))
            rows = np.concatenate(parts)
            planes = rows[:, label_bytes:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
            yield split, np.ascontiguousarray(planes[:, ::-1].transpose(0, 2, 3, 1)), rows[:, label_bytes - 1]

    return read


ARRAY_FORMATS: dict[str, Callable[[Path], Arrays]] = {
    "idx": _read_idx,
    "cifar10": _cifar_reader(
        1, {"train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "val": ("test_batch.bin",)}
    ),
    "cifar100": _cifar_reader(2, {"train": ("train.bin",), "val": ("test.bin",)}),
}
