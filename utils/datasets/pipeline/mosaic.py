"""Mosaics: several samples composed and warped directly into the network input.

See docs/reference/augmentation.md. Warping tile by tile avoids drawing and warping the large canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.datasets.pipeline.sample import Sample, concatenate
from utils.ops.letterbox import BORDER
from utils.ops.transform import (
    Warp,
    clip_boxes,
    flip_matrix,
    polygon_box,
    resample_polygon,
    transform_boxes,
    transform_points,
    usable_boxes,
)
from utils.ops.warp import pixel_flip, translation_matrix, warp_into

AREA_RATIO, AREA_RATIO_POLYGON = 0.1, 0.01  # objects of which less remains visible are dropped, as in YOLOv5


@dataclass(frozen=True)
class Tile:
    """A sample whose pixel (0, 0) is at (left, top) of a canvas."""

    sample: Sample
    left: int
    top: int


@dataclass(frozen=True)
class View:
    """Transform from a canvas to the network input; without `warp` the canvas is unchanged and no object is dropped."""

    canvas_hw: tuple[int, int]
    output_hw: tuple[int, int]
    warp: Warp | None = None
    flip_lr: bool = False
    flip_ud: bool = False


def mosaic4(samples: Sequence[Sample], size: int, centre_xy: tuple[int, int]) -> list[Tile]:
    """Arrange four samples so that their corners meet at `centre_xy` of a canvas of 2 size x 2 size pixels."""
    x, y = centre_xy
    tiles = []
    for corner, sample in enumerate(samples):  # top left, top right, bottom left, bottom right
        height, width = sample.size_hw
        tiles.append(Tile(sample, x if corner % 2 else x - width, y if corner >= 2 else y - height))
    return _visible(tiles, 2 * size)


def mosaic9(samples: Sequence[Sample], size: int, crop_xy: tuple[int, int]) -> list[Tile]:
    """Arrange nine samples, the first with its corner at (size, size), and crop 2 size x 2 size pixels.

    The other eight follow clockwise from the top, each adjacent to the previous one and to the centre.

    Args:
        samples: nine samples.
        size: network input size.
        crop_xy: top left corner of the crop.

    Returns:
        The tiles that are visible in the crop, in its coordinates.
    """
    (centre_h, centre_w), corners = samples[0].size_hw, [(size, size)]
    right, bottom = size + centre_w, size + centre_h
    before_h, before_w = centre_h, centre_w
    for number, sample in enumerate(samples[1:], 1):
        height, width = sample.size_hw
        corners.append(
            {
                1: (size, size - height),
                2: (size + before_w, size - height),
                3: (right, size),
                4: (right, size + before_h),
                5: (right - width, bottom),
                6: (right - before_w - width, bottom),
                7: (size - width, bottom - height),
                8: (size - width, bottom - before_h - height),
            }[number]
        )
        before_h, before_w = height, width
    tiles = [Tile(s, x - crop_xy[0], y - crop_xy[1]) for s, (x, y) in zip(samples, corners, strict=True)]
    return _visible(tiles, 2 * size)


def _visible(tiles: list[Tile], side: int) -> list[Tile]:
    """Drop the tiles that are outside the canvas."""
    return [tile for tile in tiles if _crop(tile, (side, side)) is not None]


def _crop(tile: Tile, canvas_hw: tuple[int, int]) -> tuple[slice, slice] | None:
    """Compute the rows and columns of a tile that are on the canvas; None if there are none."""
    height, width = tile.sample.size_hw
    top, bottom = max(0, -tile.top), min(height, canvas_hw[0] - tile.top)
    left, right = max(0, -tile.left), min(width, canvas_hw[1] - tile.left)
    return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None


def compose(tiles: Sequence[Tile], view: View) -> Sample:
    """Compose tiles to one sample; pixels, labels and semantic maps are transformed by one matrix."""
    height, width = view.output_hw
    matrix = np.eye(3) if view.warp is None else view.warp.matrix(view.canvas_hw, view.output_hw)
    pixels = pixel_flip(width, height, view.flip_lr, view.flip_ud) @ matrix
    result = move_labels(tiles, view, matrix)
    channels = tiles[0].sample.image.shape[2] if tiles else 3
    result.image = np.full((height, width, channels), BORDER, np.uint8)
    if any(tile.sample.semantic is not None for tile in tiles):
        result.semantic = np.full((height, width), IGNORED_PIXEL, np.uint8)
    for tile in tiles:
        part = _crop(tile, view.canvas_hw)
        if part is None:
            continue
        placed = pixels @ translation_matrix(tile.left + part[1].start, tile.top + part[0].start)
        warp_into(result.image, tile.sample.image[part], placed)
        if tile.sample.semantic is not None and result.semantic is not None:
            warp_into(result.semantic, tile.sample.semantic[part], placed, nearest=True)
    return result


def move_labels(tiles: Sequence[Tile], view: View, matrix: np.ndarray) -> Sample:
    """Transform boxes, classes and polygons to the output; the sample has no pixels.

    Args:
        tiles: tiles of the canvas.
        view: transform to the output.
        matrix: (3, 3) matrix of `view.warp`.
    """
    placed = [_placed(tile, view.canvas_hw) for tile in tiles]
    boxes, classes, polygons = concatenate(placed)
    if view.warp is not None and len(boxes):
        boxes, classes, polygons = _warp_labels(boxes, classes, polygons, (view, matrix))
    if view.flip_lr or view.flip_ud:
        flip = flip_matrix(view.output_hw[1], view.output_hw[0], view.flip_lr, view.flip_ud)
        boxes = transform_boxes(boxes, flip, view.output_hw)
        polygons = [transform_points(polygon, flip) for polygon in polygons]
    return Sample(
        image=np.zeros((0, 0, 3), np.uint8),
        boxes_xyxy=boxes.astype(np.float32),
        classes=classes,
        polygons=[polygon.astype(np.float32) for polygon in polygons],
    )


def _placed(tile: Tile, canvas_hw: tuple[int, int]) -> Sample:
    """Move the labels of a tile to the canvas and clip them to it."""
    offset = np.array([tile.left, tile.top], np.float64)
    boxes = clip_boxes(tile.sample.boxes_xyxy + np.tile(offset, 2), canvas_hw)
    limit = (canvas_hw[1], canvas_hw[0])
    polygons = [np.clip(polygon + offset, 0, limit) for polygon in tile.sample.polygons]
    return Sample(tile.sample.image, boxes, tile.sample.classes, polygons)


def _warp_labels(
    boxes: np.ndarray, classes: np.ndarray, polygons: list[np.ndarray], by: tuple[View, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Warp labels and drop objects of which too little remains visible.

    Objects with a polygon get the box of the warped polygon, others the box of their warped corners.
    """
    view, matrix = by
    moved = transform_boxes(boxes, matrix, view.output_hw)
    smallest = np.full(len(boxes), AREA_RATIO)
    outlines = list(polygons)
    for row, polygon in enumerate(polygons):
        if len(polygon):
            outlines[row] = transform_points(resample_polygon(polygon), matrix)
            moved[row] = polygon_box(outlines[row], view.output_hw)
            smallest[row] = AREA_RATIO_POLYGON
    scale = view.warp.scale if view.warp is not None else 1.0
    keep = np.flatnonzero(usable_boxes(boxes * scale, moved, min_area_ratio=smallest))
    return moved[keep], classes[keep], [outlines[row] for row in keep] if polygons else []
