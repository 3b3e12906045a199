"""Assignment of labelled boxes to the anchors and grid cells of all feature levels.

It needs the labels, the anchors and the sizes of the levels, but nothing that the network computes. It therefore runs
on the host before a batch is moved to the device: only valid pairs are stored, the host knows every shape, and the
device receives one tensor of integers and one of floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

# Shifts, in cells, that turn a box centre into the up to five cells that predict it: the cell that contains the centre,
# then its left, upper, right and lower neighbour.
_SHIFT_X = (0.0, -0.5, 0.0, 0.5, 0.0)
_SHIFT_Y = (0.0, 0.0, -0.5, 0.0, 0.5)


@dataclass(frozen=True)
class Assignment:
    """P pairs of a predictor (level, image, anchor, cell) and a labelled box.

    Pairs are ordered by level, shift (own cell first, then the neighbours), anchor and label. A predictor may occur
    several times: U of them occur at least once.
    """

    level_hws: tuple[tuple[int, int], ...]  # rows and columns of every level
    pairs: tuple[int, ...]  # pairs of every level
    predictors: tuple[int, ...]  # distinct predictors of every level

    image: Tensor  # (P,) int64 index into the batch
    anchor: Tensor  # (P,) int64 index into the anchors of the level
    row: Tensor  # (P,) int64 grid row
    column: Tensor  # (P,) int64 grid column
    target: Tensor  # (P,) int64 row of Batch.boxes
    classes: Tensor  # (P,) int64
    level: Tensor  # (P,) int64
    by_predictor: Tensor  # (P,) int64 order that sorts the pairs by predictor; pairs of one keep their order
    predictor: Tensor  # (U,) int64 index into the predictors of all levels, each ordered by image, anchor, row, column
    multiplicity: Tensor  # (U,) int64 pairs of the predictor
    last: Tensor  # (U,) int64 the last of its pairs
    boxes: Tensor  # (P, 4) cx, cy, w, h in cells; the centre is relative to the upper left corner of the pair's cell
    anchors: Tensor  # (P, 2) width and height of the pair's anchor in cells

    def __len__(self) -> int:
        return len(self.image)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def pin_memory(self) -> Assignment:
        """Return this object; `to()` copies from its own buffers."""
        return self

    def to(self, device: torch.device) -> Assignment:
        """Move all tensors to `device` in two transfers that do not block the host."""
        if device.type == "cpu":
            return self
        tensors = self._tensors()
        moved: dict[str, Any] = {}
        for kind in (torch.int64, torch.float32):
            names = [name for name, value in tensors.items() if value.dtype is kind]
            moved |= zip(names, pack_to([tensors[name] for name in names], device), strict=True)
        return replace(self, **moved)


def pack_to(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Move CPU tensors of one dtype to `device` in a single transfer that does not block the host."""
    packed = torch.cat([tensor.flatten() for tensor in tensors])
    packed = (packed.pin_memory() if device.type == "cuda" else packed).to(device, non_blocking=True)
    parts = packed.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def assign(
    targets: Tensor,
    anchors: Tensor,
    level_hws: Sequence[tuple[int, int]],
    max_ratio: float,
    batch_size: int,
    usable: Tensor | None = None,
) -> Assignment:
    """Assign labelled boxes to predictors.

    A label and an anchor match if max(w / w_a, w_a / w, h / h_a, h_a / h) < `max_ratio`. A matching label is predicted
    by the cell that contains its centre and by the horizontal and the vertical neighbour that are nearest to the
    centre, provided they exist.

    Args:
        targets: (N, 6) image index, class, cx, cy, w, h; the last four are divided by the size of the network's input.
        anchors: (L, A, 2) widths and heights in cells of their level.
        level_hws: Rows and columns of each of the L levels.
        max_ratio: Limit of the ratio of sides (hyperparameter `anchor_t`).
        batch_size: Images of the batch.
        usable: (N,) bool; labels with False are not assigned.

    Returns:
        The pairs of all levels, on the CPU.
    """
    targets = targets.detach().cpu().float()
    anchors = anchors.detach().cpu()
    levels = [_assign_level(targets, *level, max_ratio, usable) for level in zip(anchors, level_hws, strict=True)]
    predictors, last, order, multiplicity = [], [], [], []
    first_predictor = first_pair = 0
    for level, (height, width) in zip(levels, level_hws, strict=True):
        number = ((level["image"] * anchors.shape[1] + level["anchor"]) * height + level["row"]) * width
        ordered, permutation = (number + level["column"]).sort(stable=True)
        distinct, counts = ordered.unique_consecutive(return_counts=True)
        predictors.append(distinct + first_predictor)
        multiplicity.append(counts)
        order.append(permutation + first_pair)
        last.append(permutation[counts.cumsum(0) - 1] + first_pair)
        first_predictor += batch_size * anchors.shape[1] * height * width
        first_pair += len(permutation)
    index = torch.arange(len(levels)).repeat_interleave(torch.tensor([len(level["image"]) for level in levels]))
    joined: dict[str, Any] = {name: torch.cat([level[name] for level in levels]) for name in levels[0]}
    return Assignment(
        level_hws=tuple((int(height), int(width)) for height, width in level_hws),
        pairs=tuple(len(level["image"]) for level in levels),
        predictors=tuple(map(len, predictors)),
        level=index,
        by_predictor=torch.cat(order),
        predictor=torch.cat(predictors),
        multiplicity=torch.cat(multiplicity),
        last=torch.cat(last),
        anchors=anchors[index, joined["anchor"]],
        **joined,
    )


def _assign_level(
    targets: Tensor, anchors: Tensor, grid_hw: tuple[int, int], max_ratio: float, usable: Tensor | None
) -> dict[str, Tensor]:
    """Assign labels to the predictors of one level; return the pairs by the names of `Assignment`."""
    height, width = grid_hw
    centre_x, centre_y = targets[:, 2] * width, targets[:, 3] * height  # (N,) in cells
    box_w, box_h = targets[:, 4] * width, targets[:, 5] * height

    ratio_w, ratio_h = box_w / anchors[:, :1], box_h / anchors[:, 1:]  # (A, N)
    worst = torch.maximum(torch.maximum(ratio_w, 1 / ratio_w), torch.maximum(ratio_h, 1 / ratio_h))
    matches = worst < max_ratio
    if usable is not None:
        matches = matches & usable
    mask = _shift_mask(centre_x, centre_y, grid_hw)[:, None] & matches  # (5, A, N)
    shift, anchor, target = mask.nonzero(as_tuple=True)

    # Truncate, clamp, then subtract: the order decides the cell of centres on a cell border or the image border.
    column = _shifted(centre_x, _SHIFT_X)[shift, target].long().clamp(0, width - 1)
    row = _shifted(centre_y, _SHIFT_Y)[shift, target].long().clamp(0, height - 1)
    boxes = torch.stack((centre_x[target] - column, centre_y[target] - row, box_w[target], box_h[target]), dim=1)
    labels = targets[:, :2].long()[target]
    return {
        "image": labels[:, 0], "anchor": anchor, "row": row, "column": column, "target": target,
        "classes": labels[:, 1], "boxes": boxes,
    }  # fmt: skip


def _shifted(centre: Tensor, shifts: tuple[float, ...]) -> Tensor:
    """Return (5, N) centres, moved by each of the shifts."""
    return torch.stack([centre + shift if shift else centre for shift in shifts])


def _shift_mask(centre_x: Tensor, centre_y: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Return (5, N) bool: the shifts that apply to each label.

    A centre with integer coordinates is near both sides of its cell; its shift to the right ends in its own cell.
    """
    height, width = grid_hw

    def near(position: Tensor) -> Tensor:
        return (position % 1 < 0.5) & (position > 1)

    return torch.stack(
        (
            torch.ones_like(centre_x, dtype=torch.bool),
            near(centre_x),
            near(centre_y),
            near(width - centre_x),
            near(height - centre_y),
        )
    )
