"""Loss of the `segment` head: the detection loss and the cross-entropy of masks inside their boxes.

The mask of a predictor is sigmoid(sum over m of coefficient_m * prototype_m). The term `seg`, before its gain, is

    sum over levels of  mean over images of  mean over the pairs of an image of  mean over the labelled box of  BCE

where the last mean is the sum over the pixels inside the box divided by the exact, not the rasterised, area of the box.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import interpolate, pad, softplus

from utils.core.contracts import Batch, HeadSpec, Raw
from utils.core.distributed import sum_over_ranks
from utils.core.hyp import Hyp
from utils.losses import LOSSES
from utils.losses.anchor_assignment import Assignment, pack_to
from utils.losses.detect import DetectLoss, DetectLossDetails, autocast_disabled
from utils.ops.boxes import cxcywhn_to_xyxy
from utils.ops.masks import inside_boxes

_CHUNK = 2**21  # mask pixels computed at a time on a CPU: they fit into its caches
_GPU_CHUNK = 2**26  # on a GPU: 256 MB per float32 tensor


@dataclass(frozen=True)
class MaskTargets:
    """The pairs of a detection assignment ordered by label, and hence by image; all that masks need of the labels."""

    assignment: Assignment
    counts: tuple[int, ...]  # pairs of each image
    order: Tensor  # (P,) int64 positions in the assignment
    image: Tensor  # (P,) int64
    target: Tensor  # (P,) int64 row of the label in `Batch.boxes`
    number: Tensor  # (P,) int64 value of the object in an index map of its image, from 1
    padded: Tensor  # (B, K) int64 rows of the above, K the largest of `counts`; P where an image has fewer
    boxes: Tensor  # (P, 4) labelled boxes cx, cy, w, h, divided by the size of the network's input
    weights: Tensor  # (P,) 1 / (pairs of the image on the pair's level * area of the box)

    def pin_memory(self) -> MaskTargets:
        """Return this object; `to()` copies from its own buffers."""
        return self

    def to(self, device: torch.device) -> MaskTargets:
        """Move all tensors to `device` without blocking the host."""
        if device.type == "cpu":
            return self
        integers = (self.order, self.image, self.target, self.number, self.padded)
        moved = pack_to(integers, device), pack_to((self.boxes, self.weights), device)
        return MaskTargets(self.assignment.to(device), self.counts, *moved[0], *moved[1])


class MaskPairs(NamedTuple):
    """P pairs of a predictor and a labelled mask on all levels, ordered by label and hence by image."""

    coefficients: Tensor  # (P, M)
    boxes_xyxy: Tensor  # (P, 4) labelled boxes in pixels of the prototypes
    weights: Tensor  # (P,) factor of the sum over the pixels of a mask
    target: Tensor  # (P,) int64 row of the label in `Batch.boxes`
    mask: Tensor  # (P,) int64 value of the object in the index map, or row of the (N, h, w) masks
    counts: tuple[int, ...]  # number of pairs of each image
    padded: Tensor  # (B, K) int64 pairs of each image, padded with P


@LOSSES.register("segment")
class SegmentLoss(nn.Module):
    """Instance segmentation loss with the terms `box`, `seg`, `obj` and `cls`, gains included.

    The engine multiplies the terms by the number of images (`per_image`). Means are taken over all ranks in training
    and over this rank in evaluation, as in `DetectLoss`.

    Masks are computed in chunks together with their gradients, and only the gradients are kept for the backward pass,
    so memory does not grow with the number of objects. On a CPU only the pixels inside each labelled box are computed.
    On a GPU, where small operations are expensive, whole maps of the masks of all images are, padded to the same number
    per image.

    Args:
        spec: Description of the head, with M = `num_masks` mask coefficients.
        hyp: Hyperparameters with scaled gains; `box` is also the gain of `seg`.
        **options: Further arguments of `DetectLoss`.

    Raises:
        ValueError: If the head has no mask coefficients.
    """

    per_image = True
    labels = "boxes"
    extra_terms: tuple[str, ...] = ()
    omitted_terms: tuple[str, ...] = ()
    training_terms: tuple[str, ...] = ()

    def __init__(self, spec: HeadSpec, hyp: Hyp, **options: Any) -> None:
        super().__init__()
        if spec.num_masks < 1:
            raise ValueError(f"head {spec.name!r}: no mask coefficients; use the detect loss")
        self.boxes = DetectLoss(spec, hyp, **options)
        self.first_coefficient = 5 + spec.num_classes  # column of a prediction
        self.gain = hyp.box

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss terms of a batch.

        Args:
            raw: Levels as in `DetectLoss`, with M mask coefficients after the classes, and `prototypes` (B, M, mh, mw).
            batch: Images, labelled boxes and masks of any resolution.

        Returns:
            `box`, `seg`, `obj` and `cls`, float32 scalars.
        """
        targets = batch.prepared.get(self.boxes.spec.name)
        if not isinstance(targets, MaskTargets):
            stride, level = self.boxes.spec.strides[0], raw["level0"]
            targets = self.prepare(batch, (level.shape[2] * stride, level.shape[3] * stride)).to(level.device)
        details = self.boxes.detailed(raw, replace(batch, prepared={self.boxes.spec.name: targets.assignment}))
        with autocast_disabled(raw["prototypes"].device.type):
            seg = self._mask_term(raw["prototypes"].float(), details, targets, batch)
        terms = details.terms
        return {"box": terms["box"], "seg": seg, "obj": terms["obj"], "cls": terms["cls"]}

    def prepare(self, batch: Batch, input_hw: tuple[int, int]) -> MaskTargets:
        """Assign the labels of a batch on the host and order the pairs by label.

        Args:
            batch: Images and labelled boxes, on any device; labels on a GPU make the host wait for it.
            input_hw: Height and width of the network's input.

        Returns:
            The targets, on the CPU.
        """
        assignment = self.boxes.prepare(batch, input_hw)
        images, labels = len(batch), batch.boxes.detach().cpu().float()
        cells = assignment.level * images + assignment.image
        per_level = torch.bincount(cells, minlength=images * len(assignment.level_hws))
        order = assignment.target.argsort(stable=True)  # labels are ordered by image, so pairs are, too
        image, target = assignment.image[order], assignment.target[order]
        boxes = labels[target, 2:]
        # The labels of an image are consecutive rows, so their values in the index map follow from the first row.
        first_rows = torch.searchsorted(labels[:, 0].contiguous(), torch.arange(images, dtype=labels.dtype))
        counts = torch.bincount(image, minlength=images)
        return MaskTargets(
            assignment, tuple(counts.tolist()), order, image, target, target - first_rows[image] + 1,
            pad_pairs(counts), boxes,
            1 / per_level[cells[order]] / (boxes[:, 2] * boxes[:, 3]),
        )  # fmt: skip

    def _mask_term(self, prototypes: Tensor, details: DetectLossDetails, targets: MaskTargets, batch: Batch) -> Tensor:
        size_hw = (prototypes.shape[2], prototypes.shape[3])
        masks = masks_of_size(batch, size_hw)
        pairs = MaskPairs(
            coefficients=details.predictions[targets.order, self.first_coefficient :],
            boxes_xyxy=cxcywhn_to_xyxy(targets.boxes, size_hw),
            weights=targets.weights / (size_hw[0] * size_hw[1]),
            target=targets.target,
            mask=targets.target if masks.dtype == torch.bool else targets.number,
            counts=targets.counts,
            padded=targets.padded,
        )
        images = torch.full((), float(len(batch)), device=prototypes.device)
        if self.training:
            images = sum_over_ranks(images)
        return MaskCrossEntropy.apply(prototypes, pairs.coefficients, pairs, masks) * (self.gain / images)


def pad_pairs(counts: Tensor) -> Tensor:
    """Index the pairs of each image, from (B,) counts of consecutive pairs: (B, k) int64, padded with K, their sum."""
    starts, column = counts.cumsum(0) - counts, torch.arange(max(1, int(counts.max())))
    return torch.where(column < counts[:, None], starts[:, None] + column, int(counts.sum()))


def masks_of_size(batch: Batch, size_hw: tuple[int, int]) -> Tensor:
    """Return the masks of a batch, resized to (h, w); none at all for a batch without boxes.

    Raises:
        ValueError: The batch has boxes but no masks.
    """
    masks = batch.masks
    if masks is None:
        if len(batch.boxes):
            raise ValueError("the batch has boxes but no masks; load it with LoadRequest(masks=True)")
        return torch.zeros((0, *size_hw), dtype=torch.bool, device=batch.boxes.device)
    if len(masks) and masks.shape[1:] != size_hw:
        masks = interpolate(masks[None].float(), size=size_hw, mode="nearest")[0].to(masks.dtype)
    return masks


class MaskChunk(NamedTuple):
    """Pairs of one label that are computed at once, and the window of the map that its box covers."""

    image: int
    pairs: slice
    window: tuple[slice, slice]  # rows and columns of the map


def chunks_by_label(pairs: MaskPairs, size_hw: tuple[int, int]) -> Iterator[MaskChunk]:
    """Yield all pairs grouped by label, each with the pixels of its box as the window."""
    counts = torch.unique_consecutive(pairs.target, return_counts=True)[1]
    ends = counts.cumsum(0)
    limit = torch.tensor([size_hw[1], size_hw[0]] * 2)
    # Pixel i belongs to the box if x1 <= i < x2, so both ends of the window are rounded up.
    corners = pairs.boxes_xyxy[ends - 1].ceil().long().clamp(min=0).minimum(limit)
    images = torch.arange(len(pairs.counts)).repeat_interleave(torch.tensor(pairs.counts))[ends - 1]
    for image, end, count, (x1, y1, x2, y2) in zip(
        images.tolist(), ends.tolist(), counts.tolist(), corners.tolist(), strict=True
    ):
        window = (slice(y1, y2), slice(x1, x2))
        step = max(1, _CHUNK // max(1, (x2 - x1) * (y2 - y1)))
        for first in range(end - count, end, step):
            yield MaskChunk(image, slice(first, min(first + step, end)), window)


class MaskCrossEntropy(torch.autograd.Function):
    """Weighted sum of the cross-entropies of all masks; the forward pass computes the gradients, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, prototypes: Tensor, coefficients: Tensor, pairs: MaskPairs, masks: Tensor) -> Tensor:
        """Compute the scalar sum.

        `coefficients` are `pairs.coefficients`, passed separately because autograd does not track tuples.
        """
        needs_grad = any(ctx.needs_input_grad)
        compute = _sum_by_label if prototypes.device.type == "cpu" else _sum_padded
        total, grad_maps, grad_coefficients = compute(
            prototypes.permute(0, 2, 3, 1), coefficients, pairs, masks, needs_grad
        )
        if needs_grad:
            ctx.save_for_backward(grad_maps, grad_coefficients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients computed in the forward pass."""
        maps, coefficients = ctx.saved_tensors
        return (maps * grad).permute(0, 3, 1, 2), coefficients * grad, None, None


_Sum = tuple[Tensor, Tensor | None, Tensor | None]  # the sum, gradients of the maps and of the coefficients


def _sum_by_label(maps: Tensor, coefficients: Tensor, pairs: MaskPairs, masks: Tensor, needs_grad: bool) -> _Sum:
    """Compute the sum label by label on the pixels of its box; `maps` are (B, mh, mw, M)."""
    grad_maps = torch.zeros_like(maps) if needs_grad else None
    grad_coefficients = torch.zeros_like(coefficients) if needs_grad else None
    total = maps.new_zeros(())
    for chunk in chunks_by_label(pairs, (maps.shape[1], maps.shape[2])):
        patch, rows = maps[chunk.image][chunk.window], chunk.pairs
        flat = patch.reshape(-1, maps.shape[3])  # (pixels, M)
        logits = coefficients[rows] @ flat.T
        number = pairs.mask[rows.start]
        window = masks[(slice(None), *chunk.window)]
        targets = window[number] if masks.dtype == torch.bool else window[chunk.image] == number
        targets, weights = targets.flatten().to(logits.dtype), pairs.weights[rows, None]
        total += ((softplus(logits) - logits * targets) * weights).sum()
        if grad_maps is not None and grad_coefficients is not None:
            grad_logits = logits.sigmoid_().sub_(targets).mul_(weights)
            grad_coefficients[rows] = grad_logits @ flat
            grad_maps[chunk.image][chunk.window] += (grad_logits.T @ coefficients[rows]).view_as(patch)
    return total, grad_maps, grad_coefficients


def _sum_padded(maps: Tensor, coefficients: Tensor, pairs: MaskPairs, masks: Tensor, needs_grad: bool) -> _Sum:
    """Compute the sum for k pairs of every image at once, on whole maps (B, mh, mw, M); padding has no weight."""
    batch, height, width, _ = maps.shape
    flat = maps.flatten(1, 2)  # (B, pixels, M)
    padding = coefficients.shape[0]
    coefficients_padded = pad(coefficients, (0, 0, 0, 1))
    boxes, weights, number = pad(pairs.boxes_xyxy, (0, 0, 0, 1)), pad(pairs.weights, (0, 1)), pad(pairs.mask, (0, 1))
    total = maps.new_zeros(())
    grad_flat = torch.zeros_like(flat) if needs_grad else None
    grad_padded = torch.zeros_like(coefficients_padded) if needs_grad else None
    for rows in pairs.padded.split(max(1, _GPU_CHUNK // (batch * height * width)), dim=1):  # (B, k)
        chosen = coefficients_padded[rows]  # (B, k, M)
        logits = chosen @ flat.transpose(1, 2)  # (B, k, pixels)
        if masks.dtype == torch.bool:
            targets = masks[number[rows]] if len(masks) else masks.new_zeros((*rows.shape, height, width))
        else:
            targets = masks[:, None] == number[rows][..., None, None]
        targets = targets.flatten(2).to(logits.dtype)
        inside = inside_boxes(boxes[rows].flatten(0, 1), (height, width)).view_as(logits)
        factors = inside * weights[rows][..., None]
        total = total + ((softplus(logits) - logits * targets) * factors).sum()
        if grad_flat is not None and grad_padded is not None:
            grad_logits = logits.sigmoid_().sub_(targets).mul_(factors)
            grad_flat.baddbmm_(grad_logits.transpose(1, 2), chosen)
            grad_padded[rows] = grad_logits @ flat  # every pair once; all padding writes to the last row
    if grad_flat is None or grad_padded is None:
        return total, None, None
    return total, grad_flat.view_as(maps), grad_padded[:padding]
