"""Small data sets with semantic maps for tests."""

from pathlib import Path

import cv2
import numpy as np

from utils.core.data_config import DataConfig, SemanticConfig
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest, SemanticRequest

COLOURS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)  # BGR of the classes
SIZES = ((40, 64), (64, 48), (48, 48))


def scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image of blocks coloured by class, and its semantic map."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (4, 4), dtype=np.uint8)
    classes = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    return COLOURS[classes], classes


def write_pair(root: Path, name: str, image: np.ndarray, mask: np.ndarray, folders: tuple[str, str]) -> None:
    """Write an image and its mask below two folders."""
    for folder, pixels in zip(folders, (image, mask), strict=True):
        path = root / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels)


def pixel_set(root: Path, count: int = 9, sizes=SIZES, boxes: bool = False, **options) -> DataConfig:
    """Make a set of `count` images with masks, on request with a box in each as well."""
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        write_pair(root, f"{number:02d}", *scene(number, height, width), ("images", "masks"))
        if boxes:
            (root / "labels").mkdir(exist_ok=True)
            (root / "labels" / f"{number:02d}.txt").write_text(f"{number % 2} .5 .5 .5 .5\n")
    places = {"train": (root / "images",), "val": (root / "images",)}
    semantic = SemanticConfig(("a", "b", "c"), places, options=options, root=root)
    names = ("x", "y") if boxes else ()
    return DataConfig(root / "d.yaml", root, names, places if boxes else {}, semantic=semantic)


def request(data: DataConfig, **changes) -> LoadRequest:
    """Return a small request; keys of SemanticRequest are put where they belong."""
    wanted = {key: changes.pop(key) for key in ("mode", "base_size", "fraction", "mosaic") if key in changes}
    options = {"training": True, "image_size": 64, "batch_size": 4, "stride": 32, "hyp": Hyp(), "workers": 0, **changes}
    split = "train" if options["training"] else "val"
    return LoadRequest(data, split, semantic=SemanticRequest(**wanted), **options)
