"""Boxes and polygons through a 3 x 3 matrix of pixels (behaviour.md 4.7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RESAMPLED = 1000  # points of a polygon before it is transformed, so that clipping it keeps its shape
_EPSILON = 1e-16


@dataclass(frozen=True)
class Warp:
    """The random part of a transform. Angles in degrees, translation in parts of the output."""

    perspective_xy: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    scale: float = 1.0
    shear_xy: tuple[float, float] = (0.0, 0.0)
    translate_xy: tuple[float, float] = (0.5, 0.5)

    def matrix(self, source_hw: tuple[int, int], output_hw: tuple[int, int]) -> np.ndarray:
        """Return T S R P C, which takes pixels of the source to pixels of the output."""
        cosine = self.scale * math.cos(math.radians(self.angle))
        sine = self.scale * math.sin(math.radians(self.angle))
        shear_x, shear_y = (math.tan(math.radians(degrees)) for degrees in self.shear_xy)
        centre = np.array([[1, 0, -source_hw[1] / 2], [0, 1, -source_hw[0] / 2], [0, 0, 1]])
        perspective = np.array([[1, 0, 0], [0, 1, 0], [*self.perspective_xy, 1]])
        rotation = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])  # positive: counter-clockwise
        shear = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
        place = self.translate_xy[0] * output_hw[1], self.translate_xy[1] * output_hw[0]
        translate = np.array([[1, 0, place[0]], [0, 1, place[1]], [0, 0, 1]])
        return translate @ shear @ rotation @ perspective @ centre


def sample_warp(
    rng: np.random.Generator, degrees: float, translate: float, scale: float, shear: float, perspective: float
) -> Warp:
    """Return a random warp; each value is uniform within plus or minus its limit."""
    values = rng.uniform(-1, 1, 8)
    return Warp(
        perspective_xy=(values[0] * perspective, values[1] * perspective),
        angle=values[2] * degrees,
        scale=1 + values[3] * scale,
        shear_xy=(values[4] * shear, values[5] * shear),
        translate_xy=(0.5 + values[6] * translate, 0.5 + values[7] * translate),
    )


def flip_matrix(width: int, height: int, left_right: bool, up_down: bool) -> np.ndarray:
    """Return the matrix that mirrors continuous coordinates of a width x height image."""
    matrix = np.eye(3)
    if left_right:
        matrix[0] = -1, 0, width
    if up_down:
        matrix[1] = 0, -1, height
    return matrix


def transform_points(points_xy: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return (..., 2) points through the matrix, as float64."""
    moved = points_xy @ matrix[:2, :2].T + matrix[:2, 2]
    if matrix[2, 0] == 0 and matrix[2, 1] == 0:
        return moved / matrix[2, 2] if matrix[2, 2] != 1 else moved
    return moved / (points_xy @ matrix[2, :2] + matrix[2, 2])[..., None]


def transform_boxes(boxes_xyxy: np.ndarray, matrix: np.ndarray, output_hw: tuple[int, int]) -> np.ndarray:
    """Return the (n, 4) boxes around the transformed corners, clipped to the output."""
    corners = boxes_xyxy[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(-1, 4, 2).astype(np.float64)
    moved = transform_points(corners, matrix)
    return clip_boxes(np.concatenate((moved.min(1), moved.max(1)), 1), output_hw)


def clip_boxes(boxes_xyxy: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Return the boxes clipped to [0, width] x [0, height]."""
    height, width = image_hw
    return np.clip(boxes_xyxy, 0, np.array([width, height, width, height], boxes_xyxy.dtype))


def resample_polygon(polygon_xy: np.ndarray, count: int = RESAMPLED) -> np.ndarray:
    """Return `count` points along the closed (k, 2) polygon, uniform in vertex index (not in length)."""
    closed = np.concatenate((polygon_xy, polygon_xy[:1]))
    corner = np.arange(len(closed))
    place = np.linspace(0, len(closed) - 1, count)
    return np.stack([np.interp(place, corner, closed[:, axis]) for axis in (0, 1)], 1)


def polygon_box(polygon_xy: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Return the xyxy box of the polygon's points that lie inside the image; zeros if none does."""
    x, y = polygon_xy[:, 0], polygon_xy[:, 1]
    inside = (x >= 0) & (y >= 0) & (x <= image_hw[1]) & (y <= image_hw[0])
    if not inside.any():
        return np.zeros(4)
    kept = polygon_xy[inside]
    return np.concatenate((kept.min(0), kept.max(0)))


def usable_boxes(
    before_xyxy: np.ndarray,
    after_xyxy: np.ndarray,
    min_side_px: float = 2.0,
    max_aspect: float = 100.0,
    min_area_ratio: float | np.ndarray = 0.1,
) -> np.ndarray:
    """Return (n,) bool: which boxes are worth keeping. `before` is already multiplied by the warp's scale."""
    before_wh = before_xyxy[:, 2:] - before_xyxy[:, :2]
    after_wh = after_xyxy[:, 2:] - after_xyxy[:, :2]
    width, height = after_wh[:, 0], after_wh[:, 1]
    aspect = np.maximum(width / (height + _EPSILON), height / (width + _EPSILON))
    ratio = after_wh.prod(1) / (before_wh.prod(1) + _EPSILON)
    return (width > min_side_px) & (height > min_side_px) & (ratio > min_area_ratio) & (aspect < max_aspect)
