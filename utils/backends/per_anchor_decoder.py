"""Box decoding for runtimes that hold maps in channels-last memory."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.heads.anchor_head import BoxHead, LevelDecoder, cell_indices, to_fp32
from models.network import Network


class PerAnchorDecoder(LevelDecoder):
    """Decode boxes without transposes and slices: each anchor's convolution has the columns of the output."""

    def raw_level(self, convolution: nn.Conv2d, feature: Tensor, num_anchors: int) -> Tensor:
        """Apply a level's convolution to (B, C, H, W), one per anchor: (B, A, H, W, columns)."""
        assert convolution.bias is not None
        kernels = zip(convolution.weight.chunk(num_anchors), convolution.bias.chunk(num_anchors), strict=True)
        maps = [functional.conv2d(feature, weight, bias).permute(0, 2, 3, 1) for weight, bias in kernels]
        return torch.stack(maps, dim=1)

    def decode(self, raw: Tensor, anchors_px: Tensor, stride: int, num_classes: int) -> Tensor:
        """Decode as `decode_level` does, each column as s (p + q s) + r raw + t with the sigmoid s of raw."""
        raw = to_fp32(raw)
        height, width, count = raw.shape[2:]
        corners_xy = (torch.stack(cell_indices(height, width, raw), dim=-1).flatten(0, 1) - 0.5) * stride  # (H * W, 2)
        offset = functional.pad(corners_xy, (0, count - 2))  # t: (H * W, columns)
        column = torch.arange(count, device=raw.device)
        scores = (column >= 4) & (column < 5 + num_classes)
        linear = scores.to(raw.dtype) + 2 * stride * (column < 2).to(raw.dtype)  # p
        square = functional.pad(4 * anchors_px.to(raw.dtype)[:, None], (2, count - 4))  # q: (A, 1, columns)
        values = raw.flatten(2, 3)
        sigmoid = values.sigmoid()
        decoded = sigmoid * (linear + sigmoid * square) + offset
        if count > 5 + num_classes:
            decoded = decoded + values * (column >= 5 + num_classes).to(raw.dtype)
        return decoded.flatten(1, 2)


def with_per_anchor_decoder(network: Network) -> Network:
    """Copy a network and let its box heads decode by `PerAnchorDecoder`."""
    changed = copy.deepcopy(network)
    for head in changed.heads.values():
        if isinstance(head, BoxHead):
            head.decoder = PerAnchorDecoder()
    return changed
