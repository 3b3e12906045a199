"""Loss of the `segment` head: the detection loss and the cross-entropy of masks inside their boxes.

The mask of a predictor is sigmoid(sum over m of coefficient_m * prototype_m). The term `seg`, before its gain, is

    sum over levels of  mean over images of  mean over the pairs of an image of  mean over the labelled box of  BCE

where the last mean is the sum over the pixels inside the box divided by the exact, not the rasterised, area of the box.
"""

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

_CHUNK = 2**21  # mask pixels computed at a time


class MaskPairs(NamedTuple):
    """P valid pairs of a predictor and a labelled mask on all levels, ordered by label and hence by image."""

    coefficients: Tensor  # (P, M)
    boxes_xyxy: Tensor  # (P, 4) labelled boxes in pixels of the prototypes
    weights: Tensor  # (P,) factor of the sum over the pixels of a mask
    target: Tensor  # (P,) int64 row of the label in `Batch.boxes`
    mask: Tensor  # (P,) int64 value of the object in the index map, or row of the (N, h, w) masks
    counts: list[int]  # number of pairs of each image


@LOSSES.register("segment")
class SegmentLoss(nn.Module):
    """Instance segmentation loss with the terms `box`, `seg`, `obj` and `cls`, gains included.

    The engine multiplies the terms by the number of images (`per_image`). Means are taken over all ranks in training
    and over this rank in evaluation, as in `DetectLoss`.

    Masks are computed in chunks together with their gradients, and only the gradients are kept for the backward pass,
    so memory does not grow with the number of objects. On a CPU only the pixels inside each labelled box are computed.
    On a GPU, where small operations are expensive, whole maps of many masks are. The number of pairs per image is read
    from the GPU once per step, which synchronises with it.

    Args:
        spec: Description of the head, with M = `num_masks` mask coefficients.
        hyp: Hyper-parameters with scaled gains; `box` is also the gain of `seg`.
        **options: Further arguments of `DetectLoss`.

    Raises:
        ValueError: If the head has no mask coefficients.
    """

    per_image = True
    labels = "boxes"
    extra_terms: tuple[str, ...] = ()

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
        details = self.boxes.detailed(raw, batch)
        with autocast_disabled(raw["prototypes"].device.type):
            seg = self._mask_term(raw["prototypes"].float(), details, batch)
        terms = details.terms
        return {"box": terms["box"], "seg": seg, "obj": terms["obj"], "cls": terms["cls"]}

    def _mask_term(self, prototypes: Tensor, details: DetectLossDetails, batch: Batch) -> Tensor:
        size_hw = (prototypes.shape[2], prototypes.shape[3])
        masks = batch.masks
        if masks is None:
            if len(batch.boxes):
                raise ValueError("the batch has boxes but no masks; load it with LoadRequest(masks=True)")
            masks = torch.zeros((0, *size_hw), dtype=torch.bool, device=prototypes.device)
        if len(masks) and masks.shape[1:] != size_hw:
            masks = interpolate(masks[None].float(), size=size_hw, mode="nearest")[0].to(masks.dtype)
        pairs = self._mask_pairs(details, batch, size_hw, masks.dtype != torch.bool)
        images = prototypes.new_tensor(float(len(batch)))
        if self.training:
            images = sum_over_ranks(images)
        return _MaskCrossEntropy.apply(prototypes, pairs.coefficients, pairs, masks) * (self.gain / images)

    def _mask_pairs(
        self, details: DetectLossDetails, batch: Batch, size_hw: tuple[int, int], is_index_map: bool
    ) -> MaskPairs:
        image = torch.cat([level.image for level in details.assignments])
        target = torch.cat([level.target for level in details.assignments])
        valid = torch.cat([level.valid for level in details.assignments])
        weights = []
        for level in details.assignments:
            pair_counts = torch.zeros(len(batch), device=image.device).index_add(0, level.image, level.valid.float())
            weights.append(1 / pair_counts.clamp(min=1)[level.image])
        order = valid.nonzero()[:, 0]
        order = order[target[order].argsort(stable=True)]  # labels are ordered by image, so pairs are, too
        image, target = image[order], target[order]
        boxes = batch.boxes.float()[target, 2:]
        # The labels of an image are consecutive rows, so their values in the index map follow from the first row.
        indices = torch.arange(len(batch), device=image.device, dtype=batch.boxes.dtype)
        first_rows = torch.searchsorted(batch.boxes[:, 0].contiguous(), indices)
        return MaskPairs(
            coefficients=torch.cat(details.predictions)[order, self.first_coefficient :],
            boxes_xyxy=cxcywhn_to_xyxy(boxes, size_hw),
            weights=torch.cat(weights)[order] / (boxes[:, 2] * boxes[:, 3]) / (size_hw[0] * size_hw[1]),
            target=target,
            mask=target - first_rows[image] + 1 if is_index_map else target,
            counts=torch.bincount(image, minlength=len(batch)).tolist(),
        )


class MaskChunk(NamedTuple):
    """Pairs of one image that are computed at once, and the window of the map they are computed on."""

    image: int
    pairs: slice
    window: tuple[slice, slice]  # rows and columns of the map
    one_label: bool  # all pairs belong to one label, and the window is its box


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
            yield MaskChunk(image, slice(first, min(first + step, end)), window, one_label=True)


def chunks_by_image(pairs: MaskPairs, size_hw: tuple[int, int]) -> Iterator[MaskChunk]:
    """Yield all pairs grouped by image, with the whole map as the window."""
    step = max(1, _CHUNK // (size_hw[0] * size_hw[1]))
    end = 0
    for image, count in enumerate(pairs.counts):
        start, end = end, end + count
        for first in range(start, end, step):
            yield MaskChunk(image, slice(first, min(first + step, end)), (slice(None), slice(None)), one_label=False)


class _MaskCrossEntropy(torch.autograd.Function):
    """Weighted sum of the cross-entropies of all masks; the forward pass computes the gradients, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, prototypes: Tensor, coefficients: Tensor, pairs: MaskPairs, masks: Tensor) -> Tensor:
        """Compute the scalar sum.

        `coefficients` are `pairs.coefficients`, passed separately because autograd does not track tuples.
        """
        needs_grad = any(ctx.needs_input_grad)
        maps = prototypes.permute(0, 2, 3, 1)  # the memory layout of channels-last tensors
        grad_maps = torch.zeros_like(maps) if needs_grad else None
        grad_coefficients = torch.zeros_like(coefficients) if needs_grad else None
        size_hw = (maps.shape[1], maps.shape[2])
        split = chunks_by_label if maps.device.type == "cpu" else chunks_by_image
        total = maps.new_zeros(())
        for chunk in split(pairs, size_hw):
            patch, rows = maps[chunk.image][chunk.window], chunk.pairs
            flat = patch.reshape(-1, maps.shape[3])  # (pixels, M)
            logits = coefficients[rows] @ flat.T
            targets, weights = _targets_and_weights(chunk, pairs, masks, size_hw)
            total += ((softplus(logits) - logits * targets) * weights).sum()
            if grad_maps is not None and grad_coefficients is not None:
                grad_logits = logits.sigmoid_().sub_(targets).mul_(weights)
                grad_coefficients[rows] = grad_logits @ flat
                grad_maps[chunk.image][chunk.window] += (grad_logits.T @ coefficients[rows]).view_as(patch)
        if needs_grad:
            ctx.save_for_backward(grad_maps, grad_coefficients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients computed in the forward pass."""
        maps, coefficients = ctx.saved_tensors
        return (maps * grad).permute(0, 3, 1, 2), coefficients * grad, None, None


def _targets_and_weights(
    chunk: MaskChunk, pairs: MaskPairs, masks: Tensor, size_hw: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the targets, (k or 1, pixels), and weights, (k, pixels or 1), of the k masks of a chunk."""
    image, rows, window, one_label = chunk
    weights = pairs.weights[rows, None]
    mask = pairs.mask[rows.start : rows.start + 1] if one_label else pairs.mask[rows]
    if masks.dtype == torch.bool:
        chosen = masks[:, window[0], window[1]][mask]
    else:
        chosen = masks[image, window[0], window[1]] == mask[:, None, None]
    targets = chosen.flatten(1).to(weights.dtype)
    return targets, weights if one_label else inside_boxes(pairs.boxes_xyxy[rows], size_hw).flatten(1) * weights
