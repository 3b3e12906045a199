"""Small data sets in folders, and the same samples in tar shards."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from utils.core.yaml_file import write_yaml

NAMES = ["cat", "dog"]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], **options: object) -> Path:
    """Write files to a tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def encoded(pixels: np.ndarray, suffix: str) -> bytes:
    """Encode an image."""
    return cv2.imencode(suffix, pixels)[1].tobytes()


def write_folders(root: Path, count: int = 12) -> Path:
    """Write images with boxes (one image has no labels), polygons, masks and classes, and a YAML for each task."""
    rng = np.random.default_rng(0)
    for number in range(count):
        name, hw = f"{number:04d}", (40 + 8 * (number % 3), 64)
        mask = np.zeros(hw, np.uint8)
        mask[10:30, 10:40] = 1
        image = rng.integers(0, 255, (*hw, 3), np.uint8)
        kind = number % 2
        files = {
            f"images/train/{name}.jpg": encoded(image, ".jpg"),
            f"labels/train/{name}.txt": f"{kind} 0.5 0.5 0.25 0.5\n0 0.25 0.25 0.125 0.125\n".encode(),
            f"outlined/images/train/{name}.jpg": encoded(image, ".jpg"),
            f"outlined/labels/train/{name}.txt": f"{kind} 0.1 0.1 0.6 0.1 0.6 0.7 0.1 0.7\n".encode(),
            f"masks/train/{name}.png": encoded(mask, ".png"),
            f"classes/train/{NAMES[kind]}/{name}.jpg": encoded(image, ".jpg"),
        }
        if number == 3:
            del files[f"labels/train/{name}.txt"]
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
    semantic = {"train": "images/train", "val": "images/train", "names": ["ground", "thing"]}
    yaml = {"path": str(root), "train": "images/train", "val": "images/train", "names": NAMES}
    write_yaml(root / "detect.yaml", yaml)
    write_yaml(root / "segment.yaml", yaml | {"train": "outlined/images/train", "val": "outlined/images/train"})
    write_yaml(root / "joint.yaml", yaml | {"semantic": semantic})
    write_yaml(root / "semantic.yaml", {"path": str(root), "semantic": semantic})
    return root


def pack(root: Path, out: Path, images: str = "images/train", labels: str = "labels/train", shards: int = 3) -> Path:
    """Pack images with labels and masks into shards, in order; return the folder."""
    files = sorted((root / images).rglob("*.jpg"))
    size = -(-len(files) // shards)
    for number in range(shards):
        members = []
        for file in files[number * size : (number + 1) * size]:
            members.append((file.name, file.read_bytes()))
            for path, suffix in ((root / labels, ".txt"), (root / "masks/train", ".mask.png")):
                label = path / (file.stem + (".txt" if suffix == ".txt" else ".png"))
                if label.is_file():
                    members.append((file.stem + suffix, label.read_bytes()))
        write_tar(out / f"train-{number:03d}.tar", members)
    return out
