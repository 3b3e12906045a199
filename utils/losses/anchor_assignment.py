"""Assignment of labelled boxes to the anchors and grid cells of one feature level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Shifts, in cells, that turn a box centre into the up to five cells that predict it: the cell that contains the centre,
# then its left, upper, right and lower neighbour.
_SHIFT_X = (0.0, -0.5, 0.0, 0.5, 0.0)
_SHIFT_Y = (0.0, 0.0, -0.5, 0.0, 0.5)


@dataclass(frozen=True)
class Assignment:
    """P pairs of a predictor (image, anchor, cell) and a labelled box on one level.

    Pairs are ordered by shift (own cell first, then the neighbours), anchor and label. A predictor may occur several
    times. Pairs with `valid` False are padding: their indices are in range, their values are meaningless.
    """

    image: Tensor  # (P,) int64 index into the batch
    anchor: Tensor  # (P,) int64 index into the anchors of the level
    row: Tensor  # (P,) int64 grid row
    column: Tensor  # (P,) int64 grid column
    target: Tensor  # (P,) int64 row of Batch.boxes
    classes: Tensor  # (P,) int64
    boxes: Tensor  # (P, 4) cx, cy, w, h in cells; the centre is relative to the upper left corner of the pair's cell
    valid: Tensor  # (P,) bool

    def __len__(self) -> int:
        return len(self.image)


def assign_level(
    targets: Tensor,
    anchors: Tensor,
    grid_hw: tuple[int, int],
    max_ratio: float,
    usable: Tensor | None = None,
    compact: bool | None = None,
) -> Assignment:
    """Assign labelled boxes to the predictors of one level.

    A label and an anchor match if max(w / w_a, w_a / w, h / h_a, h_a / h) < `max_ratio`. A matching label is predicted
    by the cell that contains its centre and by the horizontal and the vertical neighbour that are nearest to the
    centre, provided they exist.

    Args:
        targets: (N, 6) image index, class, cx, cy, w, h; the last four are divided by the size of the network's input.
        anchors: (A, 2) widths and heights in cells of this level.
        grid_hw: Rows and columns of the level.
        max_ratio: Limit of the ratio of sides (hyper-parameter `anchor_t`).
        usable: (N,) bool; labels with False are not assigned.
        compact: Return valid pairs only, which synchronises with the device to learn their number. Otherwise all
            5 * A * N candidates are returned and `valid` tells them apart. Default: compact on the CPU only.

    Returns:
        The pairs; their valid part does not depend on `compact`.
    """
    height, width = grid_hw
    targets = targets.float()
    centre_x, centre_y = targets[:, 2] * width, targets[:, 3] * height  # (N,) in cells
    box_w, box_h = targets[:, 4] * width, targets[:, 5] * height

    ratio_w, ratio_h = box_w / anchors[:, :1], box_h / anchors[:, 1:]  # (A, N)
    worst = torch.maximum(torch.maximum(ratio_w, 1 / ratio_w), torch.maximum(ratio_h, 1 / ratio_h))
    matches = worst < max_ratio
    if usable is not None:
        matches = matches & usable
    mask = _shift_mask(centre_x, centre_y, grid_hw)[:, None] & matches  # (5, A, N)

    num_anchors, num_targets = matches.shape
    if compact is None:
        compact = targets.device.type == "cpu"
    if compact:
        shift, anchor, target = mask.nonzero(as_tuple=True)
        valid = torch.ones_like(shift, dtype=torch.bool)
    else:
        flat = torch.arange(mask.numel(), device=targets.device)
        shift = flat.div(num_anchors * num_targets, rounding_mode="floor") if len(flat) else flat
        anchor = flat.div(num_targets, rounding_mode="floor") % num_anchors if len(flat) else flat
        target = flat % num_targets if len(flat) else flat
        valid = mask.flatten()

    # Truncate, clamp, then subtract: the order decides the cell of centres on a cell border or the image border.
    column = _shifted(centre_x, _SHIFT_X)[shift, target].long().clamp(0, width - 1)
    row = _shifted(centre_y, _SHIFT_Y)[shift, target].long().clamp(0, height - 1)
    boxes = torch.stack((centre_x[target] - column, centre_y[target] - row, box_w[target], box_h[target]), dim=1)
    labels = targets[:, :2].long()[target]
    return Assignment(labels[:, 0], anchor, row, column, target, labels[:, 1], boxes, valid)


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
