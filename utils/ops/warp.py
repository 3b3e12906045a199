"""Pixels through a 3 x 3 matrix, straight into a part of a larger picture."""

from __future__ import annotations

import math

import cv2
import numpy as np

from utils.ops.transform import transform_points


def pixel_flip(width: int, height: int, left_right: bool, up_down: bool) -> np.ndarray:
    """Return the matrix that mirrors pixel indices (the last pixel has index width - 1)."""
    matrix = np.eye(3)
    if left_right:
        matrix[0] = -1, 0, width - 1
    if up_down:
        matrix[1] = 0, -1, height - 1
    return matrix


def translation_matrix(x: float, y: float) -> np.ndarray:
    """Return the matrix that moves by (x, y) pixels."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def warp_into(canvas: np.ndarray, tile: np.ndarray, matrix: np.ndarray, nearest: bool = False) -> None:
    """Draw `tile` (h, w[, 3]) uint8 into `canvas` (H, W[, 3]) at the place where `matrix` puts its pixels.

    `matrix` takes pixel indices of the tile to pixel indices of the canvas. Canvas pixels whose source lies outside the
    tile are left alone, so that tiles drawn one after the other meet without a seam.
    """
    if tile.shape[0] < 1 or tile.shape[1] < 1:
        return
    interpolation = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    if matrix[0, 1] == matrix[1, 0] == matrix[2, 0] == matrix[2, 1] == 0:
        _warp_upright(canvas, tile, matrix / matrix[2, 2], interpolation)
    else:
        _warp_masked(canvas, tile, matrix, interpolation)


def _covered(scale: float, offset: float, source: int, target: int) -> tuple[int, int]:
    """Return the range of target indices whose source index lies in [-0.5, source - 0.5)."""
    ends = sorted((-0.5 * scale + offset, (source - 0.5) * scale + offset))
    return max(0, math.ceil(ends[0])), min(target, math.ceil(ends[1]))


def _warp_upright(canvas: np.ndarray, tile: np.ndarray, matrix: np.ndarray, interpolation: int) -> None:
    """Scale, move and mirror only: the tile covers a rectangle."""
    left, right = _covered(matrix[0, 0], matrix[0, 2], tile.shape[1], canvas.shape[1])
    top, bottom = _covered(matrix[1, 1], matrix[1, 2], tile.shape[0], canvas.shape[0])
    if left >= right or top >= bottom:
        return
    moved = translation_matrix(-left, -top) @ matrix
    part = canvas[top:bottom, left:right]
    if moved[0, 0] == moved[1, 1] == 1 and moved[0, 2] == int(moved[0, 2]) and moved[1, 2] == int(moved[1, 2]):
        x, y = -int(moved[0, 2]), -int(moved[1, 2])
        part[:] = tile[y : y + bottom - top, x : x + right - left]
        return
    size = (right - left, bottom - top)
    drawn = cv2.warpAffine(tile, moved[:2], size, dst=part, flags=interpolation, borderMode=cv2.BORDER_REPLICATE)
    if drawn is not part and not np.shares_memory(drawn, part):
        part[:] = drawn


def _warp_masked(canvas: np.ndarray, tile: np.ndarray, matrix: np.ndarray, interpolation: int) -> None:
    """Any matrix: the tile's outline is warped along and cuts it out."""
    height, width = tile.shape[:2]
    left, top, right, bottom = 0, 0, canvas.shape[1], canvas.shape[0]
    corners = np.array([[-1, -1], [width, -1], [width, height], [-1, height]], np.float64)
    if (corners @ matrix[2, :2] + matrix[2, 2]).min() > 1e-3:  # else a corner lies behind the horizon
        outline = transform_points(corners, matrix)
        left, top = (max(0, math.floor(v)) for v in outline.min(0))
        right = min(right, math.ceil(outline[:, 0].max()) + 1)
        bottom = min(bottom, math.ceil(outline[:, 1].max()) + 1)
        if left >= right or top >= bottom:
            return
    moved = translation_matrix(-left, -top) @ matrix
    size = (right - left, bottom - top)
    drawn = cv2.warpPerspective(tile, moved, size, flags=interpolation, borderMode=cv2.BORDER_REPLICATE)
    solid = np.full((height, width), 255, np.uint8)
    mask = cv2.warpPerspective(solid, moved, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    cv2.copyTo(drawn, mask, canvas[top:bottom, left:right])
