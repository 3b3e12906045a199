"""Cost of one training sample, compared with a straightforward implementation of the same augmentation.

python benchmarks/data_sample.py --images ../datasets/coco128/images/train2017
python benchmarks/data_sample.py --images FOLDER --size 320 --epochs 9 --write

The straightforward pipeline decodes four images per sample, fills a canvas of twice the size, warps it once, applies
three lookup tables and flips, and copies the result to channels-first. Both run in one thread, in alternating epochs.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch

from benchmarks.machine import command_arguments, new_parser, publish, report, spread
from utils.core.cli import run_script
from utils.core.data_config import DataConfig
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.datasets.labels.label_index import Index
from utils.datasets.pipeline import box_samples as dataset
from utils.datasets.pipeline import image_cache as cache
from utils.datasets.pipeline import mosaic
from utils.datasets.pipeline.box_samples import open_box_loader
from utils.datasets.pipeline.loader import BatchLoader

NAME = "data_sample"
GREY = 114


class Straightforward:
    """Straightforward pipeline: all steps of a four-image mosaic without polygons, one after the other."""

    def __init__(self, index: Index, hyp: Hyp, size: int) -> None:
        self.index, self.hyp, self.size = index, hyp, size
        self.rng = np.random.default_rng(0)

    def batch(self, numbers: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Build a batch: (B, 3, H, W) images and (N, 6) boxes."""
        made = [self.sample(int(number)) for number in numbers]
        boxes = []
        for i, (_, labels) in enumerate(made):
            boxes.append(np.concatenate((np.full((len(labels), 1), i), labels), 1))
        return torch.stack([image for image, _ in made]), torch.from_numpy(np.concatenate(boxes))

    def sample(self, number: int) -> tuple[torch.Tensor, np.ndarray]:
        """Build one (3, H, W) image and its (n, 5) labels."""
        canvas, labels = self.mosaic(number)
        image, labels = self.perspective(canvas, labels)
        size = self.size
        labels[:, 1:] = labels[:, 1:].clip(0, size - 1e-3)
        low, high = labels[:, 1:3].copy(), labels[:, 3:5].copy()
        labels[:, 1:3], labels[:, 3:5] = (low + high) / 2 / size, (high - low) / size
        image = self.colour(image)
        if self.rng.random() < self.hyp.flipud:
            image = np.flipud(image)
            labels[:, 2] = 1 - labels[:, 2]
        if self.rng.random() < self.hyp.fliplr:
            image = np.fliplr(image)
            labels[:, 1] = 1 - labels[:, 1]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[::-1])), labels

    def mosaic(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Build the mosaic canvas of twice the size and its labels (class and corners in pixels)."""
        size = self.size
        y, x = (int(self.rng.uniform(size / 2, 3 * size / 2)) for _ in range(2))
        numbers = [number, *self.rng.integers(0, len(self.index), 3)]
        self.rng.shuffle(numbers)
        canvas = np.full((2 * size, 2 * size, 3), GREY, np.uint8)
        labels = []
        for corner, one in enumerate(numbers):
            image: Any = cv2.imread(self.index.path(int(one)))
            scale = size / max(image.shape[:2])
            if scale != 1:
                image = cv2.resize(image, (int(image.shape[1] * scale), int(image.shape[0] * scale)))
            height, width = image.shape[:2]
            left, top = x - (0 if corner % 2 else width), y - (0 if corner >= 2 else height)
            x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, 2 * size), min(top + height, 2 * size)
            canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
            own = self.index.labels(int(one)).astype(np.float64)
            centre, half = own[:, 1:3] * (width, height) + (left, top), own[:, 3:5] * (width, height) / 2
            labels.append(np.concatenate((own[:, :1], centre - half, centre + half), 1))
        joined = np.concatenate(labels)
        joined[:, 1:] = joined[:, 1:].clip(0, 2 * size)
        return canvas, joined

    def perspective(self, canvas: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Warp the centre of the canvas and its labels."""
        hyp, size, draw = self.hyp, self.size, self.rng.uniform
        centre, rotation, shear, translate = np.eye(3), np.eye(3), np.eye(3), np.eye(3)
        centre[:2, 2] = -canvas.shape[1] / 2, -canvas.shape[0] / 2
        scale = draw(1 - hyp.scale, 1 + hyp.scale)
        rotation[:2] = cv2.getRotationMatrix2D((0, 0), draw(-hyp.degrees, hyp.degrees), scale)
        shear[0, 1] = math.tan(math.radians(draw(-hyp.shear, hyp.shear)))
        shear[1, 0] = math.tan(math.radians(draw(-hyp.shear, hyp.shear)))
        translate[:2, 2] = [draw(0.5 - hyp.translate, 0.5 + hyp.translate) * size for _ in range(2)]
        matrix = translate @ shear @ rotation @ centre
        image = cv2.warpAffine(canvas, matrix[:2], (size, size), borderValue=(GREY, GREY, GREY))
        corners = np.ones((len(labels) * 4, 3))
        corners[:, :2] = labels[:, [1, 2, 3, 4, 1, 4, 3, 2]].reshape(-1, 2)
        moved = (corners @ matrix.T)[:, :2].reshape(-1, 4, 2)
        new = np.concatenate((moved.min(1), moved.max(1)), 1).clip(0, size)
        old_wh, new_wh = (labels[:, 3:5] - labels[:, 1:3]) * scale, new[:, 2:] - new[:, :2]
        aspect = np.maximum(new_wh[:, 0] / (new_wh[:, 1] + 1e-16), new_wh[:, 1] / (new_wh[:, 0] + 1e-16))
        keep = (new_wh > 2).all(1) & (new_wh.prod(1) / (old_wh.prod(1) + 1e-16) > 0.1) & (aspect < 100)
        return image, np.concatenate((labels[:, :1], new), 1)[keep]

    def colour(self, image: np.ndarray) -> np.ndarray:
        """Change hue, saturation and value of an image."""
        gains = self.rng.uniform(-1, 1, 3) * (self.hyp.hsv_h, self.hyp.hsv_s, self.hyp.hsv_v) + 1
        levels = np.arange(256)
        tables = [(levels * gains[0]) % 180, *(np.clip(levels * gain, 0, 255) for gain in gains[1:])]
        channels = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
        changed = [cv2.LUT(c, t.astype(np.uint8)) for c, t in zip(channels, tables, strict=True)]
        return cv2.cvtColor(cv2.merge(changed), cv2.COLOR_HSV2BGR)


def cpu_seconds(action: Callable[[], object]) -> float:
    """Measure the CPU time of a call."""
    start = time.process_time()
    action()
    return time.process_time() - start


class Parts:
    """Profiler that replaces functions by timed ones and adds up their CPU time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, module: ModuleType, name: str, label: str) -> Iterator[None]:
        """Time `module.name` under `label` within the block."""
        original = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return original(*arguments, **options)
            finally:
                self.seconds[label] = self.seconds.get(label, 0.0) + time.process_time() - start

        setattr(module, name, call)
        try:
            yield
        finally:
            setattr(module, name, original)


def one_epoch(loader: BatchLoader, epoch: int) -> None:
    """Load all batches of an epoch with an empty cache."""
    loader.forget()
    for _ in loader.epoch(epoch):
        pass


def shares(loader: BatchLoader, epochs: int) -> dict[str, float]:
    """Measure the fraction of CPU time of each part of our samples."""
    parts = Parts()
    with (
        parts.timed(cache, "read_image", "decode"),
        parts.timed(cache, "resize_longest", "resize"),
        parts.timed(mosaic, "warp_into", "warp"),
        parts.timed(mosaic, "move_labels", "labels"),
        parts.timed(dataset, "write_rgb", "colour"),
    ):
        total = sum(cpu_seconds(partial(one_epoch, loader, 1000 + epoch)) for epoch in range(epochs))
    found = {label: seconds / total for label, seconds in parts.seconds.items()}
    return found | {"rest": 1 - sum(found.values())}


def measure(options: argparse.Namespace) -> tuple[str, float]:
    """Measure one size; return its table row and our speedup."""
    folder = options.images.resolve()
    data = DataConfig(folder, folder, tuple(map(str, range(1000))), {"train": (folder,)})
    hyp = Hyp()
    request = LoadRequest(data, "train", True, options.size, options.batch_size, 32, hyp, workers=0)
    ours = open_box_loader(request, place=(0, 1))
    theirs = Straightforward(ours.index, hyp, options.size)
    count = ours.num_images

    def their_epoch() -> None:
        order = theirs.rng.permutation(count)
        for start in range(0, count, options.batch_size):
            theirs.batch(order[start : start + options.batch_size])

    one_epoch(ours, 0)
    their_epoch()
    before, pairs = ours.decoded, []
    for epoch in range(options.epochs):
        pairs.append((cpu_seconds(partial(one_epoch, ours, 1 + epoch)), cpu_seconds(their_epoch)))
    decodes = (ours.decoded - before) / count / options.epochs
    mine, other = (1000 * statistics.median(pair[i] for pair in pairs) / count for i in (0, 1))
    ratio = spread([pair[0] / pair[1] for pair in pairs])
    part = ", ".join(f"{label} {share:.0%}" for label, share in shares(ours, 3).items())
    row = f"| {options.size} | {mine:.2f} | {other:.2f} | **{ratio.text(3)}** | {decodes:.2f} | {part} |"
    return row, ratio.median


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--images", type=Path, required=True, help="folder of images with YOLO labels")
    parser.add_argument("--size", type=int, nargs="+", default=[640, 320], help="network input sizes")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=7, help="paired epochs, whose median is reported")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[int, float]:
    """Run the benchmark and report it; return the speedup for each size."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    table, medians = [], {}
    for size in options.size:
        row, medians[size] = measure(argparse.Namespace(**{**vars(options), "size": size}))
        table.append(row)
    body = [
        "Mosaic, random perspective, HSV and flips with the defaults of hyp.scratch-low; no decoded image is kept from",
        "one epoch to the next. Milliseconds of CPU time; medians of alternating epochs.",
        "",
        "| size | ours | straightforward | ratio | images decoded per sample | parts of ours |",
        "|---|---|---|---|---|---|",
        *table,
    ]
    publish(report("One training sample", NAME, line, body, None), NAME, options.write)
    return medians


if __name__ == "__main__":
    run_script(main)
