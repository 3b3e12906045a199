"""The loss of the `classify` head: cross-entropy of the class of each image (behaviour.md 3.15)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from utils.core.contracts import Batch, HeadSpec, Raw
from utils.core.distributed import sum_over_ranks
from utils.core.hyp import Hyp
from utils.losses import LOSSES

_UNLABELLED = -1


@LOSSES.register("classify")
class ClassifyLoss(nn.Module):
    """One term, `ce`: the mean over the images that have a class, over all ranks' (in evaluation mode this one's).

    `hyp.label_smoothing` is the share of each target that is spread evenly over all classes.
    """

    per_image = False
    labels = "classes"
    extra_terms: tuple[str, ...] = ()

    def __init__(self, spec: HeadSpec, hyp: Hyp) -> None:
        super().__init__()
        self.smoothing = hyp.label_smoothing

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Take logits (B, C) and `batch.classes` (B,); return a float32 scalar."""
        logits = raw["logits"].float()
        if batch.classes is None:
            return {"ce": logits.sum() * 0}
        classes = batch.classes.to(logits.device)
        total = cross_entropy(
            logits, classes, ignore_index=_UNLABELLED, label_smoothing=self.smoothing, reduction="sum"
        )
        count = (classes != _UNLABELLED).sum().to(total.dtype)
        count = sum_over_ranks(count) if self.training else count
        return {"ce": total / torch.clamp(count, min=1)}
