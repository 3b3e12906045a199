"""Transformer blocks over feature maps (ViT without layer normalisation, arXiv 2010.11929)."""

from __future__ import annotations

from torch import Tensor, nn

from models.layer_plan import LAYERS, channel_plan
from models.layers.common import Conv
from models.layers.csp import C3

HEADS_IN_C3 = 4


@LAYERS.register("TransformerLayer")
class TransformerLayer(nn.Module):
    """Self-attention and a linear pair, each with a residual; on (sequence, B, c)."""

    plan = staticmethod(channel_plan)

    def __init__(self, c: int, num_heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(c, c, bias=False)
        self.k = nn.Linear(c, c, bias=False)
        self.v = nn.Linear(c, c, bias=False)
        self.ma = nn.MultiheadAttention(embed_dim=c, num_heads=num_heads)
        self.fc1 = nn.Linear(c, c, bias=False)
        self.fc2 = nn.Linear(c, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (sequence, B, c)."""
        attended, _ = self.ma(self.q(x), self.k(x), self.v(x), need_weights=False)
        x = attended + x
        return self.fc2(self.fc1(x)) + x


@LAYERS.register("TransformerBlock")
class TransformerBlock(nn.Module):
    """Transformer layers over the pixels of a map, with a learned linear position term."""

    plan = staticmethod(channel_plan)

    def __init__(self, c1: int, c2: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.conv = Conv(c1, c2) if c1 != c2 else None
        self.linear = nn.Linear(c2, c2)
        self.tr = nn.Sequential(*(TransformerLayer(c2, num_heads) for _ in range(num_layers)))

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H, W)."""
        if self.conv is not None:
            x = self.conv(x)
        height_width = x.shape[2:]
        sequence = x.flatten(2).permute(2, 0, 1)  # (H*W, B, c2)
        sequence = self.tr(sequence + self.linear(sequence))
        return sequence.permute(1, 2, 0).unflatten(2, height_width)


@LAYERS.register("C3TR")
class C3TR(C3):
    """C3 with a transformer block of `n` layers inside."""

    def inner(self, hidden: int, n: int, shortcut: bool, g: int) -> nn.Module:
        """Return a transformer block with four heads."""
        return TransformerBlock(hidden, hidden, HEADS_IN_C3, n)
