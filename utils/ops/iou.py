"""Overlap of boxes: every pair of two sets, and row by row with a hand-derived gradient for the loss."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Kind = Literal["iou", "giou", "diou", "ciou"]
EPS = 1e-7  # keeps quotients finite; part of the golden values
_TINY = 1e-30


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor, eps: float = EPS) -> Tensor:
    """Return the (A, B) intersection over union of every pair of (A, 4) and (B, 4) corner boxes."""
    for name, boxes in (("a_xyxy", a_xyxy), ("b_xyxy", b_xyxy)):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name} must have shape (N, 4), got {tuple(boxes.shape)}")
    left_top = torch.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])  # (A, B, 2)
    overlap = torch.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:]).sub_(left_top).clamp_(min=0)
    shared = overlap[..., 0] * overlap[..., 1]
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (a_xyxy, b_xyxy))
    return shared / (area_a[:, None] + area_b[None, :]).sub_(shared).add_(eps)


def pairwise_iou_numpy(a_xyxy: np.ndarray, b_xyxy: np.ndarray, eps: float = EPS) -> np.ndarray:
    """Return the (A, B) intersection over union of every pair of (A, 4) and (B, 4) corner boxes, as an array."""
    overlap = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:]) - np.maximum(
        a_xyxy[:, None, :2], b_xyxy[None, :, :2]
    )
    shared = overlap.clip(0).prod(axis=2)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a_xyxy, b_xyxy))
    return shared / (area_a[:, None] + area_b[None, :] - shared + eps)


def intersection_over_area(box_xyxy: np.ndarray, others_xyxy: np.ndarray, eps: float = EPS) -> np.ndarray:
    """Return (n,) intersection of one (4,) box with each of (n, 4) others, over the *other's* area (G1: ioa)."""
    overlap = np.minimum(box_xyxy[2:], others_xyxy[:, 2:]) - np.maximum(box_xyxy[:2], others_xyxy[:, :2])
    return overlap.clip(0).prod(axis=1) / ((others_xyxy[:, 2:] - others_xyxy[:, :2]).prod(axis=1) + eps)


def paired_iou(a_cxcywh: Tensor, b_cxcywh: Tensor, kind: Kind = "ciou") -> Tensor:
    """Return the (n,) overlap of row i of `a_cxcywh` with row i of `b_cxcywh`, both (n, 4) with sizes >= 0.

    `kind` is iou, giou (arXiv 1902.09630), diou or ciou (1911.08287); formulas and eps are behaviour.md 3.7. CIoU's
    weight alpha takes no part in the gradient. Computed in float32 when an input is half; differentiable once, in both
    arguments. Where corners of the two boxes coincide, the gradient is the mean of the two sides'.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if a_cxcywh.shape != b_cxcywh.shape or a_cxcywh.ndim != 2 or a_cxcywh.shape[1] != 4:
        raise ValueError(f"boxes must both be (n, 4), got {tuple(a_cxcywh.shape)} and {tuple(b_cxcywh.shape)}")
    return _PairedIou.apply(a_cxcywh, b_cxcywh, kind)


class _PairedIou(torch.autograd.Function):
    """The value and its Jacobian in one pass: the backward pass is then one product per argument."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, kind: Kind) -> Tensor:
        """Return the overlaps; keep one (4, n) Jacobian for each argument that wants a gradient."""
        working = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        # Coordinates as rows: every operation below then runs over contiguous memory, x and y at once.
        rows_a = a.detach().to(working).t().contiguous()  # (4, n)
        rows_b = b.detach().to(working).t().contiguous()
        wants_a, wants_b = ctx.needs_input_grad[:2]
        value, slope = _value_and_slope(rows_a, rows_b, kind, wants_a)
        # Every kind is symmetric in its arguments, so b's slope is a's with the roles exchanged.
        slope_b = _value_and_slope(rows_b, rows_a, kind, True)[1] if wants_b else None
        ctx.save_for_backward(slope, slope_b)
        ctx.dtypes = a.dtype, b.dtype
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of both boxes."""
        grads = [
            None if slope is None else (slope * grad).t().to(dtype)
            for slope, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return grads[0], grads[1], None


def _swap(rows: Tensor) -> Tensor:
    """Return (2, n) rows with x and y exchanged."""
    return rows.flip(0)


def _value_and_slope(a: Tensor, b: Tensor, kind: Kind, with_slope: bool) -> tuple[Tensor, Tensor | None]:
    """Return the (n,) overlap of (4, n) rows cx, cy, w, h and, if asked, its (4, n) derivative by `a`."""
    size_a, size_b = a[2:], b[2:]
    low_a, high_a = torch.sub(a[:2], size_a, alpha=0.5), torch.add(a[:2], size_a, alpha=0.5)
    low_b, high_b = torch.sub(b[:2], size_b, alpha=0.5), torch.add(b[:2], size_b, alpha=0.5)
    overlap = torch.minimum(high_a, high_b).sub_(torch.maximum(low_a, low_b)).clamp_(min=0)  # (2, n)
    shared = overlap[0] * overlap[1]
    union = torch.addcmul(size_b[0] * size_b[1], size_a[0], size_a[1]).sub_(shared).add_(EPS)
    iou = shared / union
    value = iou if kind == "iou" else iou.clone()
    slope = pull = spread = None
    if with_slope:
        # Share of a's high and low edge in the overlap: 1 where a's edge bounds it, 0 where b's does, half on a tie.
        high_share = (high_b - high_a).sign_().add_(1).mul_(0.5)
        low_share = (low_a - low_b).sign_().add_(1).mul_(0.5)
        pull = high_share - low_share  # d overlap / d centre; the enclosing box has the opposite sign
        spread = high_share.add_(low_share).mul_(0.5)  # d overlap / d size; the enclosing box has one minus it
        d_shared = _swap(overlap) * (overlap > 0)  # d intersection / d overlap, (2, n)
        slope = torch.cat((d_shared * pull, d_shared * spread))  # d intersection / d (centre, size)
        d_area = _swap(size_a)
        if kind == "giou":
            d_union = slope.neg()
            d_union[2:] += d_area
        slope *= (iou + 1) / union  # d iou = dI (1 + iou) / U - dA iou / U
        slope[2:].addcmul_(d_area, iou / union, value=-1)
    if kind == "iou":
        return value, slope
    outer = torch.maximum(high_a, high_b).sub_(torch.minimum(low_a, low_b))  # (2, n) the enclosing box
    if kind == "giou":
        hull = (outer[0] * outer[1]).add_(EPS)
        value += union / hull - 1
        if slope is not None and pull is not None and spread is not None:
            d_hull = _swap(outer) * (union / hull)
            slope += (d_union - torch.cat((-pull * d_hull, (1 - spread) * d_hull))) / hull
        return value, slope
    _subtract_distance(value, slope, a[:2] - b[:2], outer, (pull, spread))
    if kind == "ciou":
        _subtract_aspect(value, slope, iou, size_a, size_b)
    return value, slope


def _subtract_distance(
    value: Tensor, slope: Tensor | None, offset: Tensor, outer: Tensor, shares: tuple[Tensor | None, Tensor | None]
) -> None:
    """Take squared centre distance over squared diagonal of the enclosing box off `value`, and from `slope`."""
    diagonal = torch.addcmul(outer[0] * outer[0], outer[1], outer[1]).add_(EPS)
    penalty = torch.addcmul(offset[0] * offset[0], offset[1], offset[1]).div_(diagonal)
    value -= penalty
    pull, spread = shares
    if slope is None or pull is None or spread is None:
        return
    factor = 2 / diagonal
    d_outer = outer * (penalty * factor)
    slope[:2] -= (offset * factor).addcmul_(d_outer, pull)
    slope[2:].addcmul_(d_outer, 1 - spread)


def _subtract_aspect(value: Tensor, slope: Tensor | None, iou: Tensor, size_a: Tensor, size_b: Tensor) -> None:
    """Take CIoU's aspect term off `value`, and from `slope` with its weight held constant."""
    # atan2 equals the atan of the quotient for sizes >= 0, and is finite where both are zero.
    turn = torch.atan2(size_b[0], size_b[1]).sub_(torch.atan2(size_a[0], size_a[1]))
    aspect = (turn * turn).mul_(4 / math.pi**2)
    weight = aspect / (aspect - iou).add_(1 + EPS)
    value.addcmul_(aspect, weight, value=-1)
    if slope is None:
        return
    squares = torch.addcmul(size_a[0] * size_a[0], size_a[1], size_a[1]).clamp_(min=_TINY)
    push = turn.mul_(weight).mul_(8 / math.pi**2).div_(squares)
    slope[2].addcmul_(push, size_a[1])
    slope[3].addcmul_(push, size_a[0], value=-1)
