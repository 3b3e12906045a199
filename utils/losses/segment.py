"""The loss of the `segment` head: that of boxes, and the cross-entropy of masks in their boxes (behaviour.md 3.8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import interpolate, softplus

from utils.core.contracts import Batch, HeadSpec, Raw
from utils.core.distributed import sum_over_ranks
from utils.core.hyp import Hyp
from utils.losses import LOSSES
from utils.losses.detect import DetectLoss, DetectLossDetails, autocast_disabled
from utils.ops.boxes import cxcywhn_to_xyxy
from utils.ops.masks import inside_boxes

_CHUNK = 2**21  # mask pixels that are computed at a time


class MaskPairs(NamedTuple):
    """P pairs of a prediction and a labelled mask on all levels, ordered by label and so by image."""

    coefficients: Tensor  # (P, M)
    boxes_xyxy: Tensor  # (P, 4) pixels of the prototypes
    weights: Tensor  # (P,) what the sum over a mask's pixels is multiplied by
    target: Tensor  # (P,) int64 row of the label in `Batch.boxes`
    truth: Tensor  # (P,) int64 number in the index map, or row of the masks
    counts: list[int]  # per image


@LOSSES.register("segment")
class SegmentLoss(nn.Module):
    """Loss terms `box`, `seg`, `obj`, `cls`, gains included, batch size not (the engine multiplies: `per_image`).

    `raw` holds the levels as DetectLoss wants them, with M coefficients after the classes, and `prototypes`
    (B, M, mh, mw). `batch.masks` may have any resolution. Every pair counts the mean cross-entropy over the whole map,
    zero outside its box, divided by the area of the box; the mean of an image's pairs is summed over images and
    levels and divided by the images of all ranks (in evaluation mode of this one), so that ranks' terms add up.

    Masks are computed a few at a time, with their gradient, which is all that stays until the backward pass: memory
    does not grow with the number of objects. On a CPU only the pixels of each label's box are computed; on a GPU whole
    maps, many at a time, because small steps cost more there. How many pairs each image has is asked once per step, and
    the host waits for a GPU there.
    """

    per_image = True
    labels = "boxes"
    extra_terms: tuple[str, ...] = ()

    def __init__(self, spec: HeadSpec, hyp: Hyp, **options: Any) -> None:
        super().__init__()
        if spec.num_masks < 1:
            raise ValueError(f"the head {spec.name!r} has no mask coefficients")
        self.boxes = DetectLoss(spec, hyp, **options)
        self.first = 5 + spec.num_classes  # column of the first coefficient
        self.gain = hyp.box

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of one batch as float32 scalars."""
        found = self.boxes.detailed(raw, batch)
        with autocast_disabled(raw["prototypes"].device.type):
            seg = self._masks(raw["prototypes"].float(), found, batch)
        terms = found.terms
        return {"box": terms["box"], "seg": seg, "obj": terms["obj"], "cls": terms["cls"]}

    def _masks(self, prototypes: Tensor, found: DetectLossDetails, batch: Batch) -> Tensor:
        size_hw = (prototypes.shape[2], prototypes.shape[3])
        masks = batch.masks
        if masks is None:
            if len(batch.boxes):
                raise ValueError("the batch has objects and no masks; load it with LoadRequest.masks")
            masks = torch.zeros((0, *size_hw), dtype=torch.bool, device=prototypes.device)
        if len(masks) and masks.shape[1:] != size_hw:
            masks = interpolate(masks[None].float(), size=size_hw, mode="nearest")[0].to(masks.dtype)
        pairs = self._pairs(found, batch, size_hw, masks.dtype != torch.bool)
        images = prototypes.new_tensor(float(len(batch)))
        if self.training:  # as in DetectLoss: in validation ranks have batches of their own
            images = sum_over_ranks(images)
        return _MaskEntropy.apply(prototypes, pairs.coefficients, pairs, masks) * (self.gain / images)

    def _pairs(self, found: DetectLossDetails, batch: Batch, size_hw: tuple[int, int], numbered: bool) -> MaskPairs:
        image = torch.cat([level.image for level in found.assignments])
        target = torch.cat([level.target for level in found.assignments])
        valid = torch.cat([level.valid for level in found.assignments])
        weights = []
        for level in found.assignments:
            held = torch.zeros(len(batch), device=image.device).index_add(0, level.image, level.valid.float())
            weights.append(1 / held.clamp(min=1)[level.image])
        chosen = valid.nonzero()[:, 0]
        chosen = chosen[target[chosen].argsort(stable=True)]  # labels are ordered by image, so pairs are, too
        image, target = image[chosen], target[chosen]
        boxes = batch.boxes.float()[target, 2:]
        # rows of one image stand together, so its first row tells the numbers of all
        numbers = torch.arange(len(batch), device=image.device, dtype=batch.boxes.dtype)
        starts = torch.searchsorted(batch.boxes[:, 0].contiguous(), numbers)
        return MaskPairs(
            coefficients=torch.cat(found.rows)[chosen, self.first :],
            boxes_xyxy=cxcywhn_to_xyxy(boxes, size_hw),
            weights=torch.cat(weights)[chosen] / (boxes[:, 2] * boxes[:, 3]) / (size_hw[0] * size_hw[1]),
            target=target,
            truth=target - starts[image] + 1 if numbered else target,
            counts=torch.bincount(image, minlength=len(batch)).tolist(),
        )


class MaskChunk(NamedTuple):
    """Pairs of one image that are computed together, and the part of the map that they are computed on."""

    image: int
    rows: slice
    part: tuple[slice, slice]  # rows and columns of the map
    same: bool  # all belong to one label, whose box is the part


def chunks_by_label(pairs: MaskPairs, size_hw: tuple[int, int]) -> Iterator[MaskChunk]:
    """Yield all pairs label by label, each on the pixels of its box."""
    counts = torch.unique_consecutive(pairs.target, return_counts=True)[1]
    ends = counts.cumsum(0)
    limit = torch.tensor([size_hw[1], size_hw[0]] * 2)
    corners = pairs.boxes_xyxy[ends - 1].ceil().long().clamp(min=0).minimum(limit)  # a pixel's index lies inside
    images = torch.arange(len(pairs.counts)).repeat_interleave(torch.tensor(pairs.counts))[ends - 1]
    for image, end, count, (x1, y1, x2, y2) in zip(
        images.tolist(), ends.tolist(), counts.tolist(), corners.tolist(), strict=True
    ):
        part = (slice(y1, y2), slice(x1, x2))
        step = max(1, _CHUNK // max(1, (x2 - x1) * (y2 - y1)))
        for first in range(end - count, end, step):
            yield MaskChunk(image, slice(first, min(first + step, end)), part, same=True)


def chunks_by_image(pairs: MaskPairs, size_hw: tuple[int, int]) -> Iterator[MaskChunk]:
    """Yield all pairs image by image, on the whole map."""
    step = max(1, _CHUNK // (size_hw[0] * size_hw[1]))
    end = 0
    for image, count in enumerate(pairs.counts):
        start, end = end, end + count
        for first in range(start, end, step):
            yield MaskChunk(image, slice(first, min(first + step, end)), (slice(None), slice(None)), same=False)


class _MaskEntropy(torch.autograd.Function):
    """The weighted sum of all masks' cross-entropies; gradients are made on the way, a few masks at a time."""

    @staticmethod
    def forward(ctx: Any, prototypes: Tensor, coefficients: Tensor, pairs: MaskPairs, masks: Tensor) -> Tensor:
        """Return a scalar. `coefficients` are those of `pairs`: autograd does not look into tuples."""
        learning = any(ctx.needs_input_grad)
        maps = prototypes.permute(0, 2, 3, 1)  # how they lie in memory
        grad_maps = torch.zeros_like(maps) if learning else None
        grad_coefficients = torch.zeros_like(coefficients) if learning else None
        size_hw = (maps.shape[1], maps.shape[2])
        split = chunks_by_label if maps.device.type == "cpu" else chunks_by_image
        total = maps.new_zeros(())
        for piece in split(pairs, size_hw):
            patch, rows = maps[piece.image][piece.part], piece.rows
            flat = patch.reshape(-1, maps.shape[3])
            logits = coefficients[rows] @ flat.T
            wanted, share = _wanted(piece, pairs, masks, size_hw)
            total += ((softplus(logits) - logits * wanted) * share).sum()
            if grad_maps is not None and grad_coefficients is not None:
                slope = logits.sigmoid_().sub_(wanted).mul_(share)
                grad_coefficients[rows] = slope @ flat
                grad_maps[piece.image][piece.part] += (slope.T @ coefficients[rows]).view_as(patch)
        if learning:
            ctx.save_for_backward(grad_maps, grad_coefficients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that the forward pass made, times that of the result."""
        maps, coefficients = ctx.saved_tensors
        return (maps * grad).permute(0, 3, 1, 2), coefficients * grad, None, None


def _wanted(piece: MaskChunk, pairs: MaskPairs, masks: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return what the masks of a piece should be, and what each pixel counts: (k or 1, pixels) and (k, pixels or 1)."""
    image, rows, part, same = piece
    weights = pairs.weights[rows, None]
    truth = pairs.truth[rows.start : rows.start + 1] if same else pairs.truth[rows]
    if masks.dtype == torch.bool:
        chosen = masks[:, part[0], part[1]][truth]
    else:
        chosen = masks[image, part[0], part[1]] == truth[:, None, None]
    wanted = chosen.flatten(1).to(weights.dtype)
    return wanted, weights if same else inside_boxes(pairs.boxes_xyxy[rows], size_hw).flatten(1) * weights
