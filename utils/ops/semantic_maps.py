"""Bilinear upsampling of semantic logits, and the arg-max class of every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.core.contracts import IGNORED_PIXEL, Geometry
from utils.core.errors import UserError

_CPU_CHUNK = 2**18  # elements of a tile that fit into the cache of a core
_CPU_WIDTH = 256  # columns of a tile: wider interpolation matrices consist mostly of zeros
_GPU_CHUNK = 2**26
_MIXED_PIXELS = 2**16  # pixels of mixed cells computed at a time


# ----------------------------------------------------------------------------------------------------------------------
# Sampling grids


def aligned_grid(size_hw: tuple[int, int], map_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the positions of H x W pixels on an (h, w) map with aligned corners.

    Args:
        size_hw: H and W.
        map_hw: h and w.

    Returns:
        Rows (H,) and columns (W,), float64.
    """
    rows, columns = (_linspace(pixels, cells) for pixels, cells in zip(size_hw, map_hw, strict=True))
    return rows, columns


def original_grid(geometry: Geometry, map_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the positions of the pixels of an original image on an (h, w) map of the network.

    The corners of the original are aligned with those of its resized version inside the network's input, and the
    corners of the input with those of the map. Letterbox borders are not sampled.

    Args:
        geometry: Letterbox transform of the image.
        map_hw: h and w.

    Returns:
        Rows (H,) and columns (W,) for the H x W pixels of the original, float64.
    """
    axes = []
    for axis in (0, 1):
        original, network = geometry.original_hw[axis], geometry.network_hw[axis]
        scale, pad = geometry.scale_xy[1 - axis], geometry.pad_xy[1 - axis]
        inner, first = max(1, round(original * scale)), round(pad - 0.1)  # as in utils.ops.letterbox
        pixels = first + _linspace(original, inner)
        step = (map_hw[axis] - 1) / (network - 1) if network > 1 else 0.0
        axes.append((pixels * step).clamp(0, map_hw[axis] - 1))
    return axes[0], axes[1]


def _linspace(count: int, cells: int) -> Tensor:
    """Return `count` positions from 0 to `cells` - 1; a single one is 0, as in PyTorch."""
    return torch.arange(count, dtype=torch.float64) * ((cells - 1) / max(count - 1, 1))


# ----------------------------------------------------------------------------------------------------------------------
# Upsampling


class Tile(NamedTuple):
    """Part of the large map, with the part of the small map it is interpolated from."""

    rows: slice  # of the large map
    columns: slice
    small_rows: slice
    small_columns: slice
    row_weights: Tensor  # (large rows, small rows)
    column_weights: Tensor  # (small columns, large columns)


class BilinearUpsampler:
    """Bilinear interpolation of (..., C, h, w) maps as products with two small matrices, tile by tile.

    Tiles bound the memory and, on a CPU, fit into the cache. Matrix products are deterministic on a GPU, unlike the
    backward pass of PyTorch's `interpolate`.

    Args:
        rows: (H,) non-decreasing row positions of the large map's pixels on the small map.
        columns: (W,) the same for columns.
        map_hw: h and w.
        device: Device of the maps.

    Raises:
        ValueError: If positions decrease.
    """

    def __init__(self, rows: Tensor, columns: Tensor, map_hw: tuple[int, int], device: torch.device) -> None:
        self.size_hw = (len(rows), len(columns))
        self._device = device
        self._first_cells, self._weights = [], []
        with torch.inference_mode(False):  # cached instances serve inference and training
            for positions, cells in zip((rows, columns), map_hw, strict=True):
                first, weights = _interpolation_matrix(positions, cells)
                self._first_cells.append(first.tolist())
                on_gpu = device.type == "cuda"
                self._weights.append((weights.pin_memory() if on_gpu else weights).to(device, non_blocking=on_gpu))

    def images_per_pass(self, channels: int) -> int:
        """Get the number of images with this number of channels to upsample at once.

        Several on a GPU if they fit into one tile, which saves kernel launches; one on a CPU.
        """
        if self._device.type == "cpu":
            return 1
        return max(1, _GPU_CHUNK // max(1, channels * self.size_hw[0] * self.size_hw[1]))

    def tiles(self, channels: int) -> Iterator[Tile]:
        """Yield the tiles that cover the large map, sized for maps with this number of channels."""
        width = self.size_hw[1]
        on_cpu = self._device.type == "cpu"
        tile_w = min(width, _CPU_WIDTH) if on_cpu else width
        tile_h = max(1, (_CPU_CHUNK if on_cpu else _GPU_CHUNK) // (channels * tile_w))
        for rows, small_rows, row_weights in self._axis_parts(0, tile_h):
            for columns, small_columns, column_weights in self._axis_parts(1, tile_w):
                yield Tile(rows, columns, small_rows, small_columns, row_weights, column_weights.T)

    def _axis_parts(self, axis: int, step: int) -> Iterator[tuple[slice, slice, Tensor]]:
        first, weights = self._first_cells[axis], self._weights[axis]
        for start in range(0, len(first), step):
            end = min(start + step, len(first))
            small = slice(first[start], min(first[end - 1] + 2, weights.shape[1]))
            yield slice(start, end), small, weights[start:end, small]

    def upsample_tile(self, logits: Tensor, tile: Tile) -> Tensor:
        """Return the (..., C, rows, columns) tile of the upsampled (..., C, h, w) logits."""
        return torch.matmul(tile.row_weights, logits[..., tile.small_rows, tile.small_columns]) @ tile.column_weights

    def upsample(self, logits: Tensor) -> Tensor:
        """Return the upsampled (C, H, W) logits."""
        return torch.matmul(self._weights[0], logits) @ self._weights[1].T

    def accumulate_gradient(self, grad_tile: Tensor, tile: Tile, grad_logits: Tensor) -> None:
        """Add the gradient of a (..., C, rows, columns) tile to that of the (..., C, h, w) logits, in place."""
        grad = torch.matmul(tile.row_weights.T, grad_tile @ tile.column_weights.T)
        grad_logits[..., tile.small_rows, tile.small_columns].add_(grad)


def image_groups(grids: Sequence[BilinearUpsampler], channels: int) -> Iterator[tuple[slice, BilinearUpsampler]]:
    """Divide a batch into groups of consecutive images that one upsampler computes at once.

    Args:
        grids: Upsampler of each image.
        channels: Channels of the maps.

    Yields:
        Images of a group, and their upsampler.
    """
    start = 0
    while start < len(grids):
        grid, end = grids[start], start + 1
        limit = min(len(grids), start + grid.images_per_pass(channels))
        while end < limit and grids[end] is grid:
            end += 1
        yield slice(start, end), grid
        start = end


def original_upsampler(geometry: Geometry, map_hw: tuple[int, int], device: torch.device) -> BilinearUpsampler:
    """Return the upsampler from (h, w) to the original image, see `original_grid`; instances are cached."""
    rows, columns = original_grid(geometry, map_hw)
    return _upsampler(_to_bytes(rows), _to_bytes(columns), map_hw, device)


@lru_cache(maxsize=32)
def _upsampler(rows: bytes, columns: bytes, map_hw: tuple[int, int], device: torch.device) -> BilinearUpsampler:
    """Create an upsampler from float64 positions; cached, because images of one size share the matrices."""
    return BilinearUpsampler(_from_bytes(rows), _from_bytes(columns), map_hw, device)


def _to_bytes(positions: Tensor) -> bytes:
    return positions.cpu().double().numpy().tobytes()


def _from_bytes(positions: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(positions).copy())


@lru_cache(maxsize=16)
def aligned_upsampler(size_hw: tuple[int, int], map_hw: tuple[int, int], device: torch.device) -> BilinearUpsampler:
    """Return the upsampler from (h, w) to (H, W) with aligned corners; instances are cached."""
    return BilinearUpsampler(*aligned_grid(size_hw, map_hw), map_hw, device)


def _interpolation_matrix(positions: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return the (N,) lower cells and the (N, cells) float32 weights of linear interpolation along one axis."""
    first, fraction = _split_positions(positions, cells)
    weights = torch.zeros((len(positions), cells), dtype=torch.float32)
    index = torch.arange(len(positions))
    weights[index, first] = 1 - fraction
    weights[index, (first + 1).clamp(max=cells - 1)] += fraction
    return first, weights


def _split_positions(positions: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Split positions into the int64 lower cell and the float32 fraction of the way to the next cell."""
    positions = torch.as_tensor(positions, dtype=torch.float64).cpu().clamp(0, cells - 1)
    if len(positions) and bool((positions.diff() < 0).any()):
        raise ValueError("positions must be non-decreasing")
    first = positions.floor().clamp(max=max(cells - 2, 0)).long()
    return first, (positions - first).float()


# ----------------------------------------------------------------------------------------------------------------------
# Arg-max


def class_map(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the class with the highest bilinearly interpolated score at every pixel.

    On a CPU, only grid cells whose four corners have different winners are interpolated: a class that wins at all
    corners wins everywhere between them. In these cells only classes whose highest corner reaches the highest of all
    classes' lowest corners are computed, since the others cannot win. The result equals full interpolation, except for
    scores that are equal up to float32 rounding.

    Args:
        logits: (C, h, w) scores of at most 255 classes.
        rows: (H,) non-decreasing positions on the map, from `aligned_grid` or `original_grid`.
        columns: (W,) the same for columns.

    Returns:
        (H, W) uint8 on the device of `logits`; the first of several classes with equal scores wins.

    Raises:
        UserError: If there are more than 255 classes.
    """
    classes, height, width = logits.shape
    if classes > IGNORED_PIXEL:
        raise UserError(f"semantic maps hold at most {IGNORED_PIXEL} classes, got {classes}")
    logits = logits.detach().float()
    if logits.device.type != "cpu":
        upsampler = _upsampler(_to_bytes(rows), _to_bytes(columns), (height, width), logits.device)
        return _class_map_by_tiles(logits, upsampler)
    axes = [_axis_cells(_to_bytes(positions), cells) for positions, cells in ((rows, height), (columns, width))]
    return torch.from_numpy(_class_map_by_cells(np.ascontiguousarray(logits.numpy()), axes[0], axes[1]))


def class_maps(logits: Tensor, geometries: Sequence[Geometry]) -> list[Tensor]:
    """Compute the `class_map` of every original image of a batch, on a GPU of several images at once.

    Args:
        logits: (B, C, h, w) scores of at most 255 classes.
        geometries: Letterbox transforms of the images.

    Returns:
        Per image (H, W) uint8 on the device of `logits`.

    Raises:
        UserError: If there are more than 255 classes.
    """
    map_hw = (logits.shape[2], logits.shape[3])
    if logits.device.type == "cpu" or logits.shape[1] > IGNORED_PIXEL:
        grids = [original_grid(geometry, map_hw) for geometry in geometries]
        return [class_map(scores, *grid) for scores, grid in zip(logits, grids, strict=True)]
    logits = logits.detach().float()
    upsamplers = [original_upsampler(geometry, map_hw, logits.device) for geometry in geometries]
    maps: list[Tensor] = []
    for images, upsampler in image_groups(upsamplers, logits.shape[1]):
        maps += _class_map_by_tiles(logits[images], upsampler).unbind()
    return maps


def _class_map_by_tiles(logits: Tensor, upsampler: BilinearUpsampler) -> Tensor:
    """Compute (..., H, W) maps of (..., C, h, w) logits, all images at once."""
    *images, classes, _, _ = logits.shape
    result = torch.empty((*images, *upsampler.size_hw), dtype=torch.uint8, device=logits.device)
    for tile in upsampler.tiles(classes):
        result[..., tile.rows, tile.columns] = upsampler.upsample_tile(logits, tile).argmax(dim=-3)
    return result


class _AxisCells(NamedTuple):
    """Pixels along one axis of the large map, grouped by the cell of the small map that contains them."""

    cell: np.ndarray  # (N,) cell of each pixel
    pixels: np.ndarray  # (k, cells) pixels of each cell, padded with the last one
    fractions: np.ndarray  # (k, cells) float32 fraction of the way from the cell to the next, for these pixels
    occupied: np.ndarray  # (cells,) bool: the cell contains pixels


@lru_cache(maxsize=32)
def _axis_cells(positions: bytes, cells: int) -> _AxisCells:
    """Group pixels at float64 positions by cell; cached, because images of one size share the result."""
    first, fraction = (part.numpy() for part in _split_positions(_from_bytes(positions), cells))
    numbers = np.arange(max(cells - 1, 1))
    start, end = np.searchsorted(first, numbers), np.searchsorted(first, numbers, side="right")
    most = int((end - start).max(initial=1))
    pixels = np.minimum(start + np.arange(most)[:, None], np.maximum(end - 1, 0))
    pixels = np.minimum(pixels, max(len(first) - 1, 0))
    return _AxisCells(first, pixels, fraction[pixels], end > start)


def _class_map_by_cells(logits: np.ndarray, rows: _AxisCells, columns: _AxisCells) -> np.ndarray:
    """Compute the (H, W) uint8 map from (C, h, w) contiguous scores, interpolating in mixed cells only."""
    height, width = logits.shape[1:]
    winners_at_corners = _argmax(logits)
    result = winners_at_corners.take(columns.cell, axis=1).take(rows.cell, axis=0)
    below, right = (1 if height > 1 else 0), (1 if width > 1 else 0)
    top_left = winners_at_corners[: height - below, : width - right]
    mixed = np.zeros(top_left.shape, bool)
    for dy, dx in ((0, right), (below, 0), (below, right)):
        mixed |= top_left != winners_at_corners[dy : height - below + dy, dx : width - right + dx]
    mixed &= rows.occupied[:, None] & columns.occupied[None]
    cells = np.stack(np.nonzero(mixed))  # (2, n)
    flat, pixels = logits.reshape(len(logits), -1), torch.from_numpy(result).view(-1)
    step = max(1, _MIXED_PIXELS // max(1, len(rows.pixels) * len(columns.pixels)))
    for start in range(0, cells.shape[1], step):
        row, column = cells[:, start : start + step]
        corners = [flat.take((row + dy) * width + column + dx, axis=1) for dy in (0, below) for dx in (0, right)]
        order, winners = _winners_in_cells(
            corners, rows.fractions.take(row, axis=1), columns.fractions.take(column, axis=1)
        )
        row, column = row[order], column[order]
        numbers = rows.pixels.take(row, axis=1)[:, None] * result.shape[1] + columns.pixels.take(column, axis=1)
        pixels.scatter_(0, torch.from_numpy(numbers).view(-1), torch.from_numpy(winners).view(-1))
    return result


def _argmax(logits: np.ndarray) -> np.ndarray:
    """Return the (h, w) uint8 arg-max over classes, several times as fast as `np.argmax` along the first axis."""
    best, winners = logits[0].copy(), np.zeros(logits.shape[1:], np.uint8)
    for label in range(1, len(logits)):
        better = (logits[label] > best).view(np.uint8)
        winners ^= (winners ^ np.uint8(label)) * better
        np.maximum(best, logits[label], out=best)
    return winners


def _winners_in_cells(
    corners: list[np.ndarray], row_fractions: np.ndarray, column_fractions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the winning classes of the pixels in n cells.

    Cells are the last dimension of all arrays, because NumPy is fast only along a long contiguous one.

    Args:
        corners: Scores (C, n) at the upper left, upper right, lower left and lower right corner.
        row_fractions: (kr, n) vertical positions of the pixels in their cell, from 0 to 1.
        column_fractions: (kc, n) horizontal positions.

    Returns:
        An order of the cells (n,), and in that order the (kr, kc, n) uint8 winners.
    """
    highest = np.maximum(np.maximum(corners[0], corners[1]), np.maximum(corners[2], corners[3]))
    lowest = np.minimum(np.minimum(corners[0], corners[1]), np.minimum(corners[2], corners[3]))
    possible = highest >= lowest.max(axis=0)  # (C, n): the class can win somewhere in the cell
    counts = possible.sum(axis=0)
    order = np.argsort(-counts, kind="stable")  # cells with the most possible winners first
    counts, possible = counts[order], possible[:, order]
    labels, firsts = np.nonzero(np.ascontiguousarray(possible.T))[1], np.cumsum(counts) - counts
    sizes = np.searchsorted(-counts, -np.arange(counts.max(initial=0)))  # number of cells with more than i candidates
    flat = [corner.reshape(-1) for corner in corners]
    row_fractions = row_fractions.take(order, axis=1)  # `take` returns contiguous arrays, unlike indexing
    column_fractions = column_fractions.take(order, axis=1)
    winners = np.zeros((len(row_fractions), len(column_fractions), len(order)), np.uint8)  # stays 0 for NaN scores
    best = np.empty(winners.shape, np.float32)
    for candidate, size in enumerate(sizes.tolist()):  # the i-th possible winner of each cell, in rising order
        some = slice(0, size)
        label = labels.take(firsts[some] + candidate)
        numbers = label * len(order) + order[some]
        values = _interpolate_in_cells(
            [corner.take(numbers) for corner in flat], row_fractions[:, some], column_fractions[:, some]
        )
        label = label.astype(np.uint8)
        if candidate == 0:
            winners[..., some], best[..., some] = label, values
            continue
        better = (values > best[..., some]).view(np.uint8)
        winners[..., some] ^= (winners[..., some] ^ label) * better  # much faster than assignment with a mask
        np.maximum(best[..., some], values, out=best[..., some])
    return order, winners


def _interpolate_in_cells(
    corners: list[np.ndarray], row_fractions: np.ndarray, column_fractions: np.ndarray
) -> np.ndarray:
    """Return (kr, kc, m) bilinear values inside m cells with (m,) values at each of their four corners."""
    upper, lower = (left + (right - left) * column_fractions for left, right in (corners[:2], corners[2:]))  # (kc, m)
    return upper + (lower - upper) * row_fractions[:, None]
