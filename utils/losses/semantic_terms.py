"""Cross-entropy, hard pixel mining and region losses for semantic segmentation, computed tile by tile.

Logits are upsampled to the size of the labels. For a batch of large images with many classes that takes gigabytes, and
several times as much with the buffers of autograd. These functions upsample one tile of one image at a time (on GPUs,
of as many images as fit into a tile), compute the gradient of the small logits in the forward pass and keep only that.
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
from utils.ops.semantic_maps import BilinearUpsampler, image_groups

CLASS_WEIGHTS = {
    # For the 19 classes of Cityscapes, as commonly used with DeepLab
    "deeplab": (
        0.8373, 0.9180, 0.8660, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023, 0.9539, 0.9843, 1.1116, 0.9037,
        1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
    ),
}  # fmt: skip
OHEM_MIN_FRACTION = 16  # at least one in so many labelled pixels counts
_DICE_SMOOTH = 1.0


class PixelWeights(NamedTuple):
    """Factors of the cross-entropy of each pixel, shaped like the labels (B, H, W)."""

    loss: Tensor  # factor of the class-weighted and smoothed cross-entropy, in value and gradient
    extra_gradient: Tensor | None = None  # additional factor of the plain cross-entropy, in the gradient only


@dataclass(frozen=True)
class ClassWeighting:
    """Class weights and label smoothing of a cross-entropy."""

    weights: Tensor | None = None  # (C,)
    label_smoothing: float = 0.0  # part of each target that is spread over all classes


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype for sums over many pixels: float64, but float32 on Apple GPUs, which lack it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def pixel_cross_entropy(maps: Tensor, labels: Tensor, grids: Sequence[BilinearUpsampler]) -> Tensor:
    """Compute the cross-entropy of each pixel, without gradient, class weights or smoothing.

    Args:
        maps: (B, C, h, w) logits.
        labels: (B, H, W) uint8 classes.
        grids: Upsampler of each image.

    Returns:
        (B, H, W) float32. The values of unlabelled pixels are those of class 0, or 0 in images without labels.
    """
    result = torch.zeros(labels.shape, dtype=torch.float32, device=maps.device)
    for images, grid in image_groups(grids, maps.shape[1]):
        if _known_to_be_unlabelled(labels[images]):
            continue
        logits = maps[images].detach().float()
        for tile in grid.tiles(maps.shape[1]):
            scores = grid.upsample_tile(logits, tile)
            window = (images, tile.rows, tile.columns)
            target = class_indices(labels[window])
            result[window] = scores.logsumexp(dim=1) - scores.gather(1, target[:, None])[:, 0]
    return result


def _known_to_be_unlabelled(labels: Tensor) -> bool:
    """Return True if labels on the CPU are all ignored; those on a GPU are not read, to avoid synchronising."""
    return _is_on_host(labels) and not bool((labels != IGNORED_PIXEL).any())


def _is_on_host(tensor: Tensor) -> bool:
    """Return True for tensors on the CPU, whose values can be read without waiting for a device."""
    return tensor.device.type == "cpu"


def class_indices(labels: Tensor) -> Tensor:
    """Convert uint8 labels to int64 class indices; ignored pixels become class 0."""
    return torch.where(labels == IGNORED_PIXEL, 0, labels).long()


def cross_entropy_sum(
    maps: Tensor,
    labels: Tensor,
    grids: Sequence[BilinearUpsampler],
    pixel_weights: PixelWeights,
    weighting: ClassWeighting,
) -> Tensor:
    """Compute the weighted sum of the cross-entropies of all pixels.

    With smoothing s, class weights w and C classes, the loss of a pixel of class t is
    (1 - s) w_t (-log p_t) + s / C * sum over c of w_c (-log p_c).

    Args:
        maps: (B, C, h, w) logits.
        labels: (B, H, W) uint8 classes.
        grids: Upsampler of each image.
        pixel_weights: Factors of the pixels, zero in images without labels.
        weighting: Class weights and smoothing.

    Returns:
        A float32 scalar, differentiable once by `maps`.
    """
    return _CrossEntropySum.apply(maps, _PixelTargets(labels, grids, pixel_weights, weighting))


@dataclass(frozen=True)
class _PixelTargets:
    """Arguments of `_CrossEntropySum` that autograd does not track."""

    labels: Tensor
    grids: Sequence[BilinearUpsampler]
    pixel_weights: PixelWeights
    weighting: ClassWeighting


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, targets: _PixelTargets) -> Tensor:
        """Compute the sum and the gradient of the maps."""
        grad_maps = _zeros_like(maps) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=accumulation_dtype(maps), device=maps.device)
        for images, grid in image_groups(targets.grids, maps.shape[1]):
            if _known_to_be_unlabelled(targets.labels[images]):
                continue
            logits = maps[images].float()
            for tile in grid.tiles(maps.shape[1]):
                scores = grid.upsample_tile(logits, tile)
                window = (images, tile.rows, tile.columns)
                total += _tile_cross_entropy(scores, targets, window, grad_maps is not None)
                if grad_maps is not None:
                    grid.accumulate_gradient(scores, tile, grad_maps[images])
        if grad_maps is not None:
            ctx.save_for_backward(grad_maps)
            ctx.dtype = maps.dtype
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradient computed in the forward pass."""
        (grad_maps,) = ctx.saved_tensors
        return (grad_maps * grad).to(ctx.dtype), None


def _zeros_like(maps: Tensor) -> Tensor:
    return torch.zeros(maps.shape, dtype=torch.float32, device=maps.device)


def _tile_cross_entropy(
    scores: Tensor, targets: _PixelTargets, window: tuple[slice, slice, slice], needs_grad: bool
) -> Tensor:
    """Sum the losses of a tile of (N, C, rows, columns) logits, which their gradient replaces if needed."""
    target = class_indices(targets.labels[window])[:, None]
    weights, smoothing = targets.weighting.weights, targets.weighting.label_smoothing
    pixel_weight = targets.pixel_weights.loss[window]
    main = pixel_weight if weights is None else pixel_weight * weights[target[:, 0]]
    true_score = scores.gather(1, target)[:, 0]
    if smoothing:
        class_weights = weights if weights is not None else scores.new_ones(scores.shape[1])
        uniform = pixel_weight * (smoothing / scores.shape[1])  # weight of each class in the smoothed target
        main = main * (1 - smoothing)
        weighted_scores = torch.einsum("c,nchw->nhw", class_weights, scores)
    top = scores.amax(dim=1, keepdim=True)
    exponentials = scores.sub_(top).exp_()
    normaliser = exponentials.sum(dim=1)
    logsumexp = top[:, 0] + normaliser.log()
    loss = (main * (logsumexp - true_score)).sum(dtype=accumulation_dtype(scores))
    if smoothing:
        smoothed = uniform * (class_weights.sum() * logsumexp - weighted_scores)
        loss = loss + smoothed.sum(dtype=accumulation_dtype(scores))
    if not needs_grad:
        return loss
    if targets.pixel_weights.extra_gradient is not None:
        main = main + targets.pixel_weights.extra_gradient[window]
    exponentials.mul_(((main + uniform * class_weights.sum() if smoothing else main) / normaliser)[:, None])
    if smoothing:
        exponentials.sub_(uniform[:, None] * class_weights[:, None, None])
    exponentials.scatter_add_(1, target, -main[:, None])
    return loss


# ----------------------------------------------------------------------------------------------------------------------
# Hard pixel mining


def labelled_mask(labels: Tensor) -> Tensor:
    """Return a float32 mask of (B, H, W) labels: 1 for labelled pixels, 0 for ignored ones."""
    return (labels != IGNORED_PIXEL).float()


def ohem_mask(cross_entropy: Tensor, known: Tensor, threshold: float) -> Tensor:
    """Select hard pixels by online hard example mining.

    A pixel is hard if the probability of its class is below the threshold. If fewer than one in `OHEM_MIN_FRACTION`
    labelled pixels are hard, that many with the greatest losses are selected instead. GPUs rank the losses in any case,
    because to know whether it is needed would take a host wait.

    Args:
        cross_entropy: (B, H, W) plain losses.
        known: (B, H, W) mask of labelled pixels.
        threshold: Probability.

    Returns:
        (B, H, W) float32, 1 for selected pixels.
    """
    hard = (cross_entropy > -math.log(threshold)) & (known > 0)
    count = known.sum(dtype=accumulation_dtype(known)).long() // OHEM_MIN_FRACTION
    enough = hard.sum() >= count
    if _is_on_host(known) and bool(enough):
        return hard.float()
    limit = int(count) if _is_on_host(known) else known.numel() // OHEM_MIN_FRACTION
    ranked = torch.where(known > 0, cross_entropy, -math.inf).flatten().topk(limit).indices
    chosen = (torch.arange(limit, device=known.device) < count).float()
    greatest = torch.zeros_like(known).flatten().scatter_(0, ranked, chosen).view_as(known)
    return torch.where(enough, hard.float(), greatest)


def prob_ohem_mask(cross_entropy: Tensor, known: Tensor, threshold: float, min_kept: int) -> Tensor:
    """Select hard pixels by the probability of their class, with a lower limit on their number.

    A pixel is hard if the probability of its class is at most the threshold or at most the `min_kept`-th smallest
    probability. All labelled pixels are selected if there are fewer than `min_kept`.

    Args:
        cross_entropy: (B, H, W) plain losses.
        known: (B, H, W) mask of labelled pixels.
        threshold: Probability.
        min_kept: Number of pixels.

    Returns:
        (B, H, W) float32, 1 for selected pixels.
    """
    probability = torch.where(known > 0, torch.exp(-cross_entropy), math.inf).flatten()
    count = min(min_kept, len(probability))
    limit = probability.topk(count, largest=False).values[-1].clamp(min=threshold) if count else threshold
    return ((probability <= limit).view_as(known) & (known > 0)).float()


# ----------------------------------------------------------------------------------------------------------------------
# Region losses

RegionLoss = Callable[[Tensor, Tensor], Tensor]  # (C, n) probabilities and (n,) classes -> scalar


def dice_loss(probabilities: Tensor, classes: Tensor) -> Tensor:
    """Compute 1 - the mean Dice coefficient of the classes that are present in the labels.

    Milletari et al. 2016 (arXiv:1606.04797), without squares in the denominator.

    Args:
        probabilities: (C, n), 0 for ignored pixels.
        classes: (n,) int64, -1 for ignored pixels; not all of them.
    """
    labelled = (classes >= 0).to(probabilities.dtype)
    one_hot = torch.zeros_like(probabilities).scatter_(0, classes.clamp(min=0)[None], labelled[None])
    intersection, size = (probabilities * one_hot).sum(dim=1), one_hot.sum(dim=1)
    scores = (2 * intersection + _DICE_SMOOTH) / (probabilities.sum(dim=1) + size + _DICE_SMOOTH)
    present = (size > 0).to(scores.dtype)
    return 1 - (scores * present).sum() / present.sum()


def lovasz_softmax_loss(probabilities: Tensor, classes: Tensor) -> Tensor:
    """Compute the Lovasz-Softmax loss of the classes that are present in the labels.

    Berman et al. 2018 (arXiv:1705.08790). Ignored pixels have no error, so they follow all others when errors are
    sorted, and contribute nothing. On GPUs absent classes are computed, too, which takes no host wait.

    Args:
        probabilities: (C, n), 0 for ignored pixels.
        classes: (n,) int64, -1 for ignored pixels; not all of them. On CPUs none is ignored.
    """
    labels = classes.unique() if _is_on_host(classes) else torch.arange(len(probabilities), device=classes.device)
    foreground = (classes == labels[:, None]).to(probabilities.dtype)
    errors, order = (foreground - probabilities[labels]).abs().sort(dim=1, descending=True)
    foreground = foreground.gather(1, order)
    size = foreground.sum(dim=1, keepdim=True)
    jaccard = 1 - (size - foreground.cumsum(1)) / (size + (1 - foreground).cumsum(1))
    losses = (errors * jaccard.diff(dim=1, prepend=jaccard.new_zeros((len(labels), 1)))).sum(dim=1)
    present = (size[:, 0] > 0).to(losses.dtype)
    return (losses * present).sum() / present.sum()


def region_loss_sum(
    maps: Tensor, labels: Tensor, grids: Sequence[BilinearUpsampler], region_loss: RegionLoss
) -> Tensor:
    """Compute the sum of a region loss over the labelled images, one image in memory at a time.

    Args:
        maps: (B, C, h, w) logits.
        labels: (B, H, W) uint8 classes.
        grids: Upsampler of each image.
        region_loss: Loss of one image.

    Returns:
        A float32 scalar, differentiable once by `maps`.
    """
    return _RegionLossSum.apply(maps, labels, grids, region_loss)


def _image_region_loss(logits: Tensor, labels: Tensor, region_loss: RegionLoss) -> Tensor:
    """Compute the region loss of one image, 0 if no pixel is labelled.

    Args:
        logits: (C, H, W).
        labels: (H, W) uint8 classes.
        region_loss: Loss of the labelled pixels.
    """
    known = labels != IGNORED_PIXEL
    if _is_on_host(labels):  # fewer pixels
        return region_loss(logits[:, known].softmax(dim=0), labels[known].long())
    some = known.any()
    known[0, 0] |= ~some  # without labelled pixels the losses are undefined
    probabilities = logits.softmax(dim=0) * known
    return region_loss(probabilities.flatten(1), torch.where(known, class_indices(labels), -1).flatten()) * some


class _RegionLossSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, labels: Tensor, grids: Sequence[BilinearUpsampler], region_loss: RegionLoss
    ) -> Tensor:
        """Compute the sum and the gradient of the maps."""
        needs_grad = ctx.needs_input_grad[0]
        grad_maps = _zeros_like(maps) if needs_grad else None
        total = torch.zeros((), dtype=torch.float32, device=maps.device)
        for image, grid in enumerate(grids):
            if _known_to_be_unlabelled(labels[image]):
                continue
            logits = maps[image].float().detach()
            with torch.set_grad_enabled(needs_grad):
                small = logits.requires_grad_(True) if needs_grad else logits
                loss = _image_region_loss(grid.upsample(small), labels[image], region_loss)
            if grad_maps is not None:
                (grad_maps[image],) = torch.autograd.grad(loss, small)
            total += loss.detach()
        if grad_maps is not None:
            ctx.save_for_backward(grad_maps)
            ctx.dtype = maps.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradient computed in the forward pass."""
        (grad_maps,) = ctx.saved_tensors
        return (grad_maps * grad).to(ctx.dtype), None, None, None
