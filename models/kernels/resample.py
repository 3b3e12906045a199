"""Maps looked up between their pixels, and where the pixels of one map lie in another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def resample(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return (B, C, H, W) bilinear values of (B, C, h, w) maps at fractional rows (H,) and columns (W,).

    Places outside take the value of the nearest border.
    """
    return _interpolated(_interpolated(maps, rows, 2), columns, 3)


def _interpolated(maps: Tensor, places: Tensor, dimension: int) -> Tensor:
    places = places.double().clamp(0, maps.shape[dimension] - 1)  # where the places are: not every device has doubles
    low = places.floor().long()
    high = (low + 1).clamp(max=maps.shape[dimension] - 1)
    weight = (places - low).to(maps.dtype).to(maps.device)
    below, above = (maps.index_select(dimension, index.to(maps.device)) for index in (low, high))
    return torch.lerp(below, above, weight.unsqueeze(1) if dimension == 2 else weight)


def resized(maps: Tensor, height: int, width: int) -> Tensor:
    """Return (B, C, H, W) maps of another size, bilinear, corners on corners; of the same size the same."""
    if (maps.shape[2], maps.shape[3]) == (height, width):
        return maps
    return functional.interpolate(maps, size=(height, width), mode="bilinear", align_corners=True)


def pixels_of(length: int, pixels: int) -> Tensor:
    """Return the fractional pixels, of `pixels`, that a map of `length` entries stands for, corners on corners."""
    return torch.linspace(0, pixels - 1, length, dtype=torch.float64)


def entries_of(places: Tensor, pixels: int, length: int) -> Tensor:
    """Return where pixels of `pixels` lie in a map of `length`: the reverse of `pixels_of`."""
    return places * ((length - 1) / max(pixels - 1, 1))


def in_resized(places: Tensor, pixels: int, used: int, mirrored: bool = False) -> Tensor:
    """Return where pixels of an image of `pixels` lie after it was mirrored, if so, and resized to `used`."""
    seen = pixels - 1 - places if mirrored else places
    return ((seen + 0.5) * (used / pixels) - 0.5).clamp(0, used - 1)
