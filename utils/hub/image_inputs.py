"""Conversion of the image types that `Model` accepts to named BGR arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from torch import Tensor

from utils.core.errors import UserError
from utils.core.http_client import fetch_bytes, is_http_url
from utils.datasets.image_files import ImageFault, decode_image, read_image


@dataclass(frozen=True)
class NamedImage:
    """An image and the file name of its annotated copy."""

    bgr: np.ndarray  # (H, W, 3) uint8
    name: str  # with the suffix .jpg


def load_images(images: Any, urls: bool = False) -> list[NamedImage]:
    """Load one image or a list of images of any supported type.

    Args:
        images: A path, a URL, a PIL image, an RGB array (H, W), (H, W, 3) or (H, W, 4), a (3, H, W) tensor, or a list
            of these. Floats must be in [0, 1].
        urls: Allow downloads from URLs.

    Returns:
        The images in their order.

    Raises:
        UserError: An image cannot be read, or its type, shape or values are not supported.
    """
    several = list(images) if isinstance(images, (list, tuple)) else [images]
    if not several:
        raise UserError("images: the list is empty; give at least one image")
    return [_load(image, index, urls) for index, image in enumerate(several)]


def _load(image: Any, index: int, urls: bool) -> NamedImage:
    if isinstance(image, (str, Path)):
        return _read(str(image), urls)
    name = f"image{index}"
    if hasattr(image, "getexif"):  # a PIL image, recognised without importing PIL
        from PIL import Image, ImageOps

        upright: Image.Image = ImageOps.exif_transpose(image)
        name = Path(getattr(image, "filename", "") or name).stem
        return NamedImage(_to_bgr(np.asarray(upright.convert("RGB")), index), f"{name}.jpg")
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise UserError(f"image {index}: unsupported type {kind}; give a path, PIL image, NumPy array or torch tensor")
    return NamedImage(_to_bgr(image, index), f"{name}.jpg")


def _read(text: str, urls: bool) -> NamedImage:
    try:
        if not is_http_url(text):
            return NamedImage(read_image(Path(text)), f"{Path(text).stem}.jpg")
        if not urls:
            raise UserError(f"{text}: downloads from URLs are disabled; set `model.urls = True`")
        path = Path(urlsplit(text).path)
        return NamedImage(decode_image(fetch_bytes(text), path), f"{path.stem or 'image'}.jpg")
    except ImageFault as fault:
        raise UserError(str(fault)) from fault


def _to_bgr(pixels: np.ndarray, index: int) -> np.ndarray:
    """Convert RGB or grey pixels, uint8 or floats in [0, 1], to (H, W, 3) uint8 BGR."""
    if pixels.ndim == 3 and pixels.shape[0] < 5 <= pixels.shape[2]:  # (C, H, W)
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise UserError(f"image {index}: unsupported array shape {pixels.shape}; give (H, W, 3) in RGB order")
    if np.issubdtype(pixels.dtype, np.floating):
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise UserError(f"image {index}: floats must be in [0, 1]; give uint8 for values from 0 to 255")
        pixels = np.rint(pixels * 255)
    elif pixels.dtype != np.uint8:
        raise UserError(f"image {index}: unsupported dtype {pixels.dtype}; give uint8, or floats in [0, 1]")
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]
    return np.ascontiguousarray(rgb[:, :, ::-1]).astype(np.uint8)


def common_shape(sizes_hw: Sequence[tuple[int, int]], size: int, stride: int) -> tuple[int, int]:
    """Compute the smallest input that fits a batch of images.

    Args:
        sizes_hw: Height and width of each image.
        size: Longer side to which each image is resized.
        stride: Height and width are rounded up to multiples of it.

    Returns:
        Height and width.
    """
    scaled = [(int(h * size / max(h, w)), int(w * size / max(h, w))) for h, w in sizes_hw]
    height, width = (max(sides) for sides in zip(*scaled, strict=True))
    return max(-(-height // stride), 1) * stride, max(-(-width // stride), 1) * stride
