"""Non-maximum suppression of a whole batch on a GPU: no loop over images, and few waits of the host."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK_VALUES = 2**24  # pairs of boxes that are compared at once, in all images
_BLOCK = (128, 1024)  # fewest and most boxes of an image in a block
_FIRST_ROUNDS = 8  # of `_greedy_keep`: enough unless boxes overlap in long chains
_CHECK_AFTER = (2, 8, 32, 128)  # blocks after which the host looks whether all images have enough detections


class PaddedDetections(NamedTuple):
    """Detections of a batch, L the most in an image; rows are zero behind an image's last detection."""

    rows: Tensor  # (B, L, 6 + M) on the device: x1, y1, x2, y2, score, class, mask coefficients; descending scores
    host_rows: list[Tensor]  # per image (n, 6) on the CPU: the same without coefficients
    truncated: list[bool]  # per image: candidates beyond the limit, the lowest scores, were ignored


class NmsLimits(NamedTuple):
    """Limits of NMS."""

    threshold: float  # IoU above which the lower-scoring box is removed
    max_detections: int  # per image
    max_candidates: int  # per image


def select_padded(
    images: Tensor, candidates: Tensor, boxes_xyxy: Tensor, num_images: int, limits: NmsLimits
) -> PaddedDetections:
    """Apply greedy NMS to the candidates of all images at once, with the result of `non_maximum_suppression`.

    Candidates are padded to the same number per image and processed in blocks of descending score. A block is compared
    with the boxes kept so far, then with itself. The host waits for the numbers of candidates, after a few of many
    blocks, and for the result.

    Args:
        images: (K,) ascending image of each candidate.
        candidates: (K, 6 + M) x1, y1, x2, y2, score, class, mask coefficients.
        boxes_xyxy: (K, 4) boxes to compare: shifted such that those of different classes do not overlap.
        num_images: B.
        limits: Limits.

    Returns:
        The detections.
    """
    starts = torch.searchsorted(images, torch.arange(num_images + 1, device=images.device))
    counts = starts.diff()
    sizes = counts.tolist()
    truncated = [size > limits.max_candidates for size in sizes]
    if not any(sizes):
        empty = candidates.new_zeros((num_images, 0, candidates.shape[1]))
        return PaddedDetections(empty, [torch.zeros(0, 6) for _ in sizes], truncated)
    scores = candidates.new_full((num_images, max(sizes)), -torch.inf)
    scores[images, torch.arange(len(images), device=images.device) - starts[images]] = candidates[:, 4]
    order = scores.argsort(dim=1, descending=True, stable=True)[:, : limits.max_candidates]
    order = (order + starts[:-1, None]).clamp(max=len(images) - 1)  # (B, K) rows of `candidates`
    counts = counts.clamp(max=limits.max_candidates)
    boxes = boxes_xyxy[order].permute(2, 0, 1).contiguous()
    rounds = _FIRST_ROUNDS
    while True:
        kept, number, unfinished = _keep(boxes, counts, limits, rounds)
        rows = candidates[order.gather(1, kept)]
        rows = rows.masked_fill((torch.arange(rows.shape[1], device=rows.device) >= number)[..., None], 0.0)
        report = torch.cat((rows[..., :6].flatten(), number.flatten(), unfinished[None])).cpu()
        if not report[-1]:
            break
        rounds = boxes.shape[2]  # as many as there can be
    values, numbers = report[: -1 - num_images].view(num_images, -1, 6), report[-1 - num_images : -1].int().tolist()
    return PaddedDetections(rows, [part[:count] for part, count in zip(values, numbers, strict=True)], truncated)


def _keep(boxes: Tensor, counts: Tensor, limits: NmsLimits, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the boxes that remain.

    Args:
        boxes: (4, B, K) corners in descending order of score.
        counts: (B,) boxes of each image.
        limits: Limits.
        rounds: Of `_greedy_keep`.

    Returns:
        (B, L) positions of the remaining boxes, (B, 1) their float numbers, and the float number of boxes that are not
        decided after so many rounds.
    """
    _, batch, most = boxes.shape
    limit = min(limits.max_detections, most)
    areas = (boxes[2] - boxes[0]) * (boxes[3] - boxes[1])
    kept_boxes = boxes.new_full((4, batch, limit + 1), torch.nan)  # NaN overlaps nothing; the last slot is a waste bin
    kept = counts.new_zeros((batch, limit + 1))
    number = counts.new_zeros((batch, 1), dtype=torch.float32)
    unfinished = number.sum()
    position = torch.arange(most, device=boxes.device)
    valid = position < counts[:, None]
    step = min(max(int((_BLOCK_VALUES // batch) ** 0.5), _BLOCK[0]), _BLOCK[1])
    for block, start in enumerate(range(0, most, step)):
        if block in _CHECK_AFTER and bool((number >= limit).all()):
            break
        part = slice(start, min(start + step, most))
        current, alive = boxes[..., part], valid[:, part]
        if block:
            others = kept_boxes[..., :limit]
            other_areas = (others[2] - others[0]) * (others[3] - others[1])
            alive = alive & ~(_iou(others, other_areas, current, areas[:, part]) > limits.threshold).any(dim=1)
        suppresses = (_iou(current, areas[:, part], current, areas[:, part]) > limits.threshold).triu(1).float()
        keep, undecided = _greedy_keep(alive.float(), suppresses, rounds)
        unfinished = unfinished + undecided
        slot = keep.cumsum(dim=1) + (number - 1)
        number = (slot[:, -1:] + 1).clamp(max=limit)
        slot = slot.masked_fill(keep == 0, limit).clamp(max=limit).long()
        kept_boxes.scatter_(2, slot.expand_as(current), current)
        kept.scatter_(1, slot, position[part].expand_as(slot))
    return kept[:, :limit], number, unfinished


def _iou(first: Tensor, areas_first: Tensor, second: Tensor, areas_second: Tensor) -> Tensor:
    """Return (B, F, S) IoU of (4, B, F) and (4, B, S) boxes; NaN or zero for boxes without area."""
    a, b = first[..., None], second[:, :, None]
    sides = torch.minimum(a[2:], b[2:]).sub_(torch.maximum(a[:2], b[:2])).clamp_(min=0)
    intersection = sides[0] * sides[1]
    return intersection / (areas_first[..., None] + areas_second[:, None]).sub_(intersection)


def _greedy_keep(alive: Tensor, suppresses: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Return the boxes that greedy NMS keeps, and the number of those that may still change.

    A box is kept if no kept box before it suppresses it. Every round applies this to all boxes and decides at least one
    more; a product counts the kept boxes that suppress each box.

    Args:
        alive: (B, S) float, 1 for boxes that no box of an earlier block removes.
        suppresses: (B, S, S) float, strictly upper triangular: box i removes the later box j.
        rounds: Number of rounds.
    """
    alive = alive[:, None]
    previous = keep = alive
    for _ in range(rounds):
        previous, keep = keep, torch.baddbmm(alive, keep, suppresses, alpha=-1).clamp_(min=0)
    return keep[:, 0], (keep != previous).sum()
