"""Fit an image into the network's input with a border, and say how (behaviour.md 4.4)."""

from __future__ import annotations

import cv2
import numpy as np

from utils.core.contracts import Geometry

BORDER = 114  # grey level of everything that is not image


def letterbox_geometry(
    original_hw: tuple[int, int],
    new_hw: tuple[int, int],
    auto: bool = False,
    stretch: bool = False,
    scale_up: bool = True,
    stride: int = 32,
) -> Geometry:
    """Return how an image of `original_hw` pixels is put into `new_hw`.

    `auto` keeps only as much border as makes both sides multiples of `stride`; `stretch` fills without border and
    without keeping the aspect ratio; without `scale_up` small images keep their size. `pad_xy` is un-rounded.
    """
    height, width = original_hw
    if min(height, width) < 1 or min(new_hw) < 1:
        raise ValueError(f"sizes must be positive, got {original_hw} into {new_hw}")
    if stretch:
        scale_xy = (new_hw[1] / width, new_hw[0] / height)
        return Geometry((height, width), (new_hw[0], new_hw[1]), scale_xy, (0.0, 0.0))
    scale = min(new_hw[0] / height, new_hw[1] / width)
    if not scale_up:
        scale = min(scale, 1.0)
    inner_w, inner_h = _inner_xy(original_hw, scale)
    rest_w, rest_h = new_hw[1] - inner_w, new_hw[0] - inner_h
    if auto:
        rest_w, rest_h = rest_w % stride, rest_h % stride
    return Geometry((height, width), (inner_h + rest_h, inner_w + rest_w), (scale, scale), (rest_w / 2, rest_h / 2))


def _inner_xy(original_hw: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return (width, height) of the resized image; a sliver keeps one pixel."""
    return max(1, round(original_hw[1] * scale)), max(1, round(original_hw[0] * scale))


def letterbox(
    image: np.ndarray,
    new_hw: tuple[int, int],
    color: int = BORDER,
    auto: bool = False,
    stretch: bool = False,
    scale_up: bool = True,
    stride: int = 32,
) -> tuple[np.ndarray, Geometry]:
    """Return the (H, W, 3) uint8 image put into `new_hw` and the geometry; options as in `letterbox_geometry`.

    Bilinear. The returned array is new unless the image already has the right size.
    """
    geometry = letterbox_geometry(image.shape[:2], new_hw, auto, stretch, scale_up, stride)
    height, width = geometry.network_hw
    if stretch:
        inner_w, inner_h = width, height
    else:
        inner_w, inner_h = _inner_xy(geometry.original_hw, geometry.scale_xy[0])
    if image.shape[:2] != (inner_h, inner_w):
        image = cv2.resize(image, (inner_w, inner_h), interpolation=cv2.INTER_LINEAR)
    if (inner_h, inner_w) == (height, width):
        return image, geometry
    pad_x, pad_y = geometry.pad_xy
    top, left = round(pad_y - 0.1), round(pad_x - 0.1)  # an odd border has its extra pixel below and right
    bottom, right = height - inner_h - top, width - inner_w - left
    bordered = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(color,) * 3)
    return bordered, geometry


def points_to_network(points_xy: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return (..., 2) pixels of the original as pixels of the network's input."""
    return points_xy * np.asarray(geometry.scale_xy) + np.asarray(geometry.pad_xy)


def points_to_original(points_xy: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return (..., 2) pixels of the network's input as pixels of the original, not clipped."""
    return (points_xy - np.asarray(geometry.pad_xy)) / np.asarray(geometry.scale_xy)
