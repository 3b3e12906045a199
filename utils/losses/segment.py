"""The loss of the `segment` head: that of boxes, and the cross-entropy of masks in their boxes (behaviour.md 3.8)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from utils.core.contracts import Batch, HeadSpec, Raw
from utils.core.dist import sum_over_ranks
from utils.core.hyp import Hyp
from utils.losses import LOSSES
from utils.losses.detect import Detected, DetectLoss, without_autocast
from utils.ops.boxes import cxcywhn_to_xyxy
from utils.ops.masks import inside_boxes

_CHUNK = 2**21  # mask pixels that are computed at a time


class Pairs(NamedTuple):
    """P pairs of a prediction and a labelled mask on all levels, ordered by image."""

    coefficients: Tensor  # (P, M)
    boxes_xyxy: Tensor  # (P, 4) pixels of the prototypes
    weights: Tensor  # (P,) what the sum over a mask's pixels is multiplied by
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
    does not grow with the number of objects. How many pairs each image has is asked once per step, and the host waits
    for a GPU there.
    """

    per_image = True
    labels = "boxes"

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
        with without_autocast(raw["prototypes"].device.type):
            seg = self._masks(raw["prototypes"].float(), found, batch)
        terms = found.terms
        return {"box": terms["box"], "seg": seg, "obj": terms["obj"], "cls": terms["cls"]}

    def _masks(self, prototypes: Tensor, found: Detected, batch: Batch) -> Tensor:
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

    def _pairs(self, found: Detected, batch: Batch, size_hw: tuple[int, int], numbered: bool) -> Pairs:
        image = torch.cat([level.image for level in found.assignments])
        target = torch.cat([level.target for level in found.assignments])
        valid = torch.cat([level.valid for level in found.assignments])
        weights = []
        for level in found.assignments:
            held = torch.zeros(len(batch), device=image.device).index_add(0, level.image, level.valid.float())
            weights.append(1 / held.clamp(min=1)[level.image])
        chosen = valid.nonzero()[:, 0]
        chosen = chosen[image[chosen].argsort(stable=True)]
        image, target = image[chosen], target[chosen]
        boxes = batch.boxes.float()[target, 2:]
        # rows of one image stand together, so its first row tells the numbers of all
        numbers = torch.arange(len(batch), device=image.device, dtype=batch.boxes.dtype)
        starts = torch.searchsorted(batch.boxes[:, 0].contiguous(), numbers)
        return Pairs(
            coefficients=torch.cat(found.rows)[chosen, self.first :],
            boxes_xyxy=cxcywhn_to_xyxy(boxes, size_hw),
            weights=torch.cat(weights)[chosen] / (boxes[:, 2] * boxes[:, 3]) / (size_hw[0] * size_hw[1]),
            truth=target - starts[image] + 1 if numbered else target,
            counts=torch.bincount(image, minlength=len(batch)).tolist(),
        )


class _MaskEntropy(torch.autograd.Function):
    """The weighted sum of all masks' cross-entropies; gradients are made on the way, a few masks at a time."""

    @staticmethod
    def forward(ctx: Any, prototypes: Tensor, coefficients: Tensor, pairs: Pairs, masks: Tensor) -> Tensor:
        """Return a scalar. `coefficients` are those of `pairs`: autograd does not look into tuples."""
        learning = any(ctx.needs_input_grad)
        grad_prototypes = torch.zeros_like(prototypes, memory_format=torch.contiguous_format) if learning else None
        grad_coefficients = torch.zeros_like(coefficients) if learning else None
        size_hw = (prototypes.shape[2], prototypes.shape[3])
        step = max(1, _CHUNK // (size_hw[0] * size_hw[1]))
        total, end = prototypes.new_zeros(()), 0
        for image, count in enumerate(pairs.counts):
            start, end = end, end + count
            flat = prototypes[image].flatten(1)
            for first in range(start, end, step):
                rows = slice(first, min(first + step, end))
                logits = coefficients[rows] @ flat
                truth = pairs.truth[rows]
                wanted = masks[truth] if masks.dtype == torch.bool else masks[image] == truth[:, None, None]
                wanted = wanted.flatten(1).to(logits.dtype)
                share = inside_boxes(pairs.boxes_xyxy[rows], size_hw).flatten(1) * pairs.weights[rows, None]
                total += (binary_cross_entropy_with_logits(logits, wanted, reduction="none") * share).sum()
                if grad_prototypes is not None and grad_coefficients is not None:
                    slope = logits.sigmoid_().sub_(wanted).mul_(share)
                    grad_coefficients[rows] = slope @ flat.T
                    grad_prototypes[image].flatten(1).addmm_(coefficients[rows].T, slope)
        if learning:
            ctx.save_for_backward(grad_prototypes, grad_coefficients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that the forward pass made, times that of the result."""
        prototypes, coefficients = ctx.saved_tensors
        return prototypes * grad, coefficients * grad, None, None
