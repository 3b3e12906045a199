"""Letterbox: resize an image with its aspect ratio kept and pad it to the size of the network input."""

from __future__ import annotations

import cv2
import numpy as np

from utils.core.contracts import Geometry

BORDER = 114  # grey level of the padding
# With an odd number of padding pixels the extra one is at the bottom or right: halves x.5 are rounded down.
_ROUND_HALF_DOWN = 0.1


def letterbox_geometry(
    original_hw: tuple[int, int],
    new_hw: tuple[int, int],
    auto: bool = False,
    stretch: bool = False,
    scale_up: bool = True,
    stride: int = 32,
) -> Geometry:
    """Compute the letterbox transform of an image.

    Args:
        original_hw: Height and width of the image.
        new_hw: Height and width to fit it into.
        auto: Reduce the padding to what makes both sides multiples of `stride`; the network input gets smaller.
        stretch: Resize to exactly `new_hw` without keeping the aspect ratio.
        scale_up: Enlarge images that are smaller than `new_hw`.
        stride: Stride of the network, for `auto`.

    Returns:
        The transform, with unrounded `pad_xy`.

    Raises:
        ValueError: If a size is not positive.
    """
    height, width = original_hw
    if min(height, width) < 1 or min(new_hw) < 1:
        raise ValueError(f"sizes must be positive, got {original_hw} and {new_hw}")
    if stretch:
        scale_xy = (new_hw[1] / width, new_hw[0] / height)
        return Geometry((height, width), (new_hw[0], new_hw[1]), scale_xy, (0.0, 0.0))
    scale = min(new_hw[0] / height, new_hw[1] / width)
    if not scale_up:
        scale = min(scale, 1.0)
    resized_w, resized_h = _resized_wh(original_hw, scale)
    pad_w, pad_h = new_hw[1] - resized_w, new_hw[0] - resized_h
    if auto:
        pad_w, pad_h = pad_w % stride, pad_h % stride
    network_hw = (resized_h + pad_h, resized_w + pad_w)
    return Geometry((height, width), network_hw, (scale, scale), (pad_w / 2, pad_h / 2))


def _resized_wh(original_hw: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the (width, height) of the resized image, at least one pixel each."""
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
    """Resize an image bilinearly and pad it.

    Args:
        image: (H, W, 3) uint8.
        new_hw: Height and width to fit it into.
        color: Grey level of the padding.
        auto: See `letterbox_geometry`, as for the remaining options.
        stretch: Ignore the aspect ratio.
        scale_up: Enlarge small images.
        stride: Stride of the network.

    Returns:
        The letterboxed image, which is the argument itself if no change is needed, and the transform.
    """
    geometry = letterbox_geometry(image.shape[:2], new_hw, auto, stretch, scale_up, stride)
    height, width = geometry.network_hw
    if stretch:
        resized_w, resized_h = width, height
    else:
        resized_w, resized_h = _resized_wh(geometry.original_hw, geometry.scale_xy[0])
    if image.shape[:2] != (resized_h, resized_w):
        image = cv2.resize(image, (resized_w, resized_h), interpolation=cv2.INTER_LINEAR)
    if (resized_h, resized_w) == (height, width):
        return image, geometry
    pad_x, pad_y = geometry.pad_xy
    top, left = round(pad_y - _ROUND_HALF_DOWN), round(pad_x - _ROUND_HALF_DOWN)
    bottom, right = height - resized_h - top, width - resized_w - left
    padded = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(color,) * 3)
    return padded, geometry


def points_to_network(points_xy: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Map (..., 2) points from the original image to the network input."""
    return points_xy * np.asarray(geometry.scale_xy) + np.asarray(geometry.pad_xy)


def points_to_original(points_xy: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Map (..., 2) points from the network input to the original image, without clipping."""
    return (points_xy - np.asarray(geometry.pad_xy)) / np.asarray(geometry.scale_xy)
