"""3x3 convolutions with a quarter of the multiplications, for inference on CPUs (Lavin and Gray, arXiv 1509.09308).

Of F(4x4, 3x3): a tile of 6x6 inputs becomes 4x4 outputs by 36 products where the plain way needs 144. In fp32 results
differ from the plain way by about 1e-5 of their size. Wide convolutions over large maps gain; the rest stays plain.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers.common import Conv

MIN_CHANNELS, MIN_PIXELS = 128, 1024  # below, plain convolutions measured as fast
TILE = 4
TILES_AT_ONCE = 128

_INPUT = (
    (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1),
)  # fmt: skip
_KERNEL = (
    (1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1),
)  # fmt: skip
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def _squared(rows: tuple[tuple[float, ...], ...]) -> Tensor:
    """Return the transform of both directions at once."""
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


def convolved(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Return the 3x3 convolution, border 1, of (B, c1, H, W) with a `transformed` kernel: (B, c2, H, W).

    Done in strips whose tiles fit into the processor's cache.
    """
    batch, c1, height, width = x.shape
    down, across = -(-height // TILE), -(-width // TILE)
    border = (0, 0, 1, across * TILE + 1 - width, 1, down * TILE + 1 - height)
    padded = functional.pad(x.permute(0, 2, 3, 1), border).contiguous()
    image, row, column, _ = padded.stride()
    strides = (row, column, image, TILE * row, TILE * column, 1)
    before, after = _squared(_INPUT), _squared(_OUTPUT)
    found = x.new_empty(batch, down, TILE, across, TILE, kernel.shape[2])
    strip = max(TILES_AT_ONCE // (batch * across), 1)
    for top in range(0, down, strip):
        count = min(strip, down - top)
        tiles = padded.as_strided((6, 6, batch, count, across, c1), strides, top * TILE * row).reshape(36, -1)
        products = torch.bmm((before @ tiles).view(36, -1, c1), kernel)
        outputs = (after @ products.view(36, -1)).view(TILE, TILE, batch, count, across, -1)
        found[:, top : top + count] = outputs.permute(2, 3, 0, 4, 1, 5)
    joined = found.view(batch, down * TILE, across * TILE, -1)
    joined = joined if bias is None else joined.add_(bias)
    return joined[:, :height, :width].permute(0, 3, 1, 2)


class WideConv(Conv):
    """3x3 `Conv` that takes the shorter way where it pays; its tensors have the same names."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__(c1, c2, 3)
        self._kernels: dict[int, tuple[tuple[int, int, int], Tensor]] = {}  # by channels that are convolved

    def __getstate__(self) -> dict[str, object]:
        """Leave the transformed kernels out of copies."""
        return {**self.__dict__, "_kernels": {}}

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H, W)."""
        return self.act(self.bn(self.convolve(x)))

    def convolve(self, x: Tensor) -> Tensor:
        """Return (B, c2, H, W), not normalised, for the first channels of the input: as many as `x` has."""
        assert isinstance(self.conv, nn.Conv2d)
        weight = self.conv.weight[:, : x.shape[1]]
        if not pays(x, self.conv.weight):
            if x.shape[1] == self.conv.in_channels:
                return self.conv(x)
            return functional.conv2d(x, weight, self.conv.bias, padding=1)
        return convolved(x, self._kernel(weight), self.conv.bias)

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
