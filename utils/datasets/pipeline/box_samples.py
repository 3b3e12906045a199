"""Samples with boxes, polygons and (with mosaics of both kinds) semantic maps, and the loader of such a split."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from utils.core.contracts import Geometry
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.core.seed import generator
from utils.core.segment_types import PanopticLabels
from utils.datasets.labels.label_index import Index
from utils.datasets.labels.label_scan import build_index
from utils.datasets.pipeline.augment import (
    MIXUP_BETA,
    apply_optional,
    copy_paste,
    mixup,
    optional_transforms,
    write_rgb,
)
from utils.datasets.pipeline.batch_plan import STREAM_ORDER, STREAM_SAMPLE, WINDOW, BatchPlan, Item
from utils.datasets.pipeline.image_cache import CachedImage, ImageCache
from utils.datasets.pipeline.loader import BatchLoader, check_sizes, letterbox_plan
from utils.datasets.pipeline.mosaic import Tile, View, compose, mosaic4, mosaic9
from utils.datasets.pipeline.sample import Sample
from utils.datasets.pipeline.semantic_maps import align_maps
from utils.ops.letterbox import letterbox, letterbox_geometry
from utils.ops.transform import Warp, sample_warp


def open_box_loader(request: LoadRequest, place: tuple[int, int] | None = None) -> BatchLoader:
    """Open the loader of a split with boxes.

    Args:
        request: split and options.
        place: (rank, world size); None: those of the launcher.

    Raises:
        UserError: the data set is unusable or the options cannot be combined.
    """
    check_sizes(request)
    if request.quad and request.batch_size % 4:
        raise UserError(f"--quad combines four images; the batch size {request.batch_size} is not a multiple of 4")
    index = build_index(
        request.data, request.split, request.single_class, request.allow_label_faults, need_labels=request.training
    )
    if request.masks:
        _check_masks(request, index)
    size = request.image_size
    maps = align_maps(request, index) if request.training and request.semantic.mosaic else None
    limit_bytes = (request.mosaic_window or WINDOW) * size * size * (4 if maps is None else 5)
    images = ImageCache(index, size, request.training, limit_bytes, None if maps is None else maps.read_map)
    if request.training:
        optional_transforms()  # imported once before the workers are forked
    if request.cache:
        images.cache_all(request.cache)
    maker = BoxSampleMaker(
        index, images, request.hyp, size, request.seed, mosaic=not request.rect, shuffle=not request.masks
    )
    if request.panoptic:
        from utils.datasets.pipeline.panoptic_labels import open_panoptic_labels  # rarely needed

        maker.read_panoptic = open_panoptic_labels(request, index)
    if request.epochs:
        maker.mosaic_epochs = request.epochs - round(request.hyp.close_mosaic)
    return BatchLoader(
        request, maker, index.class_counts(1 if request.single_class else request.data.num_classes), place
    )


def _check_masks(request: LoadRequest, index: Index) -> None:
    if request.quad:
        raise UserError("--quad cannot be combined with masks")
    if not 1 <= request.mask_ratio <= request.stride:
        raise UserError(f"--mask-ratio expects 1 to {request.stride}, got {request.mask_ratio}")
    lacking = index.first_without_polygon()
    if lacking is not None:
        raise UserError(
            f"{request.data.source}: the labels of {index.path(lacking)} are boxes; masks need polygons, "
            "`class x1 y1 x2 y2 x3 y3 ...` per line"
        )


@dataclass
class BoxSampleMaker:
    """Creates samples of one split; implements `loader.SampleMaker`."""

    index: Index
    images: ImageCache
    hyp: Hyp
    size: int
    seed: int
    mosaic: bool = True  # rectangular batches have no mosaics
    shuffle: bool = True  # the tiles of a mosaic; False: the image itself comes first, as in YOLOv5's segmentation
    faults: list[str] = field(default_factory=list)
    order_stream: int = STREAM_ORDER
    mosaic_epochs: float = math.inf  # epochs with mosaic and mixup
    read_panoptic: Callable[[int], tuple[PanopticLabels, str]] | None = None  # in evaluation of panoptic data

    @property
    def training_hw(self) -> tuple[int, int]:
        """Size of training images."""
        return self.size, self.size

    def evaluation_plan(self, request: LoadRequest) -> list[BatchPlan]:
        """Plan batches of letterboxed images."""
        return letterbox_plan(self.index, request)

    def train(self, item: Item, epoch: int, shape_hw: tuple[int, int], out_rgb: np.ndarray) -> Sample:
        """Write the augmented image to `out_rgb` and return its labels in pixels."""
        hyp, rng = self.hyp, generator(self.seed, epoch, item.position, STREAM_SAMPLE)
        flips = bool(rng.random() < hyp.fliplr), bool(rng.random() < hyp.flipud)
        gains = 1 + rng.uniform(-1, 1, 3) * (hyp.hsv_h, hyp.hsv_s, hyp.hsv_v)
        if self.mosaic and rng.random() < hyp.mosaic and epoch < self.mosaic_epochs:
            sample = self._create_mosaic(item.index, item.window, rng, flips)
            if rng.random() < hyp.mixup:
                other = self._create_mosaic(int(rng.choice(item.window)), item.window, rng, flips)
                sample = mixup(sample, other, rng.beta(MIXUP_BETA, MIXUP_BETA))
        else:
            sample = self._create_single(item.index, shape_hw, rng, flips)
        sample.image = apply_optional(sample.image, optional_transforms(), rng)
        changes_colour = hyp.hsv_h or hyp.hsv_s or hyp.hsv_v
        write_rgb(sample.image, out_rgb, gains if changes_colour else None)
        return sample

    def evaluate(self, item: Item, shape_hw: tuple[int, int], out_rgb: np.ndarray) -> tuple[Sample, Geometry]:
        """Write the letterboxed image to `out_rgb` and return its labels in pixels and its transform."""
        cached = self.images.read(item.index)
        sample, original_hw = self._labelled(item.index, cached), cached.original_hw
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
        fitted_sample = Sample(image, boxes.astype(np.float32), sample.classes, polygons)
        if self.read_panoptic is not None:
            fitted_sample.panoptic, fault = self.read_panoptic(item.index)
            self.faults += [f"{fault}; all its pixels are void"] if fault else []
        return fitted_sample, Geometry(original_hw, shape_hw, scale_xy, fitted.pad_xy)

    # ------------------------------------------------------------------------------------------------------------------

    def _load(self, number: int) -> Sample:
        """Load an image at the training size with its labels in pixels."""
        return self._labelled(number, self.images.get(number))

    def _labelled(self, number: int, cached: CachedImage) -> Sample:
        if cached.fault:
            self.faults.append(f"{cached.fault}; replaced by a grey image without objects")
            return Sample(cached.image, semantic=cached.semantic)
        if cached.map_fault:
            self.faults.append(f"{cached.map_fault}; all its pixels are unlabelled")
        height, width = cached.image.shape[:2]
        labels = self.index.labels(number)
        centre, half = labels[:, 1:3], labels[:, 3:5] / 2
        boxes = np.concatenate((centre - half, centre + half), 1) * np.array([width, height] * 2, np.float32)
        polygons = [polygon * np.array([width, height], np.float32) for polygon in self.index.polygons(number)]
        return Sample(cached.image, boxes, labels[:, 0], polygons, cached.semantic)

    def _create_mosaic(
        self, number: int, window: np.ndarray, rng: np.random.Generator, flips: tuple[bool, bool]
    ) -> Sample:
        size = self.size
        nine = self.hyp.mosaic9 > 0 and rng.random() < self.hyp.mosaic9
        partners = rng.choice(window, 8 if nine else 3)
        numbers = rng.permutation(np.append(partners, number)) if self.shuffle else [number, *partners]
        samples = [self._load(int(n)) for n in numbers]
        if nine:
            tiles = mosaic9(samples, size, (int(rng.integers(0, size)), int(rng.integers(0, size))))
        else:
            y, x = (int(v) for v in rng.integers(size // 2, 3 * size // 2, 2))
            tiles = mosaic4(samples, size, (x, y))
        return self._warp(tiles, (2 * size, 2 * size), (size, size), (rng, flips, self.hyp.copy_paste))

    def _create_single(
        self, number: int, shape_hw: tuple[int, int], rng: np.random.Generator, flips: tuple[bool, bool]
    ) -> Sample:
        sample = self._load(number)
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
        return self._warp([Tile(sample, left, top)], shape_hw, shape_hw, (rng, flips, 0.0))

    def _warp(
        self,
        tiles: list[Tile],
        canvas_hw: tuple[int, int],
        output_hw: tuple[int, int],
        draws: tuple[np.random.Generator, tuple[bool, bool], float],
    ) -> Sample:
        """Compose tiles through a random warp; objects are pasted on the canvas before."""
        rng, flips, paste = draws
        hyp = self.hyp
        warp: Warp = sample_warp(rng, hyp.degrees, hyp.translate, hyp.scale, hyp.shear, hyp.perspective)
        if paste and any(tile.sample.polygons for tile in tiles):
            whole = copy_paste(compose(tiles, View(canvas_hw, canvas_hw)), paste, rng)
            tiles = [Tile(whole, 0, 0)]
        return compose(tiles, View(canvas_hw, output_hw, warp, *flips))
