"""Bilinear look-up in maps, and coordinates of one map or image in another.

Maps have aligned corners: their first and last entries lie on the first and last pixels of the image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def resample(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Look up maps at fractional coordinates; those outside take the value of the nearest border.

    Args:
        maps: (B, C, h, w).
        rows: (H,) fractional row indices.
        columns: (W,) fractional column indices.

    Returns:
        (B, C, H, W) bilinear values.
    """
    return _interpolate(_interpolate(maps, rows, 2), columns, 3)


def _interpolate(maps: Tensor, coordinates: Tensor, dimension: int) -> Tensor:
    # computed on the coordinates' own device: not every accelerator has float64
    coordinates = coordinates.double().clamp(0, maps.shape[dimension] - 1)
    low = coordinates.floor().long()
    high = (low + 1).clamp(max=maps.shape[dimension] - 1)
    weight = (coordinates - low).to(maps.dtype).to(maps.device)
    below, above = (maps.index_select(dimension, index.to(maps.device)) for index in (low, high))
    return torch.lerp(below, above, weight.unsqueeze(1) if dimension == 2 else weight)


def resize_maps(maps: Tensor, height: int, width: int) -> Tensor:
    """Resize (B, C, h, w) maps bilinearly with aligned corners; maps of that size are returned as they are."""
    if (maps.shape[2], maps.shape[3]) == (height, width):
        return maps
    return functional.interpolate(maps, size=(height, width), mode="bilinear", align_corners=True)


def map_to_pixels(length: int, pixels: int) -> Tensor:
    """Compute the fractional pixel, out of `pixels`, under each of the `length` entries of a map, (length,)."""
    return torch.linspace(0, pixels - 1, length, dtype=torch.float64)


def pixels_to_map(coordinates: Tensor, pixels: int, length: int) -> Tensor:
    """Convert pixel coordinates to those of a map with `length` entries, the inverse of `map_to_pixels`."""
    return coordinates * ((length - 1) / max(pixels - 1, 1))


def to_resized_image(coordinates: Tensor, pixels: int, resized: int, mirrored: bool = False) -> Tensor:
    """Convert coordinates in an image side of `pixels` to those in the side mirrored, if so, and resized."""
    seen = pixels - 1 - coordinates if mirrored else coordinates
    return ((seen + 0.5) * (resized / pixels) - 0.5).clamp(0, resized - 1)
