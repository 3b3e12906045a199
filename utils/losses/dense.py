"""Loss of the anchor-free detection head: task-aligned targets, CIoU, and distributions of distances.

Terms, before gains, with the target score t of every positive pair of a cell and a label, the weight w of a class, 1
unless given, and T = sum of w t on all ranks:

    cls = sum over cells and classes of  w BCE(class logit, t of the pair's class, else 0) / T
    box = sum over pairs of  w t (1 - CIoU(predicted box, labelled box)) / T
    dfl = sum over pairs of  w t mean over sides of  DFL(distribution of the distance, distance in strides) / T

DFL is the distribution focal loss of Li et al. 2020 (arXiv:2006.04388): the cross-entropies of the two bins beside a
distance, weighted by its closeness to them. Heads with one bin have the L1 error in strides in its place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss, softplus

from utils.core.contracts import Batch, HeadSpec, Raw
from utils.core.distributed import sum_over_ranks
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.losses import LOSSES
from utils.losses.detect import autocast_disabled
from utils.losses.task_aligned import Assigned, Candidates, assign, find_candidates
from utils.ops.iou import paired_iou

TOP_K = 10  # positives per label
TOP_K_SINGLE = 7  # cells from which the only positive of the duplicate filter is chosen
_LAST_BIN = 0.01  # distances end this far below the last bin, so that there is a bin above them


class DenseLossDetails(NamedTuple):
    """Loss terms with the assignment that a loss of masks needs, too."""

    terms: dict[str, Tensor]
    assigned: Assigned
    weight: Tensor  # (K,) target score of every pair times the weight of its class
    total: Tensor  # sum of these on all ranks
    ious: Tensor  # of all pairs


@LOSSES.register("dense")
class DenseLoss(nn.Module):
    """Loss terms `box`, `cls` and `dfl` of the dense head, gains included, and `one_cls` of its duplicate filter.

    The engine multiplies the terms by the number of images (`per_image`). In evaluation mode the sum of target scores
    is that of this rank.

    Args:
        spec: Description of the head: classes, strides and bins.
        hyp: Hyperparameters `dense_box`, `dense_cls` and `dense_dfl`, the gains, and `dense_class_weights`.

    Raises:
        ValueError: If the head has no bins.
        UserError: If the number of class weights is not that of the classes.
    """

    per_image = True
    labels = "boxes"
    extra_terms: tuple[str, ...] = ("dfl",)
    omitted_terms: tuple[str, ...] = ("obj",)
    training_terms: tuple[str, ...] = ()
    class_weights: Tensor | None

    def __init__(self, spec: HeadSpec, hyp: Hyp) -> None:
        super().__init__()
        if spec.bins < 1:
            raise ValueError(f"head {spec.name!r}: has no bins; use the loss of anchor-based heads")
        self.spec, given = spec, hyp.dense_class_weights
        if given is not None and len(given) != spec.num_classes:
            raise UserError(
                f"dense_class_weights: expected {spec.num_classes} weights, one per class, got {len(given)}"
            )
        weights = None if given is None else torch.tensor(given, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.gains = {"box": hyp.dense_box, "cls": hyp.dense_cls, "dfl": hyp.dense_dfl}

    def prepare(self, batch: Batch, input_hw: tuple[int, int]) -> Candidates:
        """Find the candidate pairs of a batch on the host.

        Args:
            batch: Images and labelled boxes, on any device; labels on a GPU make the host wait for it.
            input_hw: Height and width of the network's input.

        Returns:
            The pairs, on the CPU.
        """
        labels = batch.boxes.detach().cpu().float()
        if batch.boxes_known is not None:
            labels = labels[batch.boxes_known.cpu()[labels[:, 0].long()]]
        return find_candidates(labels, input_hw, self.spec.strides, len(batch), TOP_K)

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss terms of a batch.

        Args:
            raw: `level0`, `level1`, ...: (B, 4 x bins + C, H, W) logits, finest level first; with the duplicate filter
                also its (B, K) logits `filtered` and their `places`.
            batch: Images and labelled boxes; `batch.prepared` may hold the pairs of `prepare()`.

        Returns:
            The terms by name, float32 scalars.
        """
        candidates = self._candidates(raw, batch)
        with autocast_disabled(raw["level0"].device.type):
            logits = self.levels(raw)
            details = self.detailed(logits, candidates, batch)
            if "filtered" not in raw:
                return details.terms
            return details.terms | {"one_cls": self._filter_term(logits.detach(), raw, candidates, batch, details)}

    def levels(self, raw: Raw) -> Tensor:
        """Join the levels: (B, N, columns) float32 logits; those of a cell are adjacent, as in channels-last maps."""
        parts = [raw[f"level{index}"].flatten(2).transpose(1, 2) for index in range(len(self.spec.strides))]
        return torch.cat(parts, dim=1).float()

    def _candidates(self, raw: Raw, batch: Batch) -> Candidates:
        prepared = batch.prepared.get(self.spec.name)
        if isinstance(prepared, Candidates):
            return prepared
        finest, stride = raw["level0"], self.spec.strides[0]
        return self.prepare(batch, (finest.shape[2] * stride, finest.shape[3] * stride)).to(finest.device)

    def detailed(self, logits: Tensor, pairs: Candidates, batch: Batch) -> DenseLossDetails:
        """Compute the terms of the branches.

        Args:
            logits: (B, N, 4 x bins + C (+ masks)) float32.
            pairs: Candidate pairs.
            batch: Images; `boxes_known` excludes some from the background.
        """
        bins = self.spec.bins
        box_logits, classes = self._split(logits)
        ious = self._ious(box_logits.detach(), pairs)
        own = pairs.classes[pairs.label]
        assigned = assign(pairs, classes.detach()[pairs.image, pairs.cell, own].sigmoid(), ious)
        pair, weight = assigned.pair, assigned.score
        entropies = softplus(classes)  # BCE is softplus(logit) - target logit
        if self.class_weights is not None:
            weight, entropies = weight * self.class_weights[own[pair]], entropies * self.class_weights
        total = self._sum(weight)
        if batch.boxes_known is not None:
            entropies = torch.where(batch.boxes_known.view(-1, 1, 1), entropies, 0)
        matched = (classes[pairs.image[pair], pairs.cell[pair], own[pair]] * weight).sum()
        chosen = box_logits[pairs.image[pair], pairs.cell[pair]]  # (K, 4 x bins)
        wanted = _to_distances(pairs.boxes[pairs.label[pair]], pairs.centre[pair]) / pairs.stride[pair, None]
        ciou = paired_iou(_to_cxcywh(_distances(chosen, bins)), _to_cxcywh(wanted), "ciou")
        sums = {
            "box": ((1 - ciou) * weight).sum(),
            "cls": entropies.sum() - matched,
            "dfl": (_distance_loss(chosen, wanted, bins) * weight).sum(),
        }
        terms = {name: sums[name] / total * gain for name, gain in self.gains.items()}
        return DenseLossDetails(terms, assigned, weight, total, ious)

    def _filter_term(
        self, logits: Tensor, raw: Raw, pairs: Candidates, batch: Batch, details: DenseLossDetails
    ) -> Tensor:
        """Compute the class term of the filtered logits, with a single positive per label."""
        classes = self._split(logits)[1].transpose(1, 2)
        places, filtered = raw["places"], raw["filtered"].float()
        all_scores = classes.flatten(1).scatter(1, places, filtered.detach()).sigmoid()
        place = pairs.classes[pairs.label] * classes.shape[2] + pairs.cell
        pair, _, score = assign(pairs, all_scores[pairs.image, place], details.ious, TOP_K_SINGLE)
        targets = torch.zeros_like(all_scores).index_put((pairs.image[pair], place[pair]), score, accumulate=True)
        entropies = softplus(filtered) - targets.gather(1, places) * filtered
        if self.class_weights is not None:
            score = score * self.class_weights[pairs.classes[pairs.label[pair]]]
            entropies = entropies * self.class_weights[torch.div(places, classes.shape[2], rounding_mode="trunc")]
        if batch.boxes_known is not None:
            entropies = torch.where(batch.boxes_known.view(-1, 1), entropies, 0)
        return entropies.sum() / self._sum(score) * self.gains["cls"]

    def _split(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Split (B, N, columns) logits into those of boxes and those of classes."""
        sizes = [4 * self.spec.bins, self.spec.num_classes]
        box, classes, _ = logits.split([*sizes, logits.shape[2] - sum(sizes)], dim=2)
        return box, classes

    def _sum(self, weights: Tensor) -> Tensor:
        """Sum weights of pairs, over all ranks in training; at least 1."""
        return (sum_over_ranks(weights.sum()) if self.training else weights.sum()).clamp(min=1)

    @torch.no_grad()
    def _ious(self, box_logits: Tensor, pairs: Candidates) -> Tensor:
        """Compute the CIoU of every pair, at least 0."""
        cells, place = box_logits.flatten(0, 1), pairs.image * box_logits.shape[1] + pairs.cell
        if len(place) < len(cells):
            distances = _distances(cells[place], self.spec.bins)
        else:  # of every cell once: many large boxes share cells
            distances = _distances(cells, self.spec.bins)[place]
        wanted = _to_distances(pairs.boxes[pairs.label], pairs.centre) / pairs.stride[:, None]
        return paired_iou(_to_cxcywh(distances), _to_cxcywh(wanted), "ciou").clamp(min=0)


def _distances(logits: Tensor, bins: int) -> Tensor:
    """Decode (P, 4 x bins) logits to (P, 4) distances in strides."""
    if bins == 1:
        return softplus(logits)
    values = torch.arange(bins, dtype=logits.dtype, device=logits.device)
    return logits.view(-1, 4, bins).softmax(dim=2) @ values


def _distance_loss(logits: Tensor, wanted: Tensor, bins: int) -> Tensor:
    """Compute the (P,) mean over sides of the distribution focal loss, or of the L1 error with one bin."""
    if bins == 1:
        return l1_loss(softplus(logits), wanted.clamp(min=0), reduction="none").mean(dim=1)
    target = wanted.clamp(0, bins - 1 - _LAST_BIN)
    lower = target.long()
    fraction = target - lower
    flat, index = logits.reshape(-1, bins), lower.flatten()
    below = cross_entropy(flat, index, reduction="none").view_as(target)
    above = cross_entropy(flat, index + 1, reduction="none").view_as(target)
    return (below * (1 - fraction) + above * fraction).mean(dim=1)


def _to_distances(boxes_xyxy: Tensor, centre: Tensor) -> Tensor:
    """Convert corners to the distances of a point from the sides; negative for sides that it lies beyond."""
    return torch.cat((centre - boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - centre), dim=1)


def _to_cxcywh(distances: Tensor) -> Tensor:
    """Convert distances from a point to a box around it: centre relative to the point, and size."""
    low, high = distances[:, :2], distances[:, 2:]
    return torch.cat(((high - low) / 2, low + high), dim=1)
