"""A trained filter of duplicate detections, for networks whose detections need no NMS."""

from __future__ import annotations

import torch
from torch import Tensor, nn

THRESHOLDS = (0.5, 0.6, 0.7)  # IoUs from which two boxes count as close, closer and closest
INITIAL = -2.0  # logits per threshold, if a box that overlaps more has a higher score
WIDTH, LARGEST = 16, 8.0
COMPARED = 100  # best boxes of an image, with which all are compared; only they are trained on
TINY = 1e-6  # keeps 0 / 0 out of the IoU


class DuplicateFilter(nn.Module):
    """Correct the scores of the best boxes of an image, so that one box per object keeps a high score.

    Each box is compared with the best ones of its class. For every threshold a small perceptron gets the largest lead
    of a box that overlaps by more than that, the difference between its logit and the box's own, and whether there is
    one. Before training, a box loses two logits for every threshold at which a box with a higher score overlaps it: the
    matrix form of non-maximum suppression (Fast NMS, arXiv 1904.02689) with scores that fade instead of vanishing. The
    loss, with one positive per object (YOLOv10, arXiv 2405.14458), trains it from there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(1 + 2 * len(THRESHOLDS), WIDTH)
        self.output = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, boxes: Tensor, logits: Tensor, classes: Tensor) -> Tensor:
        """Compute corrections.

        Args:
            boxes: (B, K, 4) x1, y1, x2, y2.
            logits: (B, K) of the classes of the boxes, in descending order.
            classes: (B, K).

        Returns:
            (B, K) float32 summands of the logits.
        """
        ious = _ious(boxes, boxes[:, :COMPARED])
        # (B, K, 100): of the second box over the first
        leads = (logits[:, None, :COMPARED] - logits[:, :, None]).clamp(0, LARGEST)
        leads = leads * (classes[:, :, None] == classes[:, None, :COMPARED])
        lead = torch.stack([(leads * (ious > limit)).amax(dim=2) for limit in THRESHOLDS], dim=2)
        beaten = (lead > 0).to(lead.dtype)
        own = logits.clamp(-LARGEST, LARGEST)[:, :, None]
        inputs = torch.cat((own / 4, lead / 4, beaten), dim=2).to(self.hidden.weight.dtype)
        learned = self.output(nn.functional.silu(self.hidden(inputs)))[:, :, 0].float()
        return 4 * learned + INITIAL * beaten.sum(dim=2)


def _ious(first: Tensor, second: Tensor) -> Tensor:
    """Compute the (B, K, M) IoUs of (B, K, 4) and (B, M, 4) boxes."""
    left, top, right, bottom = first[:, :, None].unbind(3)
    others_left, others_top, others_right, others_bottom = second[:, None].unbind(3)
    width = (torch.minimum(right, others_right) - torch.maximum(left, others_left)).clamp(min=0)
    height = (torch.minimum(bottom, others_bottom) - torch.maximum(top, others_top)).clamp(min=0)
    shared = width * height
    areas = (right - left) * (bottom - top) + (others_right - others_left) * (others_bottom - others_top)
    return shared / (areas - shared + TINY)
