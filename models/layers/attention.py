"""Transformer encoder layers over the pixels of a feature map (after ViT, arXiv 2010.11929)."""

from __future__ import annotations

from torch import Tensor, nn

from models.layer_plan import LAYERS, channel_plan
from models.layers.common import Conv
from models.layers.csp import C3

NUM_HEADS = 4  # of the transformer inside `C3TR`


@LAYERS.register("TransformerLayer")
class TransformerLayer(nn.Module):
    """Encoder layer without normalisation: multi-head self-attention, then two linear layers, each residual.

    Args:
        channels: length of each token.
        num_heads: attention heads; must divide `channels`.
    """

    plan = staticmethod(channel_plan)

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.ma = nn.MultiheadAttention(channels, num_heads)
        self.fc1, self.fc2 = (nn.Linear(channels, channels, bias=False) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, B, channels) to tokens of the same shape."""
        attended, _ = self.ma(self.q(tokens), self.k(tokens), self.v(tokens), need_weights=False)
        tokens = tokens + attended
        return tokens + self.fc2(self.fc1(tokens))


@LAYERS.register("TransformerBlock")
class TransformerBlock(nn.Module):
    """Transformer layers over the pixels of a feature map; a learned linear layer stands in for position embeddings.

    Args:
        in_channels: channels of the input; a 1x1 convolution adapts them where they differ from `out_channels`.
        out_channels: channels of the output.
        num_heads: attention heads of each layer.
        num_layers: number of layers.
    """

    plan = staticmethod(channel_plan)

    def __init__(self, in_channels: int, out_channels: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.conv = None if in_channels == out_channels else Conv(in_channels, out_channels)
        self.linear = nn.Linear(out_channels, out_channels)
        self.tr = nn.Sequential(*(TransformerLayer(out_channels, num_heads) for _ in range(num_layers)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        if self.conv is not None:
            x = self.conv(x)
        height, width = x.shape[2:]
        tokens = x.flatten(2).movedim(2, 0)  # (H * W, B, channels)
        tokens = self.tr(self.linear(tokens) + tokens)  # in this order the sum is contiguous
        return tokens.movedim(0, 2).unflatten(2, (height, width))


@LAYERS.register("C3TR")
class C3TR(C3):
    """`C3` with a transformer in its deep branch, of as many layers as the row has repeats."""

    def deep_branch(self, width: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        """Build the deep branch, a transformer of `repeats` layers."""
        return TransformerBlock(width, width, NUM_HEADS, repeats)
