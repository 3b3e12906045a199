"""From a place in the epoch to a finished sample."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from utils.core.contracts import Geometry
from utils.core.hyp import Hyp
from utils.core.seed import generator
from utils.datasets.labels.label_index import Index
from utils.datasets.pipeline.augment import (
    MIXUP_BETA,
    copy_paste,
    mixup,
    optional_transforms,
    rarely_changed,
    write_rgb,
)
from utils.datasets.pipeline.batch_plan import STREAM_SAMPLE, Item
from utils.datasets.pipeline.image_cache import Pictures
from utils.datasets.pipeline.mosaic import Tile, View, compose, mosaic4, mosaic9
from utils.datasets.pipeline.sample import Sample
from utils.ops.letterbox import letterbox, letterbox_geometry
from utils.ops.transform import Warp, sample_warp


@dataclass
class SampleMaker:
    """Makes samples of one split. Every random number comes from (seed, epoch, position)."""

    index: Index
    pictures: Pictures
    hyp: Hyp
    size: int
    seed: int
    mosaics: bool = True  # never with rectangular batches
    shuffled: bool = True  # a mosaic's tiles; else the image itself comes first (behaviour.md 4.6)
    faults: list[str] = field(default_factory=list)  # images that could not be read since the last look

    def train(self, item: Item, epoch: int, shape_hw: tuple[int, int], out_rgb: np.ndarray) -> Sample:
        """Write the augmented image into `out_rgb` (H, W, 3) and return its labels (boxes in pixels)."""
        hyp, rng = self.hyp, generator(self.seed, epoch, item.position, STREAM_SAMPLE)
        flips = bool(rng.random() < hyp.fliplr), bool(rng.random() < hyp.flipud)
        gains = 1 + rng.uniform(-1, 1, 3) * (hyp.hsv_h, hyp.hsv_s, hyp.hsv_v)
        if self.mosaics and rng.random() < hyp.mosaic:
            sample = self._mosaic(item.index, item.window, rng, flips)
            if rng.random() < hyp.mixup:
                other = self._mosaic(int(rng.choice(item.window)), item.window, rng, flips)
                sample = mixup(sample, other, rng.beta(MIXUP_BETA, MIXUP_BETA))
        else:
            sample = self._single(item.index, shape_hw, rng, flips)
        sample.image = rarely_changed(sample.image, optional_transforms(), rng)
        colours = hyp.hsv_h or hyp.hsv_s or hyp.hsv_v
        write_rgb(sample.image, out_rgb, gains if colours else None)
        return sample

    def evaluate(self, item: Item, shape_hw: tuple[int, int], out_rgb: np.ndarray) -> tuple[Sample, Geometry]:
        """Write the letterboxed image into `out_rgb` and return its labels and how it was fitted."""
        sample, original_hw = self._load(item.index, keep=False)
        inner_h, inner_w = sample.size_hw
        image, fitted = letterbox(sample.image, shape_hw, scale_up=False)
        write_rgb(image, out_rgb, None)
        scale_xy = (
            fitted.scale_xy[0] * inner_w / original_hw[1],
            fitted.scale_xy[1] * inner_h / original_hw[0],
        )
        boxes = sample.boxes_xyxy * np.tile(fitted.scale_xy, 2) + np.tile(fitted.pad_xy, 2)
        factor, offset = np.array(fitted.scale_xy, np.float32), np.array(fitted.pad_xy, np.float32)
        polygons = [polygon * factor + offset for polygon in sample.polygons]
        placed = Sample(image, boxes.astype(np.float32), sample.classes, polygons)
        return placed, Geometry(original_hw, shape_hw, scale_xy, fitted.pad_xy)

    # ------------------------------------------------------------------------------------------------------------------

    def _load(self, number: int, keep: bool = True) -> tuple[Sample, tuple[int, int]]:
        """Return image `number` at its training size with labels in its pixels, and its original size."""
        picture = self.pictures.get(number) if keep or self.pictures.all is not None else self.pictures.read(number)
        if picture.fault:
            self.faults.append(f"{picture.fault}; a grey image without objects stands in for it")
            return Sample(picture.image, semantic=picture.semantic), picture.original_hw
        if picture.map_fault:
            self.faults.append(f"{picture.map_fault}; none of its pixels counts")
        height, width = picture.image.shape[:2]
        labels = self.index.labels(number)
        centre, half = labels[:, 1:3], labels[:, 3:5] / 2
        boxes = np.concatenate((centre - half, centre + half), 1) * np.array([width, height] * 2, np.float32)
        polygons = [polygon * np.array([width, height], np.float32) for polygon in self.index.polygons(number)]
        return Sample(picture.image, boxes, labels[:, 0], polygons, picture.semantic), picture.original_hw

    def _mosaic(self, number: int, window: np.ndarray, rng: np.random.Generator, flips: tuple[bool, bool]) -> Sample:
        size = self.size
        nine = self.hyp.mosaic9 > 0 and rng.random() < self.hyp.mosaic9
        partners = rng.choice(window, 8 if nine else 3)
        numbers = rng.permutation(np.append(partners, number)) if self.shuffled else [number, *partners]
        samples = [self._load(int(n))[0] for n in numbers]
        if nine:
            tiles = mosaic9(samples, size, (int(rng.integers(0, size)), int(rng.integers(0, size))))
        else:
            y, x = (int(v) for v in rng.integers(size // 2, 3 * size // 2, 2))
            tiles = mosaic4(samples, size, (x, y))
        return self._finish(tiles, (2 * size, 2 * size), (size, size), (rng, flips, self.hyp.copy_paste))

    def _single(
        self, number: int, shape_hw: tuple[int, int], rng: np.random.Generator, flips: tuple[bool, bool]
    ) -> Sample:
        sample, _ = self._load(number)
        fitted = letterbox_geometry(sample.size_hw, shape_hw)
        if fitted.scale_xy != (1.0, 1.0):
            inner, _ = letterbox(sample.image, shape_hw, auto=True, stride=1)
            factor = np.array(fitted.scale_xy, np.float32)
            polygons = [polygon * factor for polygon in sample.polygons]
            semantic = sample.semantic
            if semantic is not None:
                semantic = cv2.resize(semantic, inner.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            sample = Sample(inner, sample.boxes_xyxy * np.tile(factor, 2), sample.classes, polygons, semantic)
        left, top = (round(pad - 0.1) for pad in fitted.pad_xy)
        return self._finish([Tile(sample, left, top)], shape_hw, shape_hw, (rng, flips, 0.0))

    def _finish(
        self,
        tiles: list[Tile],
        canvas_hw: tuple[int, int],
        output_hw: tuple[int, int],
        how: tuple[np.random.Generator, tuple[bool, bool], float],
    ) -> Sample:
        """Return the tiles through a random warp; objects are pasted on the canvas before."""
        rng, flips, paste = how
        hyp = self.hyp
        warp: Warp = sample_warp(rng, hyp.degrees, hyp.translate, hyp.scale, hyp.shear, hyp.perspective)
        if paste and any(tile.sample.polygons for tile in tiles):
            whole = copy_paste(compose(tiles, View(canvas_hw, canvas_hw)), paste, rng)
            tiles = [Tile(whole, 0, 0)]
        return compose(tiles, View(canvas_hw, output_hw, warp, *flips))
