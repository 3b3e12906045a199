"""IoU of boxes: all pairs of two sets, and row by row with an analytic gradient for the box loss."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Kind = Literal["iou", "giou", "diou", "ciou"]
EPS = 1e-7  # added to denominators; changing it changes losses and scores
_TINY = 1e-30  # keeps the gradient of the aspect ratio finite for boxes without area


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor, eps: float = EPS) -> Tensor:
    """Compute the IoU of all pairs of two sets of boxes.

    Args:
        a_xyxy: (A, 4) boxes.
        b_xyxy: (B, 4) boxes.
        eps: Added to the union.

    Returns:
        (A, B) IoU.

    Raises:
        ValueError: If the boxes have another shape.
    """
    for name, boxes in (("a_xyxy", a_xyxy), ("b_xyxy", b_xyxy)):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name} must have shape (N, 4), got {tuple(boxes.shape)}")
    left_top = torch.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])  # (A, B, 2)
    overlap = torch.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:]).sub_(left_top).clamp_(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (a_xyxy, b_xyxy))
    return intersection / (area_a[:, None] + area_b[None, :]).sub_(intersection).add_(eps)


def pairwise_iou_numpy(a_xyxy: np.ndarray, b_xyxy: np.ndarray, eps: float = EPS) -> np.ndarray:
    """Compute the (A, B) IoU of all pairs of (A, 4) and (B, 4) boxes as an array; see `pairwise_iou`."""
    overlap = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:]) - np.maximum(
        a_xyxy[:, None, :2], b_xyxy[None, :, :2]
    )
    intersection = overlap.clip(0).prod(axis=2)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a_xyxy, b_xyxy))
    return intersection / (area_a[:, None] + area_b[None, :] - intersection + eps)


def intersection_over_area(box_xyxy: np.ndarray, others_xyxy: np.ndarray, eps: float = EPS) -> np.ndarray:
    """Compute the fraction of each of (n, 4) other boxes that one (4,) box covers.

    Returns:
        (n,) intersections divided by the areas of the others.
    """
    overlap = np.minimum(box_xyxy[2:], others_xyxy[:, 2:]) - np.maximum(box_xyxy[:2], others_xyxy[:, :2])
    return overlap.clip(0).prod(axis=1) / ((others_xyxy[:, 2:] - others_xyxy[:, :2]).prod(axis=1) + eps)


def paired_iou(a_cxcywh: Tensor, b_cxcywh: Tensor, kind: Kind = "ciou") -> Tensor:
    """Compute the IoU, GIoU, DIoU or CIoU of corresponding rows of two sets of boxes.

    With intersection I, union U, smallest enclosing box of area H and diagonal c, distance d of the centres, and eps
    added to each denominator:

    - IoU = I / U
    - GIoU = IoU - (H - U) / H (Rezatofighi et al. 2019, arXiv:1902.09630)
    - DIoU = IoU - d^2 / c^2 (Zheng et al. 2020, arXiv:1911.08287)
    - CIoU = DIoU - alpha v with v = 4 / pi^2 (atan(w_b / h_b) - atan(w_a / h_a))^2 and alpha = v / (1 - IoU + v), where
      alpha is a constant for the gradient (ibid.)

    Args:
        a_cxcywh: (n, 4) boxes with sizes >= 0.
        b_cxcywh: (n, 4) boxes with sizes >= 0.
        kind: Measure.

    Returns:
        (n,) values in float32 or, if an input is, float64. Differentiable once by both arguments; where sides of the
        two boxes coincide, the gradient is the mean of the one-sided derivatives.

    Raises:
        ValueError: If `kind` is unknown or shapes differ.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if a_cxcywh.shape != b_cxcywh.shape or a_cxcywh.ndim != 2 or a_cxcywh.shape[1] != 4:
        raise ValueError(
            f"boxes must have equal shapes (n, 4), got {tuple(a_cxcywh.shape)} and {tuple(b_cxcywh.shape)}"
        )
    return _PairedIou.apply(a_cxcywh, b_cxcywh, kind)


class _PairedIou(torch.autograd.Function):
    """Value and Jacobian in the forward pass, one product per argument in the backward pass."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, kind: Kind) -> Tensor:
        """Compute the values and save a (4, n) Jacobian for each argument that requires a gradient."""
        dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        # With coordinates as rows, all operations run over contiguous memory and treat x and y at once.
        rows_a = a.detach().to(dtype).t().contiguous()  # (4, n)
        rows_b = b.detach().to(dtype).t().contiguous()
        needs_a, needs_b = ctx.needs_input_grad[:2]
        value, grad_a = _value_and_gradient(rows_a, rows_b, kind, needs_a)
        # All measures are symmetric, so the derivative by b follows from exchanging the arguments.
        grad_b = _value_and_gradient(rows_b, rows_a, kind, True)[1] if needs_b else None
        ctx.save_for_backward(grad_a, grad_b)
        ctx.dtypes = a.dtype, b.dtype
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Multiply the Jacobians by the incoming gradient."""
        grads = [
            None if jacobian is None else (jacobian * grad).t().to(dtype)
            for jacobian, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return grads[0], grads[1], None


def _swap_xy(rows: Tensor) -> Tensor:
    """Exchange the x and y rows of a (2, n) tensor."""
    return rows.flip(0)


def _value_and_gradient(a: Tensor, b: Tensor, kind: Kind, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Compute a measure and, if needed, its derivative by a.

    Per axis, the overlap of two intervals is min(high_a, high_b) - max(low_a, low_b), and the extent of the enclosing
    box max(high_a, high_b) - min(low_a, low_b). Let s_high and s_low be 1 if the high or low side of a bounds the
    overlap, 0 if that of b does and 1/2 if they coincide. Then, with high = c + w / 2 and low = c - w / 2,

        d overlap / d c =  (s_high - s_low) =: by_centre     d extent / d c = -by_centre
        d overlap / d w =  (s_high + s_low) / 2 =: by_size   d extent / d w = 1 - by_size

    Args:
        a: (4, n) rows cx, cy, w, h.
        b: (4, n) rows.
        kind: Measure.
        needs_grad: Whether to compute the derivative.

    Returns:
        The (n,) values, and the (4, n) derivatives or None.
    """
    size_a, size_b = a[2:], b[2:]
    low_a, high_a = torch.sub(a[:2], size_a, alpha=0.5), torch.add(a[:2], size_a, alpha=0.5)
    low_b, high_b = torch.sub(b[:2], size_b, alpha=0.5), torch.add(b[:2], size_b, alpha=0.5)
    overlap = torch.minimum(high_a, high_b).sub_(torch.maximum(low_a, low_b)).clamp_(min=0)  # (2, n)
    intersection = overlap[0] * overlap[1]
    union = torch.addcmul(size_b[0] * size_b[1], size_a[0], size_a[1]).sub_(intersection).add_(EPS)
    iou = intersection / union
    value = iou if kind == "iou" else iou.clone()
    grad = by_centre = by_size = None
    if needs_grad:
        s_high = (high_b - high_a).sign_().add_(1).mul_(0.5)
        s_low = (low_a - low_b).sign_().add_(1).mul_(0.5)
        by_centre = s_high - s_low
        by_size = s_high.add_(s_low).mul_(0.5)
        d_overlap = _swap_xy(overlap) * (overlap > 0)  # d intersection / d overlap, (2, n)
        grad = torch.cat((d_overlap * by_centre, d_overlap * by_size))  # d intersection / d a
        d_area = _swap_xy(size_a)
        if kind == "giou":
            d_union = grad.neg()
            d_union[2:] += d_area
        grad *= (iou + 1) / union  # d iou = dI (1 + iou) / U - d(area of a) iou / U
        grad[2:].addcmul_(d_area, iou / union, value=-1)
    if kind == "iou":
        return value, grad
    extent = torch.maximum(high_a, high_b).sub_(torch.minimum(low_a, low_b))  # (2, n)
    if kind == "giou":
        hull = (extent[0] * extent[1]).add_(EPS)
        value += union / hull - 1
        if grad is not None and by_centre is not None and by_size is not None:
            d_hull = _swap_xy(extent) * (union / hull)
            grad += (d_union - torch.cat((-by_centre * d_hull, (1 - by_size) * d_hull))) / hull
        return value, grad
    _subtract_distance(value, grad, a[:2] - b[:2], extent, (by_centre, by_size))
    if kind == "ciou":
        _subtract_aspect(value, grad, iou, size_a, size_b)
    return value, grad


def _subtract_distance(
    value: Tensor, grad: Tensor | None, offset: Tensor, extent: Tensor, factors: tuple[Tensor | None, Tensor | None]
) -> None:
    """Subtract d^2 / c^2 of DIoU from `value` and its derivative from `grad`, in place.

    Args:
        value: (n,) IoU.
        grad: (4, n) derivative.
        offset: (2, n) difference of the centres.
        extent: (2, n) size of the enclosing box.
        factors: `by_centre` and `by_size` of `_value_and_gradient`.
    """
    diagonal = torch.addcmul(extent[0] * extent[0], extent[1], extent[1]).add_(EPS)  # squared
    penalty = torch.addcmul(offset[0] * offset[0], offset[1], offset[1]).div_(diagonal)
    value -= penalty
    by_centre, by_size = factors
    if grad is None or by_centre is None or by_size is None:
        return
    factor = 2 / diagonal
    d_extent = extent * (penalty * factor)
    grad[:2] -= (offset * factor).addcmul_(d_extent, by_centre)
    grad[2:].addcmul_(d_extent, 1 - by_size)


def _subtract_aspect(value: Tensor, grad: Tensor | None, iou: Tensor, size_a: Tensor, size_b: Tensor) -> None:
    """Subtract alpha v of CIoU from `value` and its derivative, with constant alpha, from `grad`, in place."""
    # For sizes >= 0 atan2(w, h) equals atan(w / h), and it is finite where both are zero.
    difference = torch.atan2(size_b[0], size_b[1]).sub_(torch.atan2(size_a[0], size_a[1]))
    v = (difference * difference).mul_(4 / math.pi**2)
    alpha = v / (v - iou).add_(1 + EPS)
    value.addcmul_(v, alpha, value=-1)
    if grad is None:
        return
    squares = torch.addcmul(size_a[0] * size_a[0], size_a[1], size_a[1]).clamp_(min=_TINY)
    d_difference = difference.mul_(alpha).mul_(8 / math.pi**2).div_(squares)
    grad[2].addcmul_(d_difference, size_a[1])
    grad[3].addcmul_(d_difference, size_a[0], value=-1)
