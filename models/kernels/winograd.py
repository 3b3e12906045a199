"""3x3 convolutions with a quarter of the multiplications, for inference on CPUs (Lavin and Gray, arXiv 1509.09308).

Of F(4x4, 3x3): a tile of 6x6 inputs becomes 4x4 outputs by 36 products where the plain way needs 144. In fp32 results
differ from the plain way by about 1e-5 of their size. Wide convolutions over large maps gain; the rest stays plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers.common import Conv

MIN_CHANNELS, MIN_PIXELS = 128, 1024  # below, plain convolutions measured as fast
TILE = 4
NUMBERS_AT_ONCE = 1_200_000  # in each of two buffers: larger ones leave the caches, smaller ones make short products

_INPUT = (
    (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1),
)  # fmt: skip
_KERNEL = (
    (1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1),
)  # fmt: skip
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_ONES = 7  # the product, second in both directions, that becomes part of all 16 outputs just as it is


@lru_cache(maxsize=3)
def _squared(rows: tuple[tuple[float, ...], ...]) -> Tensor:
    """Return the transform of both directions at once."""
    with torch.inference_mode(False):  # what is kept from inference must serve elsewhere
        one = torch.tensor(rows, dtype=torch.float32)
        return torch.kron(one, one)


def pays(x: Tensor, weight: Tensor) -> bool:
    """Tell whether a 3x3 convolution of `x` with `weight` is better done here."""
    plain = x.requires_grad or (torch.is_grad_enabled() and weight.requires_grad) or weight.is_inference()
    left_alone = plain or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch.jit.is_tracing()
    fits = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    large = min(weight.shape[:2]) >= MIN_CHANNELS and x.shape[2] * x.shape[3] >= MIN_PIXELS
    return fits and large and not left_alone


def transformed(weight: Tensor) -> Tensor:
    """Return (36, c1, c2) for a kernel (c2, c1, 3, 3)."""
    kernel = _squared(_KERNEL)  # (36, 9)
    flat = weight.detach().permute(2, 3, 1, 0).reshape(9, -1)
    return (kernel @ flat).view(36, weight.shape[1], weight.shape[0])


def convolved(
    maps: Sequence[Tensor], kernel: Tensor, bias: Tensor | None, factors: Tensor | None = None, silu: bool = False
) -> Tensor:
    """Return the 3x3 convolution, border 1, of joined maps (B, c, H, W) with a `transformed` kernel: (B, c2, H, W).

    `factors` (B, c1, 1, 1) multiply the channels of the only map before, `silu` is what comes after. Done in strips
    whose tiles fit into the processor's cache; what a strip needs is allocated once.
    """
    (batch, _, height, width), (_, c1, c2) = maps[0].shape, kernel.shape
    down, across = -(-height // TILE), -(-width // TILE)
    strip = min(max(NUMBERS_AT_ONCE // (36 * max(c1, c2) * batch * across), 1), down)
    first, most = maps[0], batch * strip * across
    padded = first.new_empty(batch, TILE * strip + 2, TILE * across + 2, c1)
    padded[:, :, 0] = 0
    padded[:, :, width + 1 :] = 0
    image, row, column, _ = padded.stride()
    strides = (row, column, image, TILE * row, TILE * column, 1)
    before, after = _squared(_INPUT), _squared(_OUTPUT)
    one, other = (first.new_empty(36 * most * max(c1, c2)) for _ in range(2))  # each step goes from one to the other
    found = first.new_empty(batch, down, TILE, across, TILE, c2)
    for top in range(0, down, strip):
        count = min(strip, down - top)
        here = batch * count * across
        _copy_rows(padded, maps, TILE * top - 1, factors)
        wanted = padded.as_strided((6, 6, batch, count, across, c1), strides)
        tiles = _rows(one, 36, here * c1)
        tiles.view(wanted.shape).copy_(wanted)
        inputs = torch.mm(before, tiles, out=_rows(other, 36, here * c1)).view(36, here, c1)
        products = _rows(one, 36, here * c2)
        torch.bmm(inputs, kernel, out=products.view(36, here, c2))
        if bias is not None:
            products[_ONES].view(here, c2).add_(bias)
        result = torch.mm(after, products, out=_rows(other, 16, here * c2))
        result = result.view(TILE, TILE, batch, count, across, c2).permute(2, 3, 0, 4, 1, 5)
        into = found[:, top : top + count]
        if silu:
            torch.ops.aten.silu.out(result, out=into)
        else:
            into.copy_(result)
    return found.view(batch, down * TILE, across * TILE, c2)[:, :height, :width].permute(0, 3, 1, 2)


def _rows(flat: Tensor, rows: int, length: int) -> Tensor:
    """Return the beginning of a vector as a matrix."""
    return flat[: rows * length].view(rows, length)


def _copy_rows(padded: Tensor, maps: Sequence[Tensor], first: int, factors: Tensor | None) -> None:
    """Copy rows from number `first` on of the joined maps (B, c, H, W) into (B, rows, W + border, c); zeros outside.

    With `factors` (B, c, 1, 1) the only map's channels are multiplied on the way.
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
    for part, into in zip(maps, inner.split([part.shape[1] for part in maps], dim=3), strict=True):
        into.copy_(part[:, :, start:end].permute(0, 2, 3, 1))


class WideConv(Conv):
    """3x3 `Conv` that takes the shorter way where it pays; its tensors have the same names."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__(c1, c2, 3)
        self._kernels: dict[int, tuple[tuple[int, int, int], Tensor]] = {}  # by channels that are convolved

    def __getstate__(self) -> dict[str, object]:
        """Leave the transformed kernels out of copies."""
        return {**self.__dict__, "_kernels": {}}

    def forward(self, *maps: Tensor, factors: Tensor | None = None) -> Tensor:
        """Take maps (B, c, H, W) with c1 channels in all, return (B, c2, H, W).

        `factors` (B, c1, 1, 1) multiply the channels of a single map before.
        """
        assert isinstance(self.conv, nn.Conv2d)
        if not pays(maps[0], self.conv.weight):
            joined = maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
            return super().forward(joined if factors is None else joined * factors)
        found = convolved(maps, self._kernel(self.conv.weight), self.conv.bias, factors, silu=self.is_fused_silu)
        return found if self.is_fused_silu else self.norm_act(found)

    def convolve_first(self, x: Tensor) -> Tensor:
        """Return (B, c2, H, W), not normalised, for the first channels of the input, (B, c, H, W)."""
        assert isinstance(self.conv, nn.Conv2d)
        weight = self.conv.weight[:, : x.shape[1]]
        if not pays(x, self.conv.weight):
            return functional.conv2d(x, weight, self.conv.bias, padding=1)
        return convolved([x], self._kernel(weight), self.conv.bias)

    def _kernel(self, weight: Tensor) -> Tensor:
        """Return the transformed kernel; a folded network, which is no longer trained, keeps it."""
        if isinstance(self.bn, nn.BatchNorm2d):
            return transformed(weight)
        own = self.conv.weight
        version = (id(own), own._version, own.data_ptr())
        known = self._kernels.get(weight.shape[1])
        if known is None or known[0] != version:
            known = self._kernels[weight.shape[1]] = (version, transformed(weight))
        return known[1]
