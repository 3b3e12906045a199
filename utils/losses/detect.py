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

from utils.core.contracts import Batch, HeadSpec, Raw
from utils.core.distributed import sum_over_ranks
from utils.core.hyp import Hyp
from utils.losses import LOSSES
from utils.losses.anchor_assignment import Assignment, assign
from utils.losses.focal import binary_focal_loss
from utils.ops.iou import paired_iou

# Weights of the objectness losses, finest level first. Each level's loss is a mean over its predictors, and fine levels
# have far more background among them, hence smaller means.
_BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)
_BALANCE_OF_THREE_LEVELS = (4.0, 1.0, 0.4)
_BALANCE_DECAY = 0.9999  # per step, of the moving average of `autobalance`
_BALANCE_REFERENCE_STRIDE = 16  # the level whose weight `autobalance` keeps at 1

_OBJECTNESS, _FIRST_CLASS = 4, 5  # columns of a prediction: x, y, w, h, objectness, classes, mask coefficients


class DetectLossDetails(NamedTuple):
    """Loss terms with the intermediate results that `SegmentLoss` needs, too."""

    terms: dict[str, Tensor]
    assignment: Assignment
    predictions: Tensor  # (P, 5 + C + masks) float32 logits of the assigned predictors


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
        hyp: Hyperparameters with scaled gains (`Hyp.scaled`).
        autobalance: Adapt the objectness weights of the levels to their losses; also enabled by `hyp.autobalance`.
        class_weights: (C,) factors of the class losses.

    Raises:
        ValueError: If the head has no or too many levels, or `class_weights` has another length than C.
    """

    per_image = True
    labels = "boxes"
    extra_terms: tuple[str, ...] = ()
    omitted_terms: tuple[str, ...] = ()
    training_terms: tuple[str, ...] = ()
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
        self.anchors = torch.stack(cells).float()  # (L, A, 2) in cells, on the host
        # Not persistent: gains may change between runs. Only what training itself changes is saved.
        self.register_buffer("cls_positive_weight", torch.tensor(float(hyp.cls_pw)), persistent=False)
        self.register_buffer("obj_positive_weight", torch.tensor(float(hyp.obj_pw)), persistent=False)
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        if weights is not None and weights.shape != (spec.num_classes,):
            raise ValueError(f"class_weights must have shape ({spec.num_classes},), got {tuple(weights.shape)}")
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("balance", torch.tensor(level_balance(levels)), persistent=self.autobalance)
        has_reference = _BALANCE_REFERENCE_STRIDE in spec.strides
        self._reference_level = spec.strides.index(_BALANCE_REFERENCE_STRIDE) if has_reference else 0

    def prepare(self, batch: Batch, input_hw: tuple[int, int]) -> Assignment:
        """Assign the labels of a batch on the host.

        Args:
            batch: Images and labelled boxes, on any device; labels on a GPU make the host wait for it.
            input_hw: Height and width of the network's input.

        Returns:
            The assignment, on the CPU.
        """
        usable = None
        if batch.boxes_known is not None:
            usable = batch.boxes_known.cpu()[batch.boxes[:, 0].cpu().long()]
        level_hws = [(input_hw[0] // stride, input_hw[1] // stride) for stride in self.spec.strides]
        return assign(batch.boxes, self.anchors, level_hws, self.hyp.anchor_t, len(batch), usable)

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss terms of a batch.

        Args:
            raw: `level0`, `level1`, ...: (B, A, H, W, 5 + C (+ masks)) logits, finest level first.
            batch: Images and labelled boxes; `batch.prepared` may hold the assignment of `prepare()`.

        Returns:
            `box`, `obj` and `cls`, float32 scalars.
        """
        return self.detailed(raw, batch).terms

    def detailed(self, raw: Raw, batch: Batch) -> DetectLossDetails:
        """Compute the loss terms and return them with the assignment and the assigned predictions."""
        levels = [raw[f"level{index}"] for index in range(len(self.spec.strides))]
        assignment = batch.prepared.get(self.spec.name)
        if not isinstance(assignment, Assignment):
            stride = self.spec.strides[0]
            input_hw = levels[0].shape[2] * stride, levels[0].shape[3] * stride
            assignment = self.prepare(batch, input_hw).to(levels[0].device)
        with autocast_disabled(levels[0].device.type):
            assigned, objectness = _AssignedPredictions.apply(assignment, *levels)
            counts = self._counts(assignment, objectness, batch)
            terms = self._terms(assignment, assigned, objectness, counts, batch.boxes_known)
        return DetectLossDetails(terms, assignment, assigned)

    def _counts(self, assignment: Assignment, objectness: Tensor, batch: Batch) -> Tensor:
        """Count the pairs and predictors of every level, (2, L), on all ranks in training."""
        anchors = self.anchors.shape[1]
        per_image = torch.tensor([float(anchors * height * width) for height, width in assignment.level_hws])
        pairs = torch.tensor([float(count) for count in assignment.pairs])
        if batch.boxes_known is None:
            counts = torch.stack((pairs, per_image * len(batch)))
            counts = counts.pin_memory() if objectness.is_cuda else counts
            counts = counts.to(objectness.device, non_blocking=True)
        else:
            both = torch.stack((pairs, per_image))
            both = (both.pin_memory() if objectness.is_cuda else both).to(objectness.device, non_blocking=True)
            counts = torch.stack((both[0], both[1] * batch.boxes_known.sum()))
        if self.training:
            counts = sum_over_ranks(counts)
        return counts.clamp(min=1)

    def _terms(
        self, assignment: Assignment, assigned: Tensor, objectness: Tensor, counts: Tensor, boxes_known: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute the terms of all levels at once.

        Args:
            assignment: P pairs.
            assigned: (P, 5 + C (+ masks)) logits of the assigned predictors.
            objectness: Logits of all predictors, level after level, each ordered by image, anchor, row and column.
            counts: (2, L) pairs and predictors of every level.
            boxes_known: (B,) bool; in the other images the absence of a box does not mean background.
        """
        pair_weights = (1 / counts[0])[assignment.level]
        scaled = assigned[:, :4].sigmoid() * 2
        boxes = torch.cat((scaled[:, :2] - 0.5, scaled[:, 2:] ** 2 * assignment.anchors), 1)
        ciou = paired_iou(boxes, assignment.boxes, "ciou")

        targets = torch.zeros_like(objectness)
        targets[assignment.predictor] = ciou.detach().clamp(min=0)[assignment.last]
        losses = self._bce(objectness, targets, self.hyp.obj_pw, self.obj_positive_weight)
        cells = [height * width for height, width in assignment.level_hws]
        images_and_anchors = len(objectness) // sum(cells)
        per_level = []
        for part in losses.split([images_and_anchors * count for count in cells]):
            if boxes_known is not None:
                part = torch.where(boxes_known[:, None], part.view(len(boxes_known), -1), 0)
            per_level.append(part.sum())
        obj_per_level = torch.stack(per_level) / counts[1]
        obj = (obj_per_level * self.balance).sum()
        if self.autobalance and self.training:
            self._update_balance(sum_over_ranks(obj_per_level.detach()), counts)
        return {
            "box": ((1 - ciou) * pair_weights).sum() * self.hyp.box,
            "obj": obj * self.hyp.obj,
            "cls": (self._class_losses(assigned, assignment) * pair_weights).sum() * self.hyp.cls,
        }

    def _class_losses(self, assigned: Tensor, assignment: Assignment) -> Tensor:
        """Compute the (P,) mean class cross-entropies; zero, but connected to the graph, for a single class."""
        classes = self.spec.num_classes
        logits = assigned[:, _FIRST_CLASS : _FIRST_CLASS + classes]
        if classes == 1:
            return logits[:, 0] * 0
        smoothing = self.hyp.label_smoothing
        targets = torch.full_like(logits, smoothing / 2)
        targets.scatter_(1, assignment.classes[:, None], 1 - smoothing / 2)
        losses = self._bce(logits, targets, self.hyp.cls_pw, self.cls_positive_weight)
        if self.class_weights is not None:
            losses = losses * self.class_weights
        return losses.mean(dim=1)

    def _bce(self, logits: Tensor, targets: Tensor, weight: float, positive_weight: Tensor) -> Tensor:
        return binary_focal_loss(logits, targets, None if weight == 1 else positive_weight, self.hyp.fl_gamma)

    def _update_balance(self, obj_per_level: Tensor, counts: Tensor) -> None:
        """Move the weights towards the inverse losses, normalised to 1 at the reference level.

        Steps in which a level has no loss, for example in a batch without labelled images, change nothing.
        """
        present = (obj_per_level > 0) & (counts[1] > 1)
        moved = self.balance * _BALANCE_DECAY + (1 - _BALANCE_DECAY) / torch.where(present, obj_per_level, 1)
        moved = torch.where(present.all(), moved, self.balance)
        self.balance = moved / moved[self._reference_level]  # a new tensor, as autograd holds the old one


def level_balance(levels: int) -> tuple[float, ...]:
    """Return the initial weights of the objectness losses, finest level first."""
    return _BALANCE_OF_THREE_LEVELS if levels == 3 else _BALANCE[:levels]


def autocast_disabled(device_type: str) -> AbstractContextManager[Any]:
    """Return a context manager that disables autocast on a type of device (`cpu`, `cuda`, ...)."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


class _AssignedPredictions(torch.autograd.Function):
    """Gather the assigned predictions and the objectness of all predictors, as float32.

    Maps L tensors (B, A, H, W, n) of logits to (P, n) and to one vector of all predictors. The backward pass fills one
    gradient tensor per level for both outputs, where separate indexing operations would allocate two and add them.
    """

    @staticmethod
    def forward(ctx: Any, assignment: Assignment, *levels: Tensor) -> tuple[Tensor, Tensor]:
        """Gather both outputs."""
        ctx.assignment = assignment
        ctx.layouts = [(level.shape, level.stride(), level.dtype) for level in levels]
        indices = zip(*(_split(index, assignment.pairs) for index in _predictor_indices(assignment)), strict=True)
        assigned = [level[index] for level, index in zip(levels, indices, strict=True)]
        objectness = [level[..., _OBJECTNESS].flatten() for level in levels]
        return torch.cat(assigned).float(), torch.cat(objectness).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_assigned: Tensor, grad_objectness: Tensor) -> tuple[Tensor | None, ...]:
        """Scatter both gradients into one tensor per level, with the memory layout of the level.

        Gradients of pairs that share a predictor are added up first, in a fixed order: the scatter has no duplicates
        and is deterministic on a GPU.
        """
        assignment: Assignment = ctx.assignment
        summed = torch.segment_reduce(
            grad_assigned[assignment.by_predictor], "sum", lengths=assignment.multiplicity, unsafe=True
        )  # (U, n)
        summed[:, _OBJECTNESS] = grad_objectness[assignment.predictor]
        first = assignment.last  # any pair of the predictor has its indices
        indices = [_split(index[first], assignment.predictors) for index in _predictor_indices(assignment)]
        sizes = [shape[:-1].numel() for shape, _, _ in ctx.layouts]
        grads = []
        for (shape, stride, dtype), objectness, values, index in zip(
            ctx.layouts, grad_objectness.split(sizes), summed.split(assignment.predictors), zip(*indices, strict=True),
            strict=True,
        ):  # fmt: skip
            grad = torch.empty_strided(shape, stride, dtype=dtype, device=grad_assigned.device).zero_()
            grad[..., _OBJECTNESS] = objectness.view(shape[:-1])
            grad.index_put_(index, values.to(grad.dtype))
            grads.append(grad)
        return None, *grads


def _predictor_indices(assignment: Assignment) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return assignment.image, assignment.anchor, assignment.row, assignment.column


def _split(values: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return values.split(list(sizes))
