"""Cross-entropy and overlap of per-pixel classes, image by image, with gradients made on the way (behaviour.md 12.4).

Maps are enlarged to the size of the labels, which for a batch of large images with many classes takes gigabytes, and
several times so with what autograd keeps. Here a tile of one image is enlarged at a time; what stays is the
gradient of the small maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from utils.core.contracts import IGNORED_PIXEL
from utils.ops.semantic_maps import BilinearUpsampler

# Of the 19 classes of Cityscapes (behaviour.md 12.4)
CLASS_WEIGHTS = {
    "deeplab": (
        0.8373, 0.9180, 0.8660, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023, 0.9539, 0.9843, 1.1116, 0.9037,
        1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
    ),
}  # fmt: skip
_DICE_SMOOTH = 1.0


class PixelWeights(NamedTuple):
    """What the cross-entropy of every pixel counts. K pixels stand for the labels' shape (B, H, W)."""

    value: Tensor  # (K) factor of its weighted cross-entropy, in the result and in the gradient; 0: left out
    extra: Tensor | None = None  # (K) further factor of the plain cross-entropy, in the gradient only


@dataclass(frozen=True)
class ClassWeighting:
    """Weights of the classes and how much of a label is spread over all of them."""

    weights: Tensor | None = None  # (C,)
    share: float = 0.0


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type in which sums over many pixels are taken: Apple's GPUs have no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def pixel_cross_entropy(maps: Tensor, labels: Tensor, grids: Sequence[BilinearUpsampler]) -> Tensor:
    """Return (B, H, W) float32: minus the logarithm of the probability of each pixel's class.

    `maps` is (B, C, h, w) scores, `labels` (B, H, W) uint8; unlabelled pixels count as class 0, and images without any
    label may have 0 everywhere. Without gradient.
    """
    found = torch.zeros(labels.shape, dtype=torch.float32, device=maps.device)
    for image, grid in enumerate(grids):
        if _without_use(labels[image] != IGNORED_PIXEL):
            continue
        logits = maps[image].detach().float()
        for tile in grid.tiles(len(logits)):
            scores = grid.enlarge(logits, tile)
            place = (image, tile.rows, tile.columns)
            target = _target(labels[place])
            found[place] = scores.logsumexp(dim=0) - scores.gather(0, target[None])[0]
    return found


def _without_use(counts: Tensor) -> bool:
    """Tell whether nothing in a tensor counts; a GPU is not asked, for the host would wait for it."""
    return counts.device.type == "cpu" and not bool(counts.any())


def _target(labels: Tensor) -> Tensor:
    return torch.where(labels == IGNORED_PIXEL, 0, labels).long()


def cross_entropy_sum(
    maps: Tensor, labels: Tensor, grids: Sequence[BilinearUpsampler], costs: PixelWeights, smoothing: ClassWeighting
) -> Tensor:
    """Return the sum of the pixels' cross-entropies times their costs, a float32 scalar with gradient.

    `maps` is (B, C, h, w), `labels` (B, H, W) uint8, `grids` one per image; images without any label must cost 0. With
    smoothing s, class weights w and C
    classes, a pixel of class t costs (1 - s) w_t (-log p_t) + s / C * sum over c of w_c (-log p_c).
    """
    return _EntropySum.apply(maps, _Pixels(labels, grids, costs, smoothing))


@dataclass(frozen=True)
class _Pixels:
    """All that `_EntropySum` needs beside the maps: autograd does not look into it."""

    labels: Tensor
    grids: Sequence[BilinearUpsampler]
    costs: PixelWeights
    smoothing: ClassWeighting


class _EntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, pixels: _Pixels) -> Tensor:
        """Return the sum; the gradient is made here, where the probabilities are at hand."""
        slope = _zeros_like(maps) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=accumulation_dtype(maps), device=maps.device)
        for image, grid in enumerate(pixels.grids):
            if _without_use(pixels.labels[image] != IGNORED_PIXEL):  # its costs are 0, too
                continue
            logits = maps[image].float()
            for tile in grid.tiles(len(logits)):
                scores = grid.enlarge(logits, tile)
                total += _tile_entropy(scores, pixels, (image, tile.rows, tile.columns), slope is not None)
                if slope is not None:
                    grid.gather(scores, tile, slope[image])
        if slope is not None:
            ctx.save_for_backward(slope)
            ctx.dtype = maps.dtype
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient that the forward pass made, times that of the result."""
        (slope,) = ctx.saved_tensors
        return (slope * grad).to(ctx.dtype), None


def _zeros_like(maps: Tensor) -> Tensor:
    return torch.zeros(maps.shape, dtype=torch.float32, device=maps.device)


def _tile_entropy(scores: Tensor, pixels: _Pixels, place: tuple[int, slice, slice], learning: bool) -> Tensor:
    """Return the wide sum over a tile of (C, rows, columns) scores; when learning, these become its gradient."""
    target = _target(pixels.labels[place])[None]
    value = pixels.costs.value[place]
    smoothing, share = pixels.smoothing, pixels.smoothing.share
    main = value if smoothing.weights is None else value * smoothing.weights[target[0]]
    true = scores.gather(0, target)[0]
    spread = smoothing.weights if smoothing.weights is not None else scores.new_ones(len(scores))
    part = value * (share / len(scores))  # of every class, when labels are smoothed
    main = main * (1 - share)
    weighed = torch.einsum("c,chw->hw", spread, scores) if share else None
    top = scores.amax(dim=0)
    odds = scores.sub_(top).exp_()
    total = odds.sum(dim=0)
    norm = top + total.log()  # logsumexp
    found = (main * (norm - true)).sum(dtype=accumulation_dtype(scores))
    if weighed is not None:
        found = found + (part * (spread.sum() * norm - weighed)).sum(dtype=accumulation_dtype(scores))
    if not learning:
        return found
    if pixels.costs.extra is not None:
        main = main + pixels.costs.extra[place]
    odds.mul_((main + part * spread.sum() if share else main) / total)
    if share:
        odds.sub_(part * spread[:, None, None])
    odds.scatter_add_(0, target, -main[None])
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Which pixels count


def labelled_mask(labels: Tensor) -> Tensor:
    """Return (B, H, W) float32: 1 where somebody labelled_mask the pixel, else 0."""
    return (labels != IGNORED_PIXEL).float()


def ohem_mask(entropy: Tensor, known: Tensor, threshold: float) -> Tensor:
    """Return (B, H, W) float32, 1 for pixels that count in OHEM: the true class is less probable than `threshold`.

    If these are fewer than a sixteenth of the labelled ones, that many with the greatest (B, H, W) `entropy` count
    instead. The host waits for the device to know how many they are.
    """
    least = int(known.sum()) // 16
    hard = (entropy > -math.log(threshold)) & (known > 0)
    if int(hard.sum()) >= least:
        return hard.float()
    ranked = torch.where(known > 0, entropy, -math.inf).flatten().topk(least).indices
    return torch.zeros_like(known).flatten().index_fill_(0, ranked, 1.0).view_as(known)


def prob_ohem_mask(entropy: Tensor, known: Tensor, threshold: float, least: int) -> Tensor:
    """Return (B, H, W) float32, 1 for pixels that count in ProbOhem.

    These are those whose true class has at most the probability `threshold`, or at most that of the `least`-th smallest
    if this is larger; all if fewer than `least` are labelled_mask.
    """
    probability = torch.where(known > 0, torch.exp(-entropy), math.inf).flatten()
    count = min(least, len(probability))
    limit = probability.topk(count, largest=False).values[-1].clamp(min=threshold) if count else threshold
    return ((probability <= limit).view_as(known) & (known > 0)).float()


# ----------------------------------------------------------------------------------------------------------------------
# Overlap


RegionLoss = Callable[[Tensor, Tensor], Tensor]  # (C, n) probabilities and (n,) classes of labelled pixels to a scalar


def dice_loss(probabilities: Tensor, classes: Tensor) -> Tensor:
    """Return 1 - the mean Dice coefficient (arXiv 1606.04797, without squares) of the classes that occur."""
    wanted = torch.zeros_like(probabilities).scatter_(0, classes[None], 1.0)
    shared, size = (probabilities * wanted).sum(dim=1), wanted.sum(dim=1)
    scores = (2 * shared + _DICE_SMOOTH) / (probabilities.sum(dim=1) + size + _DICE_SMOOTH)
    return 1 - scores[size > 0].mean()


def lovasz_softmax_loss(probabilities: Tensor, classes: Tensor) -> Tensor:
    """Return the Lovasz-Softmax loss (arXiv 1705.08790) over the classes that occur."""
    losses = []
    for label in classes.unique().tolist():
        wanted = (classes == label).float()
        errors, order = (wanted - probabilities[label]).abs().sort(descending=True)
        wanted = wanted[order]
        union = wanted.sum() + (1 - wanted).cumsum(0)
        jaccard = 1 - (wanted.sum() - wanted.cumsum(0)) / union
        losses.append(torch.dot(errors, jaccard.diff(prepend=jaccard.new_zeros(1))))
    return torch.stack(losses).mean()


def region_loss_sum(maps: Tensor, labels: Tensor, grids: Sequence[BilinearUpsampler], measure: RegionLoss) -> Tensor:
    """Return the sum of `measure` over the images that have labels, a float32 scalar with gradient.

    One image is enlarged at a time, and autograd's memory of it is given back before the next. The host waits for the
    device.
    """
    return _OverlapSum.apply(maps, labels, grids, measure)


class _OverlapSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, labels: Tensor, grids: Sequence[BilinearUpsampler], measure: RegionLoss
    ) -> Tensor:
        """Return the sum; gradients are made here."""
        learning = ctx.needs_input_grad[0]
        slope = _zeros_like(maps) if learning else None
        total = torch.zeros((), dtype=torch.float32, device=maps.device)
        for image, grid in enumerate(grids):
            known = labels[image] != IGNORED_PIXEL
            if not bool(known.any()):
                continue
            logits = maps[image].float().detach()
            with torch.set_grad_enabled(learning):
                small = logits.requires_grad_(True) if learning else logits
                found = measure(grid.whole(small)[:, known].softmax(dim=0), labels[image][known].long())
            if slope is not None:
                (slope[image],) = torch.autograd.grad(found, small)
            total += found.detach()
        if slope is not None:
            ctx.save_for_backward(slope)
            ctx.dtype = maps.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient that the forward pass made, times that of the result."""
        (slope,) = ctx.saved_tensors
        return (slope * grad).to(ctx.dtype), None, None, None
