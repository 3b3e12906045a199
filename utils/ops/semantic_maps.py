"""Maps with a score per class and pixel: enlarging them, and the class of every pixel (behaviour.md 12.7)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.core.contracts import IGNORED_PIXEL, Geometry
from utils.core.errors import UserError

_CPU_CHUNK = 2**18  # numbers in a tile: what stays in a core's cache
_CPU_WIDTH = 256  # of a tile: products with wider matrices, which are mostly zeros, cost more
_GPU_CHUNK = 2**26
_PIXELS = 2**16  # of mixed cells, computed at a time


# ----------------------------------------------------------------------------------------------------------------------
# Where an image's pixels lie on a smaller map


def aligned_grid(size_hw: tuple[int, int], map_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return (H,) rows and (W,) columns on an (h, w) map that covers H x W pixels, corners on corners (float64)."""
    rows, columns = (_evenly(pixels, cells) for pixels, cells in zip(size_hw, map_hw, strict=True))
    return rows, columns


def original_grid(geometry: Geometry, map_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return (H,) rows and (W,) columns, float64, of an original image's pixels on an (h, w) map of the network.

    Corners lie on corners: those of the original on those of its resized self within the network's input, and those of
    the input on those of the map. The input's borders are never looked at.
    """
    axes = []
    for axis in (0, 1):
        original, network = geometry.original_hw[axis], geometry.network_hw[axis]
        scale, pad = geometry.scale_xy[1 - axis], geometry.pad_xy[1 - axis]
        inner, first = max(1, round(original * scale)), round(pad - 0.1)  # as utils.ops.letterbox places it
        pixels = first + _evenly(original, inner)
        step = (map_hw[axis] - 1) / (network - 1) if network > 1 else 0.0
        axes.append((pixels * step).clamp(0, map_hw[axis] - 1))
    return axes[0], axes[1]


def _evenly(count: int, cells: int) -> Tensor:
    """Return `count` positions from the first to the last of `cells`; a single one is the first, as in PyTorch."""
    return torch.arange(count, dtype=torch.float64) * ((cells - 1) / max(count - 1, 1))


class Tile(NamedTuple):
    """A part of the large map, and the part of the small one that it is made of."""

    rows: slice  # of the large map
    columns: slice
    small_rows: slice
    small_columns: slice
    down: Tensor  # (large rows, small rows) weights
    along: Tensor  # (small columns, large columns) weights


class BilinearUpsampler:
    """Bilinear enlarging of (C, h, w) maps as products with two small matrices, a tile at a time.

    `rows` (H,) and `columns` (W,) are the rising positions of the large map's pixels on the small one. Tiles keep what
    is in memory small, and in a core's cache on a CPU; products give the same in every run also on a GPU, where
    PyTorch's own backward pass adds in any order.
    """

    def __init__(self, rows: Tensor, columns: Tensor, map_hw: tuple[int, int], device: torch.device) -> None:
        self.size_hw = (len(rows), len(columns))
        self._device = device
        self._first, self._weights = [], []
        with torch.inference_mode(False):  # what is kept from scoring must serve in training
            for positions, cells in zip((rows, columns), map_hw, strict=True):
                first, weights = _matrix(positions, cells)
                self._first.append(first.tolist())
                self._weights.append(weights.to(device))

    def tiles(self, channels: int) -> Iterator[Tile]:
        """Yield the tiles in which maps of `channels` are worked on."""
        width = self.size_hw[1]
        on_cpu = self._device.type == "cpu"
        wide = min(width, _CPU_WIDTH) if on_cpu else width
        high = max(1, (_CPU_CHUNK if on_cpu else _GPU_CHUNK) // (channels * wide))
        for rows, small_rows, down in self._parts(0, high):
            for columns, small_columns, along in self._parts(1, wide):
                yield Tile(rows, columns, small_rows, small_columns, down, along.T)

    def _parts(self, axis: int, step: int) -> Iterator[tuple[slice, slice, Tensor]]:
        first, weights = self._first[axis], self._weights[axis]
        for start in range(0, len(first), step):
            end = min(start + step, len(first))
            small = slice(first[start], min(first[end - 1] + 2, weights.shape[1]))
            yield slice(start, end), small, weights[start:end, small]

    def enlarge(self, logits: Tensor, tile: Tile) -> Tensor:
        """Return (C, rows, columns) of a tile of the large map."""
        return torch.matmul(tile.down, logits[:, tile.small_rows, tile.small_columns]) @ tile.along

    def whole(self, logits: Tensor) -> Tensor:
        """Return the (C, H, W) large map."""
        return torch.matmul(self._weights[0], logits) @ self._weights[1].T

    def gather(self, slope: Tensor, tile: Tile, into: Tensor) -> None:
        """Add the gradient of a tile, (C, rows, columns), to that of the small map, (C, h, w)."""
        into[:, tile.small_rows, tile.small_columns] += torch.matmul(tile.down.T, slope @ tile.along.T)


@lru_cache(maxsize=16)
def aligned_upsampler(size_hw: tuple[int, int], map_hw: tuple[int, int], device: torch.device) -> BilinearUpsampler:
    """Return what enlarges (C, h, w) maps to H x W pixels, corners on corners; kept for the next time."""
    return BilinearUpsampler(*aligned_grid(size_hw, map_hw), map_hw, device)


def _matrix(positions: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return (N,) first cells and the (N, cells) float32 weights of a bilinear look-up along one axis."""
    first, share = _split(positions, cells)
    weights = torch.zeros((len(positions), cells), dtype=torch.float32)
    number = torch.arange(len(positions))
    weights[number, first] = 1 - share
    weights[number, (first + 1).clamp(max=cells - 1)] += share
    return first, weights


def _split(positions: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return the cell in which each position lies and its float32 share of the way to the next."""
    positions = torch.as_tensor(positions, dtype=torch.float64).cpu().clamp(0, cells - 1)
    if len(positions) and bool((positions.diff() < 0).any()):
        raise ValueError("positions must rise")
    first = positions.floor().clamp(max=max(cells - 2, 0)).long()
    return first, (positions - first).float()


# ----------------------------------------------------------------------------------------------------------------------
# The class of every pixel


def class_map(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return (H, W) uint8, the class with the greatest bilinearly interpolated score at every pixel.

    `logits` is (C, h, w) with at most 255 classes; `rows` (H,) and `columns` (W,) are rising positions on it, as
    `aligned_grid` and `original_grid` give them. Of equal scores the first class wins. The result is on the device of
    `logits`.

    On a CPU only cells whose four corners disagree are interpolated: where one class wins all corners it wins
    everywhere between them. In the others only classes are computed that could win there: those whose greatest corner
    reaches what some class has at all corners. The result is that of interpolating everything, but for scores that are
    equal up to the rounding of float32.
    """
    classes, height, width = logits.shape
    if classes > IGNORED_PIXEL:
        raise UserError(f"{classes} classes per pixel: at most {IGNORED_PIXEL} fit into maps of 8 bits")
    logits = logits.detach().float()
    if logits.device.type != "cpu":
        return _class_map_plain(logits, BilinearUpsampler(rows, columns, (height, width), logits.device))
    axes = [
        _axis(positions.cpu().double().numpy().tobytes(), cells)
        for positions, cells in ((rows, height), (columns, width))
    ]
    return torch.from_numpy(_class_map_cells(np.ascontiguousarray(logits.numpy()), axes[0], axes[1]))


def _class_map_plain(logits: Tensor, enlarging: BilinearUpsampler) -> Tensor:
    found = torch.empty(enlarging.size_hw, dtype=torch.uint8, device=logits.device)
    for tile in enlarging.tiles(len(logits)):
        found[tile.rows, tile.columns] = enlarging.enlarge(logits, tile).argmax(dim=0)
    return found


class _Axis(NamedTuple):
    """The pixels along one axis of the large map, by the cell of the small one in which they lie."""

    cell: np.ndarray  # (N,) of each pixel
    pixels: np.ndarray  # (k, cells) numbers of a cell's pixels, the last repeated to fill up
    shares: np.ndarray  # (k, cells) float32 way of these to the next cell
    held: np.ndarray  # (cells,) bool: whether a cell has pixels


@lru_cache(maxsize=32)
def _axis(positions: bytes, cells: int) -> _Axis:
    """Return the cells of pixels at float64 positions; images of one size share them."""
    first, share = (part.numpy() for part in _split(torch.from_numpy(np.frombuffer(positions).copy()), cells))
    numbers = np.arange(max(cells - 1, 1))
    start, end = np.searchsorted(first, numbers), np.searchsorted(first, numbers, side="right")
    most = int((end - start).max(initial=1))
    pixels = np.minimum(start + np.arange(most)[:, None], np.maximum(end - 1, 0))
    pixels = np.minimum(pixels, max(len(first) - 1, 0))
    return _Axis(first, pixels, share[pixels], end > start)


def _class_map_cells(logits: np.ndarray, rows: _Axis, columns: _Axis) -> np.ndarray:
    """Return the (H, W) uint8 map of (C, h, w) contiguous scores."""
    height, width = logits.shape[1:]
    corner = _greatest(logits)
    found = corner.take(columns.cell, axis=1).take(rows.cell, axis=0)
    below, right = (1 if height > 1 else 0), (1 if width > 1 else 0)
    first = corner[: height - below, : width - right]
    mixed = np.zeros(first.shape, bool)
    for down, along in ((0, right), (below, 0), (below, right)):
        mixed |= first != corner[down : height - below + down, along : width - right + along]
    mixed &= rows.held[:, None] & columns.held[None]
    cells = np.stack(np.nonzero(mixed))  # (2, n)
    flat, pixels = logits.reshape(len(logits), -1), torch.from_numpy(found).view(-1)
    step = max(1, _PIXELS // max(1, len(rows.pixels) * len(columns.pixels)))
    for start in range(0, cells.shape[1], step):
        row, column = cells[:, start : start + step]
        corners = [flat.take((row + d) * width + column + a, axis=1) for d in (0, below) for a in (0, right)]
        order, winners = _winners(corners, rows.shares.take(row, axis=1), columns.shares.take(column, axis=1))
        row, column = row[order], column[order]
        numbers = rows.pixels.take(row, axis=1)[:, None] * found.shape[1] + columns.pixels.take(column, axis=1)
        pixels.scatter_(0, torch.from_numpy(numbers).view(-1), torch.from_numpy(winners).view(-1))
    return found


def _greatest(logits: np.ndarray) -> np.ndarray:
    """Return the (h, w) uint8 first class with the greatest score, as argmax does in several times the time."""
    best, winners = logits[0].copy(), np.zeros(logits.shape[1:], np.uint8)
    for label in range(1, len(logits)):
        better = (logits[label] > best).view(np.uint8)
        winners ^= (winners ^ np.uint8(label)) * better
        np.maximum(best, logits[label], out=best)
    return winners


def _winners(corners: list[np.ndarray], down: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an order of n cells, and in that order the (kr, kc, n) uint8 winners inside them.

    `corners` are four arrays (C, n) of scores, `down` (kr, n) and `along` (kc, n) shares of the way. Cells stand in
    the last dimension, since NumPy is fast only along a long one.
    """
    highest = np.maximum(np.maximum(corners[0], corners[1]), np.maximum(corners[2], corners[3]))
    lowest = np.minimum(np.minimum(corners[0], corners[1]), np.minimum(corners[2], corners[3]))
    able = highest >= lowest.max(axis=0)  # (C, n): whether a class can win anywhere in a cell
    counts = able.sum(axis=0)
    order = np.argsort(-counts, kind="stable")  # cells in which most classes can win first
    counts, able = counts[order], able[:, order]
    labels, firsts = np.nonzero(np.ascontiguousarray(able.T))[1], np.cumsum(counts) - counts
    sizes = np.searchsorted(-counts, -np.arange(counts.max(initial=0)))  # of how many cells a class is looked at
    flat = [corner.reshape(-1) for corner in corners]
    down, along = down.take(order, axis=1), along.take(order, axis=1)  # contiguous, unlike indexing's
    winners = np.zeros((len(down), len(along), len(order)), np.uint8)  # 0 stays where scores are no numbers
    best = np.empty(winners.shape, np.float32)
    for turn, size in enumerate(sizes.tolist()):  # the next class of each cell that has so many, in rising order
        some = slice(0, size)
        label = labels.take(firsts[some] + turn)
        numbers = label * len(order) + order[some]
        values = _inside([corner.take(numbers) for corner in flat], down[:, some], along[:, some])
        label = label.astype(np.uint8)
        if turn == 0:
            winners[..., some], best[..., some] = label, values
            continue
        better = (values > best[..., some]).view(np.uint8)
        winners[..., some] ^= (winners[..., some] ^ label) * better  # many times as fast as masked copying
        np.maximum(best[..., some], values, out=best[..., some])
    return order, winners


def _inside(corners: list[np.ndarray], down: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Return (kr, kc, m) bilinear values inside m cells with (m,) values at their corners."""
    upper, lower = (left + (right - left) * along for left, right in (corners[:2], corners[2:]))  # (kc, m)
    return upper + (lower - upper) * down[:, None]
