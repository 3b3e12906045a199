"""Formatting of boxes as lines of a label file."""

import torch
from torch import Tensor


def box_lines(
    boxes_xyxy: Tensor, classes: Tensor, scores: Tensor | None, image_hw: tuple[int, int], corners: bool = False
) -> list[str]:
    """Format boxes as `class cx cy w h [score]`, normalised by the image size.

    Args:
        boxes_xyxy: (n, 4) boxes in pixels.
        classes: (n,) classes.
        scores: (n,) scores to append, or None.
        image_hw: Height and width of the image.
        corners: Write x1 y1 x2 y2 instead of cx cy w h.

    Returns:
        One line per box.
    """
    height, width = image_hw
    normalised = boxes_xyxy / boxes_xyxy.new_tensor([width, height, width, height])
    if not corners:
        low, high = normalised[:, :2], normalised[:, 2:]
        normalised = torch.cat([(low + high) / 2, high - low], dim=1)
    lines = []
    for row, (box, label) in enumerate(zip(normalised.tolist(), classes.tolist(), strict=True)):
        values = [*box, *([float(scores[row])] if scores is not None else [])]
        lines.append(" ".join([str(int(label)), *(f"{value:g}" for value in values)]))
    return lines
