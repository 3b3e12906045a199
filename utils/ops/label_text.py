"""Boxes as lines of a label file."""

import torch
from torch import Tensor


def box_lines(
    boxes_xyxy: Tensor, classes: Tensor, scores: Tensor | None, image_hw: tuple[int, int], corners: bool = False
) -> list[str]:
    """Return `class cx cy w h [score]` per box, divided by image width and height (behaviour.md 5.3).

    Boxes are (n, 4) pixels of an image of `image_hw`; `corners` writes x1 y1 x2 y2 instead.
    """
    height, width = image_hw
    normalised = boxes_xyxy / boxes_xyxy.new_tensor([width, height, width, height])
    if not corners:
        low, high = normalised[:, :2], normalised[:, 2:]
        normalised = torch.cat([(low + high) / 2, high - low], dim=1)
    lines = []
    for row, (box, kind) in enumerate(zip(normalised.tolist(), classes.tolist(), strict=True)):
        values = [*box, *([float(scores[row])] if scores is not None else [])]
        lines.append(" ".join([str(int(kind)), *(f"{value:g}" for value in values)]))
    return lines
