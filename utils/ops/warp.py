"""Affine and perspective warping of image tiles into a larger canvas."""

from __future__ import annotations

import math

import cv2
import numpy as np

from utils.ops.transform import transform_points

_MIN_DEPTH = 1e-3  # smallest denominator of a perspective transform at which a point counts as in front of the camera


def pixel_flip(width: int, height: int, left_right: bool, up_down: bool) -> np.ndarray:
    """Return the 3 x 3 matrix that flips pixel indices, where the last index is size - 1 (see also `flip_matrix`)."""
    matrix = np.eye(3)
    if left_right:
        matrix[0] = -1, 0, width - 1
    if up_down:
        matrix[1] = 0, -1, height - 1
    return matrix


def translation_matrix(x: float, y: float) -> np.ndarray:
    """Return the 3 x 3 matrix of a translation by (x, y) pixels."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def warp_into(canvas: np.ndarray, tile: np.ndarray, matrix: np.ndarray, nearest: bool = False) -> None:
    """Warp a tile into a canvas, in place.

    Canvas pixels whose source lies outside the tile keep their value, so adjacent tiles meet without a seam.

    Args:
        canvas: (H, W) or (H, W, 3) uint8.
        tile: (h, w) or (h, w, 3) uint8.
        matrix: (3, 3) transform from pixel indices of the tile to those of the canvas.
        nearest: Nearest-neighbour instead of bilinear interpolation.
    """
    if tile.shape[0] < 1 or tile.shape[1] < 1:
        return
    interpolation = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    if matrix[0, 1] == matrix[1, 0] == matrix[2, 0] == matrix[2, 1] == 0:
        _warp_axis_aligned(canvas, tile, matrix / matrix[2, 2], interpolation)
    else:
        _warp_masked(canvas, tile, matrix, interpolation)


def _covered_range(scale: float, offset: float, source: int, target: int) -> tuple[int, int]:
    """Return the range of target indices whose source index is in [-0.5, source - 0.5)."""
    ends = sorted((-0.5 * scale + offset, (source - 0.5) * scale + offset))
    return max(0, math.ceil(ends[0])), min(target, math.ceil(ends[1]))


def _warp_axis_aligned(canvas: np.ndarray, tile: np.ndarray, matrix: np.ndarray, interpolation: int) -> None:
    """Warp by a matrix without rotation, shear and perspective: the tile covers a rectangle of the canvas."""
    left, right = _covered_range(matrix[0, 0], matrix[0, 2], tile.shape[1], canvas.shape[1])
    top, bottom = _covered_range(matrix[1, 1], matrix[1, 2], tile.shape[0], canvas.shape[0])
    if left >= right or top >= bottom:
        return
    local = translation_matrix(-left, -top) @ matrix
    region = canvas[top:bottom, left:right]
    if local[0, 0] == local[1, 1] == 1 and local[0, 2] == int(local[0, 2]) and local[1, 2] == int(local[1, 2]):
        x, y = -int(local[0, 2]), -int(local[1, 2])
        region[:] = tile[y : y + bottom - top, x : x + right - left]
        return
    size = (right - left, bottom - top)
    warped = cv2.warpAffine(tile, local[:2], size, dst=region, flags=interpolation, borderMode=cv2.BORDER_REPLICATE)
    if warped is not region and not np.shares_memory(warped, region):
        region[:] = warped


def _warp_masked(canvas: np.ndarray, tile: np.ndarray, matrix: np.ndarray, interpolation: int) -> None:
    """Warp by any matrix, with a mask of the tile warped along."""
    height, width = tile.shape[:2]
    left, top, right, bottom = 0, 0, canvas.shape[1], canvas.shape[0]
    corners = np.array([[-1, -1], [width, -1], [width, height], [-1, height]], np.float64)
    if (corners @ matrix[2, :2] + matrix[2, 2]).min() > _MIN_DEPTH:  # otherwise the outline is not bounded
        outline = transform_points(corners, matrix)
        left, top = (max(0, math.floor(v)) for v in outline.min(0))
        right = min(right, math.ceil(outline[:, 0].max()) + 1)
        bottom = min(bottom, math.ceil(outline[:, 1].max()) + 1)
        if left >= right or top >= bottom:
            return
    local = translation_matrix(-left, -top) @ matrix
    size = (right - left, bottom - top)
    warped = cv2.warpPerspective(tile, local, size, flags=interpolation, borderMode=cv2.BORDER_REPLICATE)
    opaque = np.full((height, width), 255, np.uint8)
    mask = cv2.warpPerspective(opaque, local, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    cv2.copyTo(warped, mask, canvas[top:bottom, left:right])
