"""Loss of the anchor-free instance segmentation head: that of its boxes, masks inside boxes, and semantic maps.

Terms beside those of the `dense` head, before gains, with the target score t of every positive pair, the weight w of
its class and T = sum of w t:

    seg = sum over pairs of  w t mean over the labelled box of  BCE(mask logit, labelled mask) / T
    sem = mean over pixels and classes of  BCE(logit, some object of the class covers the pixel)
        + mean over the classes present in each image of  1 - 2 sum(p y) / (sum(p) + sum(y))

The last fraction is the Dice coefficient of the probabilities p and the labels y (V-Net, arXiv:1606.04797). `sem`
exists in training only, as does the branch of the head that it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from utils.core.contracts import Batch, HeadSpec, Raw
from utils.core.distributed import sum_over_ranks
from utils.core.hyp import Hyp
from utils.losses import LOSSES
from utils.losses.anchor_assignment import pack_to
from utils.losses.dense import DenseLoss, DenseLossDetails
from utils.losses.detect import autocast_disabled
from utils.losses.segment import MaskCrossEntropy, MaskPairs, masks_of_size, pad_pairs
from utils.losses.task_aligned import Candidates

_SMOOTH = 1.0  # pixels added to both sums of the Dice coefficient


@dataclass(frozen=True)
class DenseMaskTargets:
    """Candidate pairs, and what masks need of the labels; the K pairs of low rank are ordered by label and image."""

    candidates: Candidates
    counts: tuple[int, ...]  # pairs of each image
    target: Tensor  # (K,) int64 row of the label in `Batch.boxes`
    number: Tensor  # (K,) int64 value of the object in an index map of its image, from 1
    padded: Tensor  # (B, k) int64 pairs of each image, padded with K
    classes: Tensor  # (B, n + 1) int64 class of each value of an image's index map, C for background

    def pin_memory(self) -> DenseMaskTargets:
        """Return this object; `to()` copies from its own buffers."""
        return self

    def to(self, device: torch.device) -> DenseMaskTargets:
        """Move all tensors to `device` without blocking the host."""
        if device.type == "cpu":
            return self
        moved = pack_to((self.target, self.number, self.padded, self.classes), device)
        return DenseMaskTargets(self.candidates.to(device), self.counts, *moved)


@LOSSES.register("dense_segment")
class DenseSegmentLoss(nn.Module):
    """Loss terms `box`, `seg`, `cls`, `dfl` and, in training, `sem` of the anchor-free head with masks.

    The engine multiplies the terms by the number of images (`per_image`). Sums are taken over all ranks in training and
    over this rank in evaluation, as in `DenseLoss`.

    Args:
        spec: Description of the head: classes, strides, bins and M = `num_masks` mask coefficients.
        hyp: Hyperparameters; the gains are those of `DenseLoss`, `dense_mask` and `dense_semantic`.

    Raises:
        ValueError: If the head has no bins or no mask coefficients.
    """

    per_image = True
    labels = "boxes"
    extra_terms: tuple[str, ...] = ("dfl",)
    training_terms: tuple[str, ...] = ("sem",)
    omitted_terms: tuple[str, ...] = ("obj",)

    def __init__(self, spec: HeadSpec, hyp: Hyp) -> None:
        super().__init__()
        if spec.num_masks < 1:
            raise ValueError(f"head {spec.name!r}: no mask coefficients; use the dense loss")
        self.boxes = DenseLoss(spec, hyp)
        self.mask_gain, self.semantic_gain = hyp.dense_mask, hyp.dense_semantic

    def prepare(self, batch: Batch, input_hw: tuple[int, int]) -> DenseMaskTargets:
        """Find the candidate pairs of a batch on the host, and the rows of their masks.

        Args:
            batch: Images and labelled boxes, on any device; labels on a GPU make the host wait for it.
            input_hw: Height and width of the network's input.

        Returns:
            The targets, on the CPU.
        """
        candidates = self.boxes.prepare(batch, input_hw)
        labels, images = batch.boxes.detach().cpu(), len(batch)
        image_of, classes = labels[:, 0].long(), labels[:, 1].long()
        # the labels of an image are consecutive rows, so their values in the index map follow from the first row
        per_image = torch.bincount(image_of, minlength=images)
        number = torch.arange(len(labels)) - (per_image.cumsum(0) - per_image)[image_of] + 1
        table = torch.full((images, int(per_image.max()) + 1), self.boxes.spec.num_classes)
        table[image_of, number] = classes
        rows = torch.arange(len(labels))
        if batch.boxes_known is not None:
            rows = rows[batch.boxes_known.cpu()[image_of]]
        target = rows[candidates.label[candidates.position]]
        counts = torch.bincount(image_of[target], minlength=images)
        return DenseMaskTargets(candidates, tuple(counts.tolist()), target, number[target], pad_pairs(counts), table)

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss terms of a batch.

        Args:
            raw: `level0`, `level1`, ...: (B, 4 x bins + C + M, H, W), finest level first; `prototypes` (B, M, mh, mw);
                in training `semantic` (B, C, h, w) logits.
            batch: Images, labelled boxes and masks of any resolution.

        Returns:
            The terms by name, float32 scalars.
        """
        spec, finest = self.boxes.spec, raw["level0"]
        targets = batch.prepared.get(spec.name)
        if not isinstance(targets, DenseMaskTargets):
            input_hw = (finest.shape[2] * spec.strides[0], finest.shape[3] * spec.strides[0])
            targets = self.prepare(batch, input_hw).to(finest.device)
        with autocast_disabled(finest.device.type):
            logits = self.boxes.levels(raw)
            details = self.boxes.detailed(logits, targets.candidates, batch)
            seg = self._mask_term(raw["prototypes"].float(), logits, details, targets, batch)
            terms = {"box": details.terms["box"], "seg": seg, "cls": details.terms["cls"], "dfl": details.terms["dfl"]}
            if "semantic" in raw:
                terms["sem"] = self._semantic_term(raw["semantic"].float(), targets, batch)
        return terms

    def _mask_term(
        self, prototypes: Tensor, logits: Tensor, details: DenseLossDetails, targets: DenseMaskTargets, batch: Batch
    ) -> Tensor:
        size_hw = (prototypes.shape[2], prototypes.shape[3])
        masks, candidates, spec = masks_of_size(batch, size_hw), targets.candidates, self.boxes.spec
        pair = details.assigned.pair
        image, label = candidates.image[pair], candidates.label[pair]
        prototypes_per_pixel = size_hw[1] / (candidates.level_hws[0][1] * spec.strides[0])
        boxes = candidates.boxes[label] * prototypes_per_pixel
        area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        coefficients = logits[image, candidates.cell[pair], 4 * spec.bins + spec.num_classes :]
        pairs = MaskPairs(
            coefficients=coefficients,
            boxes_xyxy=boxes,
            weights=details.weight / details.total / area,
            target=targets.target,
            mask=targets.target if masks.dtype == torch.bool else targets.number,
            counts=targets.counts,
            padded=targets.padded,
        )
        if prototypes.device.type == "cpu":
            pairs = _positive_pairs(pairs, details.assigned.positive, image)
        return MaskCrossEntropy.apply(prototypes, pairs.coefficients, pairs, masks) * self.mask_gain

    def _semantic_term(self, logits: Tensor, targets: DenseMaskTargets, batch: Batch) -> Tensor:
        labels = _semantic_labels(targets, batch, logits)
        known = logits.new_ones(len(batch)) if batch.boxes_known is None else batch.boxes_known.to(logits.dtype)
        entropies = (softplus(logits) - logits * labels).mean(dim=(1, 2, 3))  # (B,)
        scores = logits.sigmoid()
        both, either = (scores * labels).sum(dim=(2, 3)), (scores + labels).sum(dim=(2, 3))  # (B, C)
        present = labels.amax(dim=(2, 3)) * known[:, None]
        overlap = (2 * both + _SMOOTH) / (either + _SMOOTH)
        counts = torch.stack((known.sum(), present.sum()))
        counts = (sum_over_ranks(counts) if self.training else counts).clamp(min=1)
        return (
            (entropies * known).sum() / counts[0] + ((1 - overlap) * present).sum() / counts[1]
        ) * self.semantic_gain


def _positive_pairs(pairs: MaskPairs, positive: Tensor, image: Tensor) -> MaskPairs:
    """Leave out the pairs without weight; the host need not wait for the counts, as the tensors are on the CPU."""
    counts = torch.bincount(image[positive], minlength=len(pairs.counts))
    return pairs._replace(
        coefficients=pairs.coefficients[positive],
        boxes_xyxy=pairs.boxes_xyxy[positive],
        weights=pairs.weights[positive],
        target=pairs.target[positive],
        mask=pairs.mask[positive],
        counts=tuple(counts.tolist()),
    )


def _semantic_labels(targets: DenseMaskTargets, batch: Batch, logits: Tensor) -> Tensor:
    """Merge instance masks to (B, C, h, w) labels of the size of the logits: 1 where an object covers the pixel."""
    images, classes, height, width = logits.shape
    masks = masks_of_size(batch, (height, width)).flatten(1)
    if masks.dtype == torch.bool:
        row = batch.boxes[:, 0].long() * classes + batch.boxes[:, 1].long()
        merged = logits.new_zeros(images * classes, height * width).index_add_(0, row, masks.to(logits.dtype))
        return merged.clamp(max=1).view(logits.shape)
    merged = logits.new_zeros(images, classes + 1, height * width)
    merged.scatter_(1, targets.classes.gather(1, masks.long())[:, None], 1.0)
    return merged[:, :classes].view(logits.shape)
