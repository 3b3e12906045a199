"""Task-aligned assignment of predictions to labels (TOOD, arXiv 2108.07755, section 3.2).

Which cells lie inside a label's box depends on the labels alone, so these candidate pairs are found on the host. All
that depends on the network works on them with shapes that the host knows, and never waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.losses.anchor_assignment import pack_to

ALPHA, BETA = 0.5, 6.0  # exponents of class score and IoU in the alignment metric
_LABEL_SHIFT, _FLOAT_BITS = 32, 0x7FFFFFFF
_TINY = 1e-9  # keeps 0 / 0 out of the target scores


@dataclass(frozen=True)
class Candidates:
    """P pairs of a label and a cell inside its box, ordered by label; labels have G rows and K pairs of low rank."""

    level_hws: tuple[tuple[int, int], ...]  # rows and columns of every level
    num_images: int
    label: Tensor  # (P,) int64 row of the labels
    image: Tensor  # (P,) int64 index into the batch
    cell: Tensor  # (P,) int64 index into the cells of all levels, finest first, row by row
    classes: Tensor  # (G,) int64
    position: Tensor  # (K,) int64 the first pairs of every label, as many as it can have positives
    rank: Tensor  # (K,) int64 number of each of them among those of its label
    centre: Tensor  # (P, 2) float32 cell centres x, y in pixels
    stride: Tensor  # (P,) float32 pixels per cell
    boxes: Tensor  # (G, 4) float32 x1, y1, x2, y2 in pixels

    @property
    def num_cells(self) -> int:
        """Cells of all levels of an image."""
        return sum(height * width for height, width in self.level_hws)

    def pin_memory(self) -> Candidates:
        """Return this object; `to()` copies from its own buffers."""
        return self

    def to(self, device: torch.device) -> Candidates:
        """Move all tensors to `device` in two transfers that do not block the host."""
        if device.type == "cpu":
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {}
        for kind in (torch.int64, torch.float32):
            names = [name for name, value in tensors.items() if value.dtype is kind]
            moved |= zip(names, pack_to([tensors[name] for name in names], device), strict=True)
        return replace(self, **moved)


class Assigned(NamedTuple):
    """The K best-aligned pairs of all labels; a cell has at most one positive pair."""

    pair: Tensor  # (K,) int64 index into the candidates
    positive: Tensor  # (K,) bool
    score: Tensor  # (K,) float target of the class score, 0 where not positive


def find_candidates(
    labels: Tensor, input_hw: tuple[int, int], strides: Sequence[int], num_images: int, top_k: int
) -> Candidates:
    """Find the cells whose centre lies inside each label's box.

    A side shorter than the finest stride counts as the second stride in this test, or such a box might contain no
    centre at all (small-target rule).

    Args:
        labels: (G, 6) image index, class, cx, cy, w, h on the CPU; the last four divided by the size of the input.
        input_hw: height and width of the network's input in pixels.
        strides: pixels per cell of every level, finest first.
        num_images: images of the batch.
        top_k: largest number of positives of a label.

    Returns:
        The pairs, ordered by label, then level, row and column, on the CPU.
    """
    height, width = input_hw
    centre, size = labels[:, 2:4] * torch.tensor([width, height]), labels[:, 4:6] * torch.tensor([width, height])
    boxes = torch.cat((centre - size / 2, centre + size / 2), dim=1)
    size = torch.where(size < strides[0], float(strides[min(1, len(strides) - 1)]), size)
    low, high = centre - size / 2, centre + size / 2
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    level_hws = tuple((height // stride, width // stride) for stride in strides)
    offset = 0
    for (rows, columns), stride in zip(level_hws, strides, strict=True):
        limit = torch.tensor([columns, rows])
        first = (low / stride - 0.5).ceil().long().clamp(min=0)  # (G, 2) cells with low <= centre < high
        count = ((high / stride - 0.5).ceil().long().minimum(limit) - first).clamp(min=0)
        number = count.prod(dim=1)
        label = torch.arange(len(labels)).repeat_interleave(number)
        inside = torch.arange(len(label)) - (number.cumsum(0) - number)[label]
        wide = count[label, 0].clamp(min=1)
        x, y = first[label, 0] + inside % wide, first[label, 1] + inside // wide
        middle = (torch.stack((x, y), dim=1) + 0.5) * stride
        parts.append((label, y * columns + x + offset, middle, torch.full((len(label),), float(stride))))
        offset += rows * columns
    label, cell, middle, stride_of = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    label, order = label.sort(stable=True)
    number = torch.bincount(label, minlength=len(labels))
    start = number.cumsum(0) - number
    taken = number.clamp(max=top_k)
    owner = torch.arange(len(labels)).repeat_interleave(taken)
    rank = torch.arange(len(owner)) - (taken.cumsum(0) - taken)[owner]
    return Candidates(
        level_hws, num_images, label, labels[:, 0].long()[label], cell[order], labels[:, 1].long(),
        start[owner] + rank, rank, middle[order], stride_of[order], boxes,
    )  # fmt: skip


def assign(candidates: Candidates, class_scores: Tensor, ious: Tensor, single: int = 0) -> Assigned:
    """Choose the positive pairs and their target scores.

    The alignment of a pair is t = s^0.5 u^6. Every label takes its best-aligned cells; a cell that several labels take
    goes to the one with the highest IoU. Target scores are t / max t x max u over the label's cells.

    Args:
        candidates: the P pairs.
        class_scores: (P,) probability of the label's class in the cell.
        ious: (P,) IoU of the cell's box with the label, at least 0.
        single: 0: the positives of a label are all of its `top_k` cells; else its best cell among `single` ones.

    Returns:
        The positives and their scores.
    """
    alignment = (class_scores**ALPHA * ious**BETA).float()
    # one sort by label, then by falling alignment: the bits of floats from 0 are ordered like the floats
    keys = candidates.label << _LABEL_SHIFT | (_FLOAT_BITS - alignment.view(torch.int32).long())
    pair = keys.argsort(stable=True)[candidates.position]
    label, alignment, ious = candidates.label[pair], alignment[pair], ious[pair]
    taken = candidates.rank < single if single else torch.ones_like(label, dtype=torch.bool)

    number = torch.arange(len(pair), device=pair.device)
    cell = candidates.image[pair] * candidates.num_cells + candidates.cell[pair]
    slots = candidates.num_images * candidates.num_cells
    positive = _best(ious, taken, cell, slots, number)
    if single:
        positive = _best(alignment, positive, label, len(candidates.boxes), number)

    def maximum(values: Tensor) -> Tensor:
        top = values.new_zeros(len(candidates.boxes))
        return top.scatter_reduce_(0, label, torch.where(positive, values, 0.0), "amax")[label]

    score = alignment / maximum(alignment).clamp(min=_TINY) * maximum(ious)
    return Assigned(pair, positive, torch.where(positive, score, 0.0))


def _best(values: Tensor, allowed: Tensor, group: Tensor, groups: int, number: Tensor) -> Tensor:
    """Mark the entry with the highest value of every group among the allowed ones; of equal values the first."""
    best = values.new_full((groups,), -1.0).scatter_reduce_(0, group, torch.where(allowed, values, -1.0), "amax")
    allowed = allowed & (values == best[group])
    first = torch.full((groups,), len(number), device=number.device)
    first.scatter_reduce_(0, group, torch.where(allowed, number, len(number)), "amin")
    return allowed & (first[group] == number)
