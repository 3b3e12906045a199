"""Faults to plant into a YOLO data set, each with the kinds of findings that must report it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from utils.core.yaml_file import write_yaml

NAMES = ("cat", "dog", "cow")


def scene(seed: int, size_hw: tuple[int, int] = (96, 128)) -> np.ndarray:
    """Return an image of coloured clouds that differs for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC)


def valid_set(root: Path, train: int = 32, val: int = 6) -> Path:
    """Write labelled clouds, two boxes each; return the data YAML."""
    for split, count, first in (("train", train, 0), ("val", val, 1000)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(root / "images" / split / f"{i:03}.jpg"), scene(first + i))
            text = f"{i % 2} 0.4 0.4 0.3 0.3\n{(i + 1) % 2} 0.7 0.6 0.3 0.4\n"
            (root / "labels" / split / f"{i:03}.txt").write_text(text)
    write_yaml(root / "data.yaml", {"train": "images/train", "val": "images/val", "names": list(NAMES)})
    return root / "data.yaml"


def _add_line(line: str) -> Callable[[Path, Path], None]:
    def plant(image: Path, label: Path) -> None:
        label.write_text(label.read_text().rstrip("\n") + f"\n{line}\n")

    return plant


def _repeat(image: Path, label: Path) -> None:
    label.write_text(label.read_text() + label.read_text().splitlines()[0] + "\n")


def _duplicate_box(image: Path, label: Path) -> None:
    number, x, y, w, h = label.read_text().split()[:5]
    label.write_text(label.read_text() + f"{number} {float(x) + 0.01 * float(w):.5f} {y} {w} {h}\n")


def _cut_with_end(image: Path, label: Path) -> None:
    data = image.read_bytes()
    image.write_bytes(data[: len(data) // 2] + b"\xff\xd9")


def _turn(image: Path, label: Path) -> None:
    with Image.open(image) as pil_image:
        exif = Image.Exif()
        exif[274] = 6
        pil_image.save(image, "JPEG", quality=95, exif=exif)


def _png_called_jpg(image: Path, label: Path) -> None:
    _, data = cv2.imencode(".png", cv2.imread(str(image)))
    image.write_bytes(data.tobytes())


def _copy(image: Path, label: Path, to: str, name: str) -> tuple[Path, Path]:
    """Copy an image and its labels; return the paths of the copies."""
    other = image.parents[1] / to / f"{name}{image.suffix}"
    other_label = label.parents[1] / to / f"{name}.txt"
    shutil.copy(image, other)
    shutil.copy(label, other_label)
    return other, other_label


def _conflicting_copy(image: Path, label: Path) -> None:
    _copy(image, label, image.parent.name, "copy_with_other_labels")[1].write_text("0 0.1 0.1 0.1 0.1\n")


def _paler_copy(to: str) -> Callable[[Path, Path], None]:
    def plant(image: Path, label: Path) -> None:
        other, _ = _copy(image, label, to, f"paler_in_{to}")
        pixels = cv2.imread(str(other))
        smaller = cv2.resize(pixels, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(other), np.clip(smaller * 0.9 + 12, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 80])

    return plant


PLANTS: dict[str, tuple[set[str], Callable[[Path, Path], object]]] = {
    "word among numbers": ({"label-fault"}, _add_line("0 0.5 left 0.2 0.2")),
    "four fields": ({"label-fault"}, _add_line("0 0.5 0.5 0.2")),
    "a negative centre": ({"label-fault"}, _add_line("0 -0.1 0.5 0.2 0.2")),
    "pixels instead of fractions": ({"label-fault"}, _add_line("0 64 48 20 20")),
    "fractional class": ({"label-fault"}, _add_line("0.5 0.5 0.5 0.2 0.2")),
    "binary label file": ({"label-fault"}, lambda image, label: label.write_bytes(b"\xff\xfe\x00\x81")),
    "unknown class": ({"unknown-class"}, _add_line("999 0.31 0.52 0.2 0.2")),
    "no width": ({"degenerate"}, _add_line("0 0.5 0.5 0 0.2")),
    "repeated line": ({"duplicate-label"}, _repeat),
    "two boxes on one object": ({"duplicate-box"}, _duplicate_box),
    "box beyond the image": ({"over-edge"}, _add_line("0 0.97 0.52 0.2 0.21")),
    "extreme aspect ratio": ({"odd-shape"}, _add_line("0 0.5 0.3 0.98 0.011")),
    "tiny box": ({"tiny"}, _add_line("0 0.5 0.5 0.002 0.002")),
    "an empty file": ({"unreadable"}, lambda image, label: image.write_bytes(b"")),
    "HTML instead of an image": (
        {"unreadable"},
        lambda image, label: image.write_text("<!doctype html><title>404</title>"),
    ),
    "truncated image": ({"truncated"}, lambda image, label: image.write_bytes(image.read_bytes()[:-2000])),
    "truncated image with end marker": ({"flat-end"}, _cut_with_end),
    "EXIF rotation": ({"turned"}, _turn),
    "eight pixels": ({"too-small"}, lambda image, label: cv2.imwrite(str(image), scene(7, (8, 8)))),
    "uniform grey": ({"blank"}, lambda image, label: cv2.imwrite(str(image), np.full((96, 128, 3), 90, np.uint8))),
    "PNG with suffix jpg": ({"suffix"}, _png_called_jpg),
    "copy": ({"duplicate-image"}, lambda image, label: _copy(image, label, image.parent.name, "copy")),
    "copy with other labels": ({"duplicate-image", "conflict"}, _conflicting_copy),
    "paler, smaller copy": ({"near-duplicate"}, _paler_copy("train")),
    "training image in val": ({"leak"}, lambda image, label: _copy(image, label, "val", "leaked")),
    "paler copy in val": ({"near-leak"}, _paler_copy("val")),
    "labels without an image": ({"orphan-label"}, lambda image, label: shutil.copy(label, label.with_name("lost.txt"))),
    "an image without labels": ({"missing-label"}, lambda image, label: label.unlink()),
}
