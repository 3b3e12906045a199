"""Fold batch normalisation into the convolution before it, for inference."""

from __future__ import annotations

import copy

import torch
from torch import nn

from models.layers.common import Conv
from models.layers.space_to_depth import Focus
from models.network import Network


def fold(convolution: nn.Conv2d, normalisation: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution with bias that computes what both did in evaluation mode (behaviour.md 1.4)."""
    mean, variance = normalisation.running_mean, normalisation.running_var
    assert mean is not None and variance is not None
    factor = normalisation.weight / torch.sqrt(variance + normalisation.eps)
    bias = torch.zeros_like(mean) if convolution.bias is None else convolution.bias
    folded = nn.utils.skip_init(
        nn.Conv2d,
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
        bias=True,
        device=convolution.weight.device,
        dtype=convolution.weight.dtype,
    )
    folded.weight.copy_(convolution.weight * factor.view(-1, 1, 1, 1))
    folded.bias.copy_((bias - mean) * factor + normalisation.bias)
    folded.requires_grad_(False)
    return folded


def fuse(network: Network) -> Network:
    """Return a copy for inference whose convolutions hold no normalisation; the original stays as it is.

    Those are `Conv` blocks, and pairs that follow each other in a Sequential. Normalisation after something else
    (BottleneckCSP, MixConv2d) stays.
    """
    fused = fuse_blocks(network)
    with torch.no_grad():
        for block in fused.modules():
            if isinstance(block, nn.Sequential):
                _fold_pairs(block)
    return fused


def fuse_blocks(network: Network) -> Network:
    """Return a copy in which `Conv` blocks alone are folded: YOLOv5's and its forks' folded files are so."""
    fused = copy.deepcopy(network)
    with torch.no_grad():
        for block in fused.modules():
            if isinstance(block, Conv) and isinstance(block.bn, nn.BatchNorm2d):
                block.conv = fold(block.conv, block.bn)
                block.bn = nn.Identity()
    fused.architecture = {**fused.architecture, "fused": True}
    return fused


def without_slices(network: Network) -> Network:
    """Return a copy for other runtimes in which every `Focus` is an ordinary convolution; not all know its slices."""
    plain = copy.deepcopy(network)
    for row, layer in enumerate(plain.model):
        if isinstance(layer, Focus) and layer.conv.conv.groups == 1:
            plain.model[row] = layer.as_convolution().requires_grad_(False).train(layer.training)
    return plain


def _fold_pairs(block: nn.Sequential) -> None:
    """Fold normalisation that directly follows a convolution into it; the places in the sequence stay."""
    for index in range(len(block) - 1):
        convolution, normalisation = block[index], block[index + 1]
        if isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d):
            block[index] = fold(convolution, normalisation)
            block[index + 1] = nn.Identity()
