"""Loss of the `detect` head: CIoU of boxes, objectness of all predictors and classes of assigned predictors.

Terms, before gains, for L levels of which level l has P_l assigned (predictor, label) pairs and M_l predictors (an
anchor in a cell of an image):

    box = sum over l of  mean over the P_l pairs of  1 - CIoU(predicted box, labelled box)
    obj = sum over l of  balance_l * mean over the M_l predictors of  BCE(objectness, target)
    cls = sum over l of  mean over the P_l pairs and C classes of  BCE(class logit, smoothed one-hot label)

The objectness target of a predictor is max(CIoU, 0) with its label, 0 without one. The box of a predictor in cell
(x, y) with anchor (w_a, h_a), in cells, has the centre (x, y) + 2 sigmoid(t_xy) - 0.5 and the size
(w_a, h_a) * (2 sigmoid(t_wh))^2. CIoU is that of Zheng et al. 2020 (arXiv:1911.08287).
"""

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

# Weights of the objectness losses, finest level first. Each level's loss is a mean over its predictors, and fine levels
# have far more background among them, hence smaller means.
_BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)
_BALANCE_OF_THREE_LEVELS = (4.0, 1.0, 0.4)
_BALANCE_DECAY = 0.9999  # per step, of the moving average of `autobalance`
_BALANCE_REFERENCE_STRIDE = 16  # the level whose weight `autobalance` keeps at 1

_OBJECTNESS, _FIRST_CLASS = 4, 5  # columns of a prediction: x, y, w, h, objectness, classes, mask coefficients


class LevelTerms(NamedTuple):
    """Sums over one level on this rank, not yet divided by the counts of all ranks."""

    box: Tensor  # sum of 1 - CIoU over pairs
    obj: Tensor  # sum of cross-entropies over predictors
    cls: Tensor  # sum over pairs of the mean cross-entropy of the classes
    counts: Tensor  # (2,) numbers of pairs and predictors


class DetectLossDetails(NamedTuple):
    """Loss terms with the intermediate results that `SegmentLoss` needs, too."""

    terms: dict[str, Tensor]
    assignments: list[Assignment]  # per level
    predictions: list[Tensor]  # per level, (P, 5 + C + masks) float32 logits of the assigned predictors
    pair_counts: Tensor  # (L,) numbers of pairs (on all ranks, in training), at least 1


@LOSSES.register("detect")
class DetectLoss(nn.Module):
    """Detection loss with the terms `box`, `obj` and `cls`, gains included.

    The engine multiplies the terms by the number of images (`per_image`).

    In training, means are taken over the pairs and predictors of all ranks: each rank returns its own sum divided by
    the count of all, so that the sum of a term over ranks is its value for the whole batch in one process. In
    evaluation mode means are over the batch of this rank, because ranks may have different numbers of batches and must
    not wait for each other.

    Tensor shapes do not depend on values computed on the GPU, so the host never synchronises with it. All arithmetic
    is float32, also under autocast.

    Args:
        spec: Description of the head: classes, strides and anchors in pixels.
        hyp: Hyper-parameters with scaled gains (`Hyp.scaled`).
        autobalance: Adapt the objectness weights of the levels to their losses; also enabled by `hyp.autobalance`.
        class_weights: (C,) factors of the class losses.

    Raises:
        ValueError: If the head has no or too many levels, or `class_weights` has another length than C.
    """

    per_image = True
    labels = "boxes"
    extra_terms: tuple[str, ...] = ()
    anchors: Tensor
    balance: Tensor
    cls_positive_weight: Tensor
    obj_positive_weight: Tensor
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
            raise ValueError(
                f"head {spec.name!r}: expected 1 to {len(_BALANCE)} levels with anchors, got {levels} strides and "
                f"anchors of {len(spec.anchors)} levels"
            )
        self.spec, self.hyp, self.autobalance = spec, hyp, autobalance or hyp.autobalance > 0
        cells = [torch.tensor(anchors) / stride for anchors, stride in zip(spec.anchors, spec.strides, strict=True)]
        # Not persistent: anchors and gains may change between runs. Only what training itself changes is saved.
        self.register_buffer("anchors", torch.stack(cells).float(), persistent=False)  # (L, A, 2) in cells
        self.register_buffer("cls_positive_weight", torch.tensor(float(hyp.cls_pw)), persistent=False)
        self.register_buffer("obj_positive_weight", torch.tensor(float(hyp.obj_pw)), persistent=False)
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        if weights is not None and weights.shape != (spec.num_classes,):
            raise ValueError(f"class_weights must have shape ({spec.num_classes},), got {tuple(weights.shape)}")
        self.register_buffer("class_weights", weights, persistent=False)
        balance = _BALANCE_OF_THREE_LEVELS if levels == 3 else _BALANCE[:levels]
        self.register_buffer("balance", torch.tensor(balance), persistent=self.autobalance)
        has_reference = _BALANCE_REFERENCE_STRIDE in spec.strides
        self._reference_level = spec.strides.index(_BALANCE_REFERENCE_STRIDE) if has_reference else 0

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss terms of a batch.

        Args:
            raw: `level0`, `level1`, ...: (B, A, H, W, 5 + C (+ masks)) logits, finest level first.
            batch: Images and labelled boxes.

        Returns:
            `box`, `obj` and `cls`, float32 scalars.
        """
        return self.detailed(raw, batch).terms

    def detailed(self, raw: Raw, batch: Batch) -> DetectLossDetails:
        """Compute the loss terms and return them with the assignments and the assigned predictions."""
        levels = [raw[f"level{index}"] for index in range(len(self.spec.strides))]
        with autocast_disabled(levels[0].device.type):
            assignments, predictions, sums = [], [], []
            for index, level in enumerate(levels):
                assignment = self._assign(batch, index, level)
                assigned, objectness = _AssignedPredictions.apply(
                    level, assignment.image, assignment.anchor, assignment.row, assignment.column
                )
                assignments.append(assignment)
                predictions.append(assigned)
                sums.append(self._level_terms(index, assignment, assigned, objectness, batch.boxes_known))
            counts = torch.stack([level_sums.counts for level_sums in sums])  # (L, 2)
            if self.training:
                counts = sum_over_ranks(counts)
            counts = counts.clamp(min=1)
            terms = self._total_terms(sums, counts)
        return DetectLossDetails(terms, assignments, predictions, counts[:, 0])

    def _assign(self, batch: Batch, index: int, level: Tensor) -> Assignment:
        usable = None
        if batch.boxes_known is not None:
            usable = batch.boxes_known[batch.boxes[:, 0].long()]
        return assign_level(
            batch.boxes, self.anchors[index], (level.shape[2], level.shape[3]), self.hyp.anchor_t, usable
        )

    def _level_terms(
        self, index: int, assignment: Assignment, assigned: Tensor, objectness: Tensor, boxes_known: Tensor | None
    ) -> LevelTerms:
        """Compute the sums of one level.

        Args:
            index: Level.
            assignment: Its P pairs.
            assigned: (P, 5 + C (+ masks)) logits of the assigned predictors.
            objectness: (B, A, H, W) logits of all predictors.
            boxes_known: (B,) bool; in the other images the absence of a box does not mean background.
        """
        valid = assignment.valid
        scaled = assigned[:, :4].sigmoid() * 2
        boxes = torch.cat((scaled[:, :2] - 0.5, scaled[:, 2:] ** 2 * self.anchors[index][assignment.anchor]), 1)
        ciou = paired_iou(boxes, assignment.boxes, "ciou")
        box = torch.where(valid, 1 - ciou, 0).sum()

        targets = _objectness_targets(assignment, ciou.detach().clamp(min=0), objectness.shape)
        losses = self._bce(objectness, targets, self.hyp.obj_pw, self.obj_positive_weight)
        predictor_count = torch.full((), float(objectness.numel()), device=objectness.device)
        if boxes_known is not None:
            losses = torch.where(boxes_known.view(-1, 1, 1, 1), losses, 0)
            predictor_count = boxes_known.sum() * float(objectness[0].numel())
        counts = torch.stack((valid.sum().float(), predictor_count))
        return LevelTerms(box, losses.sum(), self._class_term(assigned, assignment), counts)

    def _class_term(self, assigned: Tensor, assignment: Assignment) -> Tensor:
        """Sum the mean class cross-entropies over pairs; zero, but connected to the graph, for a single class."""
        classes = self.spec.num_classes
        logits = assigned[:, _FIRST_CLASS : _FIRST_CLASS + classes]
        if classes == 1:
            return logits.sum() * 0
        smoothing = self.hyp.label_smoothing
        targets = torch.full_like(logits, smoothing / 2)
        targets.scatter_(1, assignment.classes[:, None], 1 - smoothing / 2)
        losses = self._bce(logits, targets, self.hyp.cls_pw, self.cls_positive_weight)
        if self.class_weights is not None:
            losses = losses * self.class_weights
        return torch.where(assignment.valid, losses.sum(dim=1), 0).sum() / classes

    def _bce(self, logits: Tensor, targets: Tensor, weight: float, positive_weight: Tensor) -> Tensor:
        return binary_focal_loss(logits, targets, None if weight == 1 else positive_weight, self.hyp.fl_gamma)

    def _total_terms(self, sums: list[LevelTerms], counts: Tensor) -> dict[str, Tensor]:
        """Divide the sums by (L, 2) counts, add up the levels and apply balance weights and gains."""
        pairs, predictors = counts.unbind(1)
        obj_per_level = torch.stack([level.obj for level in sums]) / predictors
        obj = (obj_per_level * self.balance).sum()
        if self.autobalance and self.training:
            self._update_balance(sum_over_ranks(obj_per_level.detach()), counts)
        return {
            "box": (torch.stack([level.box for level in sums]) / pairs).sum() * self.hyp.box,
            "obj": obj * self.hyp.obj,
            "cls": (torch.stack([level.cls for level in sums]) / pairs).sum() * self.hyp.cls,
        }

    def _update_balance(self, obj_per_level: Tensor, counts: Tensor) -> None:
        """Move the weights towards the inverse losses, normalised to 1 at the reference level.

        Steps in which a level has no loss, for example in a batch without labelled images, change nothing.
        """
        present = (obj_per_level > 0) & (counts[:, 1] > 1)
        moved = self.balance * _BALANCE_DECAY + (1 - _BALANCE_DECAY) / torch.where(present, obj_per_level, 1)
        moved = torch.where(present.all(), moved, self.balance)
        self.balance = moved / moved[self._reference_level]  # a new tensor, as autograd holds the old one


def autocast_disabled(device_type: str) -> AbstractContextManager[Any]:
    """Return a context manager that disables autocast on a type of device (`cpu`, `cuda`, ...)."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _objectness_targets(assignment: Assignment, iou: Tensor, shape: Sequence[int]) -> Tensor:
    """Scatter the (P,) IoUs into a tensor of shape (B, A, H, W), zero where no label is assigned.

    The last of several pairs of a predictor counts. Indexed assignment would pick any of them on a GPU, so the highest
    position in the list of pairs is found by a scatter with "amax", which is deterministic.
    """
    _, anchors, height, width = shape
    predictor = ((assignment.image * anchors + assignment.anchor) * height + assignment.row) * width + assignment.column
    position = torch.arange(1, len(iou) + 1, device=iou.device) * assignment.valid  # from 1; 0 means no pair
    last = torch.zeros(torch.Size(shape).numel(), dtype=torch.int64, device=iou.device)
    last.scatter_reduce_(0, predictor, position, "amax")
    return pad(iou, (1, 0))[last].view(*shape)


class _AssignedPredictions(torch.autograd.Function):
    """Gather the assigned predictions and the objectness of a level, as float32.

    Maps (B, A, H, W, n) logits to (P, n) and (B, A, H, W). The backward pass fills one gradient tensor for both
    outputs, where separate indexing operations would allocate two and add them.
    """

    @staticmethod
    def forward(
        ctx: Any, level: Tensor, image: Tensor, anchor: Tensor, row: Tensor, column: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gather both outputs."""
        ctx.save_for_backward(image, anchor, row, column)
        ctx.layout = torch.empty_like(level, device="meta")  # shape and strides without keeping the logits in memory
        return level[image, anchor, row, column].float(), level[..., _OBJECTNESS].float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_assigned: Tensor, grad_objectness: Tensor) -> tuple[Tensor | None, ...]:
        """Scatter both gradients into one tensor with the memory layout of the level."""
        indices = ctx.saved_tensors
        grad = torch.zeros_like(ctx.layout, device=grad_assigned.device)
        grad[..., _OBJECTNESS] = grad_objectness
        # index_put_ with accumulate sorts its indices on a GPU and is deterministic, unlike atomic additions.
        grad.index_put_(indices, grad_assigned.to(grad.dtype), accumulate=True)
        return grad, None, None, None, None
