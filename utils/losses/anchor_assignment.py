"""Which cell and anchor of one feature level answers for which labelled box (behaviour.md 3.6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Order of a pair's copies: the centre's own cell, then the neighbours to the left, above, to the right, below.
_SHIFT_X = (0.0, -0.5, 0.0, 0.5, 0.0)
_SHIFT_Y = (0.0, 0.0, -0.5, 0.0, 0.5)


@dataclass(frozen=True)
class Assignment:
    """P pairs of a prediction and a label on one level, ordered by copy, then anchor, then label.

    A cell may occur several times. Where `valid` is False the pair is padding: its indices are legal, its numbers mean
    nothing.
    """

    image: Tensor  # (P,) int64 index into the batch
    anchor: Tensor  # (P,) int64 index into the level's anchors
    row: Tensor  # (P,) int64 grid row
    column: Tensor  # (P,) int64 grid column
    target: Tensor  # (P,) int64 row of Batch.boxes
    classes: Tensor  # (P,) int64
    boxes: Tensor  # (P, 4) cx, cy, w, h in cells, the centre relative to the pair's cell
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
    """Return the pairs of one level.

    `targets` is (N, 6): image, class, cx, cy, w, h normalised. `anchors` is (A, 2), in cells of this level. A label
    meets an anchor when no side differs by a factor of `max_ratio` or more. `usable` (N,) leaves labels out.

    `compact` drops what is not a pair, which asks the device how many there are; without it all 5 x A x N candidates
    stay, with a mask, so that nothing waits for a GPU. The default compacts on the CPU only. Results agree.
    """
    height, width = grid_hw
    targets = targets.float()
    centre_x, centre_y = targets[:, 2] * width, targets[:, 3] * height  # (N,) in cells
    box_w, box_h = targets[:, 4] * width, targets[:, 5] * height

    ratio_w, ratio_h = box_w / anchors[:, :1], box_h / anchors[:, 1:]  # (A, N)
    worst = torch.maximum(torch.maximum(ratio_w, 1 / ratio_w), torch.maximum(ratio_h, 1 / ratio_h))
    fits = worst < max_ratio
    if usable is not None:
        fits = fits & usable
    mask = _near_sides(centre_x, centre_y, grid_hw)[:, None] & fits  # (5, A, N)

    num_anchors, num_targets = fits.shape
    if compact is None:
        compact = targets.device.type == "cpu"
    if compact:
        copy, anchor, target = mask.nonzero(as_tuple=True)
        valid = torch.ones_like(copy, dtype=torch.bool)
    else:
        flat = torch.arange(mask.numel(), device=targets.device)
        copy = flat.div(num_anchors * num_targets, rounding_mode="floor") if len(flat) else flat
        anchor = flat.div(num_targets, rounding_mode="floor") % num_anchors if len(flat) else flat
        target = flat % num_targets if len(flat) else flat
        valid = mask.flatten()

    # Truncation, then the clamp, then the subtraction: this order decides which cell border cases land in.
    column = _shifted(centre_x, _SHIFT_X)[copy, target].long().clamp(0, width - 1)
    row = _shifted(centre_y, _SHIFT_Y)[copy, target].long().clamp(0, height - 1)
    boxes = torch.stack((centre_x[target] - column, centre_y[target] - row, box_w[target], box_h[target]), dim=1)
    labels = targets[:, :2].long()[target]
    return Assignment(labels[:, 0], anchor, row, column, target, labels[:, 1], boxes, valid)


def _shifted(centre: Tensor, shifts: tuple[float, ...]) -> Tensor:
    """Return (5, N): the centres moved by the shift of each copy."""
    return torch.stack([centre + shift if shift else centre for shift in shifts])


def _near_sides(centre_x: Tensor, centre_y: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Return (5, N) bool: which copies each label gets.

    A centre on a whole number is near both of its sides; the copy to the right then falls on the centre's own cell.
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
