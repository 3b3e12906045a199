"""Winograd convolution F(4x4, 3x3) for CPU inference (Lavin and Gray, arXiv 1509.09308).

A tile of 6x6 inputs becomes 4x4 outputs by 36 products where the direct method needs 144. In fp32 results differ from
it by about 1e-5 of their size. Wide convolutions over large maps gain; others use the direct method.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers.common import Conv, use_cpu_kernels

MIN_CHANNELS, MIN_PIXELS = 128, 1024  # with less, direct convolutions measured as fast
TILE = 4  # output pixels per side
BUFFER_ELEMENTS = 1_200_000  # in each of two buffers: more exceed the CPU's caches, fewer make short products

_INPUT = (
    (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1),
)  # fmt: skip
_KERNEL = (
    (1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1),
)  # fmt: skip
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_BIAS_PRODUCT = 7  # the second in both directions: it enters all 16 outputs with factor 1, so a bias can be added there


@lru_cache(maxsize=3)
def _squared(rows: tuple[tuple[float, ...], ...]) -> Tensor:
    """Build the transform of both directions at once."""
    with torch.inference_mode(False):  # a matrix cached during inference must also serve elsewhere
        one = torch.tensor(rows, dtype=torch.float32)
        return torch.kron(one, one)


def use_winograd(x: Tensor, weight: Tensor) -> bool:
    """Check whether the Winograd method is applicable and faster for a 3x3 convolution of `x` with `weight`."""
    needs_grad = x.requires_grad or (torch.is_grad_enabled() and weight.requires_grad) or weight.is_inference()
    excluded = needs_grad or torch.is_autocast_enabled("cpu") or not use_cpu_kernels(x)
    fits = x.dtype == weight.dtype == torch.float32
    large = min(weight.shape[:2]) >= MIN_CHANNELS and x.shape[2] * x.shape[3] >= MIN_PIXELS
    return fits and large and not excluded


def transform_kernel(weight: Tensor) -> Tensor:
    """Transform a kernel (out_channels, in_channels, 3, 3) to (36, in_channels, out_channels)."""
    kernel = _squared(_KERNEL)  # (36, 9)
    flat = weight.detach().permute(2, 3, 1, 0).reshape(9, -1)
    return (kernel @ flat).view(36, weight.shape[1], weight.shape[0])


def winograd_conv3x3(
    maps: Sequence[Tensor], kernel: Tensor, bias: Tensor | None, factors: Tensor | None = None, silu: bool = False
) -> Tensor:
    """Convolve concatenated maps with a transformed kernel, padding 1.

    The map is processed in strips of tiles that fit into the CPU's cache; their buffers are allocated once.

    Args:
        maps: (B, C_i, H, W) each, `in_channels` together.
        kernel: (36, in_channels, out_channels), from `transform_kernel`.
        bias: (out_channels,) or None.
        factors: (B, in_channels, 1, 1), multiplied with the only map first.
        silu: apply SiLU to the result.

    Returns:
        (B, out_channels, H, W).
    """
    (batch, _, height, width), (_, c1, c2) = maps[0].shape, kernel.shape
    down, across = -(-height // TILE), -(-width // TILE)
    strip = min(max(BUFFER_ELEMENTS // (36 * max(c1, c2) * batch * across), 1), down)
    first, most = maps[0], batch * strip * across
    padded = first.new_empty(batch, TILE * strip + 2, TILE * across + 2, c1)
    padded[:, :, 0] = 0
    padded[:, :, width + 1 :] = 0
    image, row, column, _ = padded.stride()
    strides = (row, column, image, TILE * row, TILE * column, 1)
    before, after = _squared(_INPUT), _squared(_OUTPUT)
    one, other = (first.new_empty(36 * most * max(c1, c2)) for _ in range(2))  # each step reads one, writes the other
    output = first.new_empty(batch, down, TILE, across, TILE, c2)
    for top in range(0, down, strip):
        count = min(strip, down - top)
        tiles_here = batch * count * across
        _copy_rows(padded, maps, TILE * top - 1, factors)
        windows = padded.as_strided((6, 6, batch, count, across, c1), strides)
        tiles = _as_matrix(one, 36, tiles_here * c1)
        tiles.view(windows.shape).copy_(windows)
        inputs = torch.mm(before, tiles, out=_as_matrix(other, 36, tiles_here * c1)).view(36, tiles_here, c1)
        products = _as_matrix(one, 36, tiles_here * c2)
        torch.bmm(inputs, kernel, out=products.view(36, tiles_here, c2))
        if bias is not None:
            products[_BIAS_PRODUCT].view(tiles_here, c2).add_(bias)
        result = torch.mm(after, products, out=_as_matrix(other, 16, tiles_here * c2))
        result = result.view(TILE, TILE, batch, count, across, c2).permute(2, 3, 0, 4, 1, 5)
        target = output[:, top : top + count]
        if silu:
            torch.ops.aten.silu.out(result, out=target)
        else:
            target.copy_(result)
    return output.view(batch, down * TILE, across * TILE, c2)[:, :height, :width].permute(0, 3, 1, 2)


def _as_matrix(flat: Tensor, rows: int, length: int) -> Tensor:
    """View the beginning of a vector as a matrix."""
    return flat[: rows * length].view(rows, length)


def _copy_rows(padded: Tensor, maps: Sequence[Tensor], first: int, factors: Tensor | None) -> None:
    """Fill (B, rows, W + border, C) with the concatenated maps from row `first` on, zeros outside.

    With `factors` (B, C, 1, 1) the channels of the only map are multiplied during the copy.
    """
    height, width = maps[0].shape[2:]
    start, end = max(first, 0), min(first + padded.shape[1], height)
    padded[:, : start - first] = 0
    padded[:, end - first :] = 0
    inner = padded[:, start - first : end - first, 1 : width + 1]
    if factors is not None:
        (whole,) = maps
        torch.mul(whole[:, :, start:end].permute(0, 2, 3, 1), factors.permute(0, 2, 3, 1), out=inner)
        return
    for part, target in zip(maps, inner.split([part.shape[1] for part in maps], dim=3), strict=True):
        target.copy_(part[:, :, start:end].permute(0, 2, 3, 1))


class WideConv(Conv):
    """3x3 `Conv` with the same state that uses the Winograd method where that is faster."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3)
        self._kernels: dict[int, tuple[tuple[int, int, int], Tensor]] = {}  # transformed, by number of input channels

    def __getstate__(self) -> dict[str, object]:
        """Exclude the transformed kernels from copies."""
        return {**self.__dict__, "_kernels": {}}

    def forward(self, *maps: Tensor, factors: Tensor | None = None) -> Tensor:
        """Map (B, C_i, H, W), `in_channels` together, to (B, out_channels, H, W).

        `factors` (B, in_channels, 1, 1) are multiplied with a single map first.
        """
        if not use_winograd(maps[0], self.conv.weight):
            joined = maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
            return super().forward(joined if factors is None else joined * factors)
        kernel = self._kernel(self.conv.weight)
        output = winograd_conv3x3(maps, kernel, self.conv.bias, factors, silu=self.is_fused_silu)
        return output if self.is_fused_silu else self.norm_act(output)

    def convolve_leading(self, x: Tensor) -> Tensor:
        """Convolve the first channels of the input, (B, C, H, W), without normalisation."""
        weight = self.conv.weight[:, : x.shape[1]]
        if not use_winograd(x, self.conv.weight):
            return functional.conv2d(x, weight, self.conv.bias, padding=1)
        return winograd_conv3x3([x], self._kernel(weight), self.conv.bias)

    def _kernel(self, weight: Tensor) -> Tensor:
        """Transform the kernel; a fused network, which is no longer trained, caches the result."""
        if isinstance(self.bn, nn.BatchNorm2d):
            return transform_kernel(weight)
        own = self.conv.weight
        version = (id(own), own._version, own.data_ptr())
        cached = self._kernels.get(weight.shape[1])
        if cached is None or cached[0] != version:
            cached = self._kernels[weight.shape[1]] = (version, transform_kernel(weight))
        return cached[1]
