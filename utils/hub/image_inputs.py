"""Whatever people call an image, as pixels with a name (behaviour.md 5.5)."""

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
class Picture:
    """One image and what its saved copy is called."""

    bgr: np.ndarray  # (H, W, 3) uint8
    name: str  # with the suffix .jpg


def pictures(images: Any, urls: bool = False) -> list[Picture]:
    """Return one picture per image: a path, an address (if `urls`), PIL, (H, W[, 3 or 4]) RGB, (3, H, W), or a list."""
    several = list(images) if isinstance(images, (list, tuple)) else [images]
    if not several:
        raise UserError("no images were given")
    return [_picture(image, number, urls) for number, image in enumerate(several)]


def _picture(image: Any, number: int, urls: bool) -> Picture:
    if isinstance(image, (str, Path)):
        text = str(image)
        return _read(text, urls)
    name = f"image{number}"
    if hasattr(image, "getexif"):  # PIL, which need not be imported to be recognised
        from PIL import Image, ImageOps

        upright: Image.Image = ImageOps.exif_transpose(image)
        name = Path(getattr(image, "filename", "") or name).stem
        return Picture(_to_bgr(np.asarray(upright.convert("RGB")), number), f"{name}.jpg")
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise UserError(f"image {number}: {type(image).__name__} is no image; give a path, PIL, numpy or torch image")
    return Picture(_to_bgr(image, number), f"{name}.jpg")


def _read(text: str, urls: bool) -> Picture:
    try:
        if not is_http_url(text):
            return Picture(read_image(Path(text)), f"{Path(text).stem}.jpg")
        if not urls:
            raise UserError(f"{text}: addresses are not fetched unless allowed; set `model.urls = True`")
        path = Path(urlsplit(text).path)
        return Picture(decode_image(fetch_bytes(text), path), f"{path.stem or 'image'}.jpg")
    except ImageFault as fault:
        raise UserError(str(fault)) from fault


def _to_bgr(pixels: np.ndarray, number: int) -> np.ndarray:
    """Return RGB pixels in any usual layout as (H, W, 3) uint8 BGR; floats are taken to lie between 0 and 1."""
    if pixels.ndim == 3 and pixels.shape[0] < 5 <= pixels.shape[2]:  # (C, H, W)
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise UserError(f"image {number}: an array of shape {pixels.shape} is no image; (H, W, 3) in RGB order is")
    if np.issubdtype(pixels.dtype, np.floating):
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise UserError(f"image {number}: floats must lie between 0 and 1; give uint8 for 0 to 255")
        pixels = np.rint(pixels * 255)
    elif pixels.dtype != np.uint8:
        raise UserError(f"image {number}: {pixels.dtype} pixels; give uint8, or floats from 0 to 1")
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]
    return np.ascontiguousarray(rgb[:, :, ::-1]).astype(np.uint8)


def common_shape(sizes_hw: Sequence[tuple[int, int]], size: int, stride: int) -> tuple[int, int]:
    """Return the (height, width) that all images are put into: their largest sides at `size`, in whole strides."""
    scaled = [(int(h * size / max(h, w)), int(w * size / max(h, w))) for h, w in sizes_hw]
    height, width = (max(sides) for sides in zip(*scaled, strict=True))
    return max(-(-height // stride), 1) * stride, max(-(-width // stride), 1) * stride
