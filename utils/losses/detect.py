"""The loss of the `detect` head: overlap of boxes, objectness and classes (behaviour.md 3.7)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from utils.core.contracts import Batch, HeadSpec, Raw
from utils.core.distributed import sum_over_ranks
from utils.core.hyp import Hyp
from utils.losses import LOSSES
from utils.losses.anchor_assignment import Assignment, assign_level
from utils.losses.focal import binary_focal_loss
from utils.ops.iou import paired_iou

_BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)  # weight of each level's objectness, finest first
_BALANCE_OF_THREE = (4.0, 1.0, 0.4)
_BALANCE_MEMORY = 0.9999


class LevelTerms(NamedTuple):
    """Sums over one level on this rank, before they are divided by the counts of all ranks."""

    box: Tensor  # sum of 1 - CIoU over pairs
    obj: Tensor  # sum of cross-entropies over cells
    cls: Tensor  # sum of cross-entropies over pairs, mean over classes
    counts: Tensor  # (2,) pairs, cells


class DetectLossDetails(NamedTuple):
    """What the loss computed on the way; a loss that extends this one reads it instead of doing it again."""

    terms: dict[str, Tensor]
    assignments: list[Assignment]  # per level
    rows: list[Tensor]  # per level, (P, 5 + C + masks) float32 outputs of the pairs
    pair_counts: Tensor  # (L,) what sums over pairs are divided by: pairs on all ranks (in training), at least 1


@LOSSES.register("detect")
class DetectLoss(nn.Module):
    """Loss terms `box`, `obj`, `cls`, gains included, batch size not (the engine multiplies: `per_image`).

    `raw` maps `level0`, `level1`, ... to (B, A, H, W, 5 + C (+ masks)) logits. `hyp` is scaled already.

    With several processes every mean in training is over the pairs or cells of all ranks: a rank returns its own sum
    over the count of all, so *the sum over ranks* of a term is the value one process would have found on the whole
    batch. The engine multiplies by the global batch size and by the number of ranks, because DDP averages gradients,
    and sums the terms over ranks for the log. In evaluation mode means are over this rank's batch: ranks may then have
    unequal numbers of batches, and waiting for each other would hang.

    Shapes never depend on what the GPU computed, so the host never waits for it. Arithmetic is float32, also under
    autocast. `class_weights` (C,) multiplies the classes' cross-entropies; `autobalance` lets the weights of the
    levels follow their losses (in buffers); `hyp.autobalance` does the same.
    """

    per_image = True
    labels = "boxes"
    extra_terms: tuple[str, ...] = ()
    anchors: Tensor
    balance: Tensor
    cls_positive: Tensor
    obj_positive: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        spec: HeadSpec,
        hyp: Hyp,
        *,
        autobalance: bool = False,
        class_weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        levels = len(spec.strides)
        if not 1 <= levels <= len(_BALANCE) or len(spec.anchors) != levels:
            raise ValueError(f"1 to {len(_BALANCE)} levels with anchors are possible, got {levels}, {spec.anchors}")
        self.spec, self.hyp, self.autobalance = spec, hyp, autobalance or hyp.autobalance > 0
        cells = [torch.tensor(anchors) / stride for anchors, stride in zip(spec.anchors, spec.strides, strict=True)]
        # Anchors may be refitted and gains changed between runs: only what training itself changes is saved.
        self.register_buffer("anchors", torch.stack(cells).float(), persistent=False)  # (L, A, 2) in cells
        self.register_buffer("cls_positive", torch.tensor(float(hyp.cls_pw)), persistent=False)
        self.register_buffer("obj_positive", torch.tensor(float(hyp.obj_pw)), persistent=False)
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        if weights is not None and weights.shape != (spec.num_classes,):
            raise ValueError(f"class_weights must have shape ({spec.num_classes},), got {tuple(weights.shape)}")
        self.register_buffer("class_weights", weights, persistent=False)
        balance = _BALANCE_OF_THREE if levels == 3 else _BALANCE[:levels]
        self.register_buffer("balance", torch.tensor(balance), persistent=self.autobalance)
        self._reference_level = spec.strides.index(16) if 16 in spec.strides else 0

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of one batch as float32 scalars."""
        return self.detailed(raw, batch).terms

    def detailed(self, raw: Raw, batch: Batch) -> DetectLossDetails:
        """Return the terms together with the assignment and the outputs of the assigned cells."""
        maps = [raw[f"level{index}"] for index in range(len(self.spec.strides))]
        with autocast_disabled(maps[0].device.type):
            assignments, rows, parts = [], [], []
            for index, level in enumerate(maps):
                assignment = self._assign(batch, index, level)
                paired, objectness = _take(level, assignment)
                assignments.append(assignment)
                rows.append(paired)
                parts.append(self._level_terms(index, assignment, paired, objectness, batch.boxes_known))
            counts = torch.stack([part.counts for part in parts])  # (L, 2)
            if self.training:  # in validation every rank has batches of its own, and not equally many
                counts = sum_over_ranks(counts)
            counts = counts.clamp(min=1)
            terms = self._gather_terms(parts, counts)
        return DetectLossDetails(terms, assignments, rows, counts[:, 0].clamp(min=1))

    def _assign(self, batch: Batch, index: int, level: Tensor) -> Assignment:
        usable = None
        if batch.boxes_known is not None:
            usable = batch.boxes_known[batch.boxes[:, 0].long()]
        return assign_level(
            batch.boxes, self.anchors[index], (level.shape[2], level.shape[3]), self.hyp.anchor_t, usable
        )

    def _level_terms(
        self, index: int, assignment: Assignment, rows: Tensor, objectness: Tensor, known: Tensor | None
    ) -> LevelTerms:
        """Return one level's sums. `rows` is (P, 5 + C), `objectness` (B, A, H, W), both float32 logits."""
        valid = assignment.valid
        squashed = rows[:, :4].sigmoid() * 2
        predicted = torch.cat((squashed[:, :2] - 0.5, squashed[:, 2:] ** 2 * self.anchors[index][assignment.anchor]), 1)
        overlap = paired_iou(predicted, assignment.boxes, "ciou")
        box = torch.where(valid, 1 - overlap, 0).sum()

        wanted = _objectness_targets(assignment, overlap.detach().clamp(min=0), objectness.shape)
        cells = self._binary(objectness, wanted, self.hyp.obj_pw, self.obj_positive)
        cell_count = torch.full((), float(objectness.numel()), device=objectness.device)
        if known is not None:
            cells = torch.where(known.view(-1, 1, 1, 1), cells, 0)
            cell_count = known.sum() * float(objectness[0].numel())
        counts = torch.stack((valid.sum().float(), cell_count))
        return LevelTerms(box, cells.sum(), self._class_sum(rows, assignment), counts)

    def _class_sum(self, rows: Tensor, assignment: Assignment) -> Tensor:
        classes = self.spec.num_classes
        logits = rows[:, 5 : 5 + classes]
        if classes == 1:  # one class needs no telling apart
            return logits.sum() * 0
        smoothing = self.hyp.label_smoothing
        wanted = torch.full_like(logits, smoothing / 2)
        wanted.scatter_(1, assignment.classes[:, None], 1 - smoothing / 2)
        losses = self._binary(logits, wanted, self.hyp.cls_pw, self.cls_positive)
        if self.class_weights is not None:
            losses = losses * self.class_weights
        return torch.where(assignment.valid, losses.sum(dim=1), 0).sum() / classes

    def _binary(self, logits: Tensor, wanted: Tensor, weight: float, positive: Tensor) -> Tensor:
        return binary_focal_loss(logits, wanted, None if weight == 1 else positive, self.hyp.fl_gamma)

    def _gather_terms(self, parts: list[LevelTerms], counts: Tensor) -> dict[str, Tensor]:
        """Return sums over levels of the means over all ranks' pairs and cells, times the gains."""
        pairs, cells = counts.unbind(1)
        per_level = torch.stack([part.obj for part in parts]) / cells
        objectness = (per_level * self.balance).sum()
        if self.autobalance and self.training:
            self._rebalance(sum_over_ranks(per_level.detach()), counts)
        return {
            "box": (torch.stack([part.box for part in parts]) / pairs).sum() * self.hyp.box,
            "obj": objectness * self.hyp.obj,
            "cls": (torch.stack([part.cls for part in parts]) / pairs).sum() * self.hyp.cls,
        }

    def _rebalance(self, per_level: Tensor, counts: Tensor) -> None:
        """Move the levels' weights a little towards the inverse of their losses, with stride 16 kept at 1."""
        seen = (per_level > 0) & (counts[:, 1] > 1)
        moved = self.balance * _BALANCE_MEMORY + (1 - _BALANCE_MEMORY) / torch.where(seen, per_level, 1)
        moved = torch.where(seen.all(), moved, self.balance)
        # A new tensor: the old one is part of this step's graph.
        self.balance = moved / moved[self._reference_level]


def autocast_disabled(device_type: str) -> AbstractContextManager[Any]:
    """Return a context in which arithmetic has the precision of its inputs."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _objectness_targets(assignment: Assignment, overlap: Tensor, shape: Sequence[int]) -> Tensor:
    """Return (B, A, H, W): the overlap of the *last* pair of every cell, zero for cells without one.

    Writing by index would leave the winner among duplicates to chance on a GPU; the largest position decides here.
    """
    _, anchors, height, width = shape
    cell = ((assignment.image * anchors + assignment.anchor) * height + assignment.row) * width + assignment.column
    position = torch.arange(1, len(overlap) + 1, device=overlap.device) * assignment.valid
    last = torch.zeros(torch.Size(shape).numel(), dtype=torch.int64, device=overlap.device)
    last.scatter_reduce_(0, cell, position, "amax")
    return pad(overlap, (1, 0))[last].view(*shape)  # position 0, no pair, is the padding


def _take(level: Tensor, assignment: Assignment) -> tuple[Tensor, Tensor]:
    """Return the (P, no) outputs of the assigned cells and the (B, A, H, W) objectness, as float32."""
    return _Take.apply(level, assignment.image, assignment.anchor, assignment.row, assignment.column)


class _Take(torch.autograd.Function):
    """Cells and objectness out of a level's map, with one zero-filled gradient for both instead of two and a sum."""

    @staticmethod
    def forward(
        ctx: Any, level: Tensor, image: Tensor, anchor: Tensor, row: Tensor, column: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return rows and objectness."""
        ctx.save_for_backward(image, anchor, row, column)
        ctx.layout = torch.empty_like(level, device="meta")  # the map itself need not live until the backward pass
        return level[image, anchor, row, column].float(), level[..., 4].float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor, grad_objectness: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the map, in the map's own memory layout."""
        cells = ctx.saved_tensors
        grad = torch.zeros_like(ctx.layout, device=grad_rows.device)
        grad[..., 4] = grad_objectness
        # Accumulating by index is sorted on a GPU, hence the same from run to run; adding by atomics would not be.
        grad.index_put_(cells, grad_rows.to(grad.dtype), accumulate=True)
        return grad, None, None, None, None
