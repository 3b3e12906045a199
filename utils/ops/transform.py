"""Random affine and perspective transforms, applied to points, boxes and polygons."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

POLYGON_POINTS = 1000  # a polygon is resampled to so many points before it is transformed and clipped
_EPSILON = 1e-16


@dataclass(frozen=True)
class Warp:
    """Parameters of a random transform: angles in degrees, translation relative to the output size."""

    perspective_xy: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    scale: float = 1.0
    shear_xy: tuple[float, float] = (0.0, 0.0)
    translate_xy: tuple[float, float] = (0.5, 0.5)  # position of the source's centre in the output

    def matrix(self, source_hw: tuple[int, int], output_hw: tuple[int, int]) -> np.ndarray:
        """Compute the transform from pixels of the source to pixels of the output.

        Args:
            source_hw: Height and width of the source.
            output_hw: Height and width of the output.

        Returns:
            (3, 3) product: translation @ shear @ rotation and scale @ perspective @ centring.
        """
        cosine = self.scale * math.cos(math.radians(self.angle))
        sine = self.scale * math.sin(math.radians(self.angle))
        shear_x, shear_y = (math.tan(math.radians(degrees)) for degrees in self.shear_xy)
        centre = np.array([[1, 0, -source_hw[1] / 2], [0, 1, -source_hw[0] / 2], [0, 0, 1]])
        perspective = np.array([[1, 0, 0], [0, 1, 0], [*self.perspective_xy, 1]])
        rotation = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])  # positive: counter-clockwise
        shear = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
        offset_x, offset_y = self.translate_xy[0] * output_hw[1], self.translate_xy[1] * output_hw[0]
        translate = np.array([[1, 0, offset_x], [0, 1, offset_y], [0, 0, 1]])
        return translate @ shear @ rotation @ perspective @ centre


def sample_warp(
    rng: np.random.Generator, degrees: float, translate: float, scale: float, shear: float, perspective: float
) -> Warp:
    """Draw a random transform.

    Args:
        rng: Random generator.
        degrees: Maximum rotation in either direction.
        translate: Maximum translation relative to the output size.
        scale: Maximum change of the scale, which is uniform in [1 - scale, 1 + scale].
        shear: Maximum shear angle in degrees.
        perspective: Maximum perspective coefficient.
    """
    values = rng.uniform(-1, 1, 8)
    return Warp(
        perspective_xy=(values[0] * perspective, values[1] * perspective),
        angle=values[2] * degrees,
        scale=1 + values[3] * scale,
        shear_xy=(values[4] * shear, values[5] * shear),
        translate_xy=(0.5 + values[6] * translate, 0.5 + values[7] * translate),
    )


def flip_matrix(width: int, height: int, left_right: bool, up_down: bool) -> np.ndarray:
    """Return the 3 x 3 matrix that flips continuous coordinates of a width x height image (see also `pixel_flip`)."""
    matrix = np.eye(3)
    if left_right:
        matrix[0] = -1, 0, width
    if up_down:
        matrix[1] = 0, -1, height
    return matrix


def transform_points(points_xy: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a (3, 3) matrix to (..., 2) points, in float64."""
    transformed = points_xy @ matrix[:2, :2].T + matrix[:2, 2]
    if matrix[2, 0] == 0 and matrix[2, 1] == 0:
        return transformed / matrix[2, 2] if matrix[2, 2] != 1 else transformed
    return transformed / (points_xy @ matrix[2, :2] + matrix[2, 2])[..., None]


def transform_boxes(boxes_xyxy: np.ndarray, matrix: np.ndarray, output_hw: tuple[int, int]) -> np.ndarray:
    """Compute the bounding boxes of transformed boxes.

    Args:
        boxes_xyxy: (n, 4) boxes in pixels of the source.
        matrix: (3, 3) transform.
        output_hw: Height and width that the result is clipped to.

    Returns:
        (n, 4) float64.
    """
    left, top, right, bottom = boxes_xyxy.astype(np.float64).T
    corners = np.array([(left, top), (right, bottom), (left, bottom), (right, top)])  # (4, 2, n)
    transformed = transform_points(corners.transpose(2, 0, 1), matrix)  # (n, 4, 2)
    return clip_boxes(np.hstack((transformed.min(axis=1), transformed.max(axis=1))), output_hw)


def clip_boxes(boxes_xyxy: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Clip (n, 4) boxes to [0, width] x [0, height]."""
    height, width = image_hw
    return np.clip(boxes_xyxy, 0, np.array([width, height, width, height], boxes_xyxy.dtype))


def resample_polygon(polygon_xy: np.ndarray, count: int = POLYGON_POINTS) -> np.ndarray:
    """Resample a closed (k, 2) polygon to (count, 2) points, with the same number of points on each side."""
    closed = np.concatenate((polygon_xy, polygon_xy[:1]))
    vertices = np.arange(len(closed))
    positions = np.linspace(0, len(closed) - 1, count)
    return np.stack([np.interp(positions, vertices, closed[:, axis]) for axis in (0, 1)], 1)


def polygon_box(polygon_xy: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Return the bounding box (4,) of the points of a (k, 2) polygon that lie inside the image, zeros without any."""
    x, y = polygon_xy[:, 0], polygon_xy[:, 1]
    inside = (x >= 0) & (y >= 0) & (x <= image_hw[1]) & (y <= image_hw[0])
    if not inside.any():
        return np.zeros(4)
    points = polygon_xy[inside]
    return np.concatenate((points.min(0), points.max(0)))


def usable_boxes(
    before_xyxy: np.ndarray,
    after_xyxy: np.ndarray,
    min_side_px: float = 2.0,
    max_aspect: float = 100.0,
    min_area_ratio: float | np.ndarray = 0.1,
) -> np.ndarray:
    """Decide which transformed boxes are large enough to remain labels.

    Args:
        before_xyxy: (n, 4) boxes before the transform, multiplied by its scale.
        after_xyxy: (n, 4) boxes after the transform and clipping.
        min_side_px: Width and height must exceed it.
        max_aspect: The longer side must be shorter than so many times the other.
        min_area_ratio: The fraction of the area that must be left, a number or (n,).

    Returns:
        (n,) bool.
    """
    before_wh = before_xyxy[:, 2:] - before_xyxy[:, :2]
    after_wh = after_xyxy[:, 2:] - after_xyxy[:, :2]
    width, height = after_wh[:, 0], after_wh[:, 1]
    aspect = np.maximum(width / (height + _EPSILON), height / (width + _EPSILON))
    area_ratio = after_wh.prod(1) / (before_wh.prod(1) + _EPSILON)
    return (width > min_side_px) & (height > min_side_px) & (area_ratio > min_area_ratio) & (aspect < max_aspect)
