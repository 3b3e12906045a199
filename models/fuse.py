"""Folding of batch normalisation into convolutions, and other rewrites for inference."""

from __future__ import annotations

import copy

import torch
from torch import nn

from models.layers.common import Conv
from models.layers.space_to_depth import Focus
from models.network import Network


def fold(convolution: nn.Conv2d, normalisation: nn.BatchNorm2d) -> nn.Conv2d:
    """Build a convolution with bias that equals both in evaluation mode.

    W' = W g / sqrt(v + eps) and b' = (b - m) g / sqrt(v + eps) + c, with the normalisation's weight g, bias c, mean m
    and variance v.
    """
    mean, variance = normalisation.running_mean, normalisation.running_var
    assert mean is not None and variance is not None
    factor = normalisation.weight / torch.sqrt(variance + normalisation.eps)
    bias = torch.zeros_like(mean) if convolution.bias is None else convolution.bias
    folded = copy.deepcopy(convolution)
    folded.weight.copy_(convolution.weight * factor.view(-1, 1, 1, 1))
    folded.bias = nn.Parameter((bias - mean) * factor + normalisation.bias)
    folded.requires_grad_(False)
    return folded


def fuse(network: Network) -> Network:
    """Copy a network for inference with normalisation folded into convolutions; see `fuse_in_place`."""
    return fuse_in_place(copy.deepcopy(network))


def fuse_in_place(network: Network) -> Network:
    """Fold normalisation into convolutions for inference; return the network.

    This applies to `Conv` blocks and to adjacent pairs in a Sequential. Normalisation after other operations
    (BottleneckCSP, MixConv2d) stays. Parts of heads that only training uses are removed.
    """
    fused = _fold_blocks(network)
    with torch.no_grad():
        for block in fused.modules():
            if isinstance(block, nn.Sequential):
                _fold_pairs(block)
    return fused


def fuse_blocks(network: Network) -> Network:
    """Copy a network with folded `Conv` blocks only, the form of fused files of YOLOv5 and its forks."""
    return _fold_blocks(copy.deepcopy(network))


def _fold_blocks(fused: Network) -> Network:
    for head in fused.heads.values():
        if hasattr(head, "remove_training_parts"):
            head.remove_training_parts()
    with torch.no_grad():
        for block in fused.modules():
            if isinstance(block, Conv) and isinstance(block.bn, nn.BatchNorm2d):
                block.conv = fold(block.conv, block.bn)
                block.bn = nn.Identity()
    fused.architecture = {**fused.architecture, "fused": True}
    return fused


def replace_focus(network: Network) -> Network:
    """Copy a network with every `Focus` as an ordinary convolution, for runtimes without strided slices."""
    plain = copy.deepcopy(network)
    for row, layer in enumerate(plain.model):
        if isinstance(layer, Focus) and layer.conv.conv.groups == 1:
            plain.model[row] = layer.as_convolution().requires_grad_(False).train(layer.training)
    return plain


def _fold_pairs(block: nn.Sequential) -> None:
    """Fold normalisation that directly follows a convolution, and leave an Identity in its position."""
    for index in range(len(block) - 1):
        convolution, normalisation = block[index], block[index + 1]
        if isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d):
            block[index] = fold(convolution, normalisation)
            block[index + 1] = nn.Identity()
