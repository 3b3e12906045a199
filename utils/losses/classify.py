"""Loss of the `classify` head: cross-entropy of the class of each image."""

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
    """Cross-entropy with label smoothing, term `ce`.

    The mean is over the labelled images of all ranks in training, of this rank in evaluation.

    Args:
        spec: Description of the head.
        hyp: Hyperparameters; reads `label_smoothing`, the part of each target that is spread over all classes.
    """

    per_image = False
    labels = "classes"
    extra_terms: tuple[str, ...] = ()
    omitted_terms: tuple[str, ...] = ()
    training_terms: tuple[str, ...] = ()

    def __init__(self, spec: HeadSpec, hyp: Hyp) -> None:
        super().__init__()
        self.label_smoothing = hyp.label_smoothing

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss.

        Args:
            raw: `logits` (B, C).
            batch: Batch whose `classes` (B,) are class indices, -1 without a label.

        Returns:
            The term `ce`, a float32 scalar.
        """
        logits = raw["logits"].float()
        if batch.classes is None:
            return {"ce": logits.sum() * 0}
        classes = batch.classes.to(logits.device)
        total = cross_entropy(
            logits, classes, ignore_index=_UNLABELLED, label_smoothing=self.label_smoothing, reduction="sum"
        )
        count = (classes != _UNLABELLED).sum().to(total.dtype)
        count = sum_over_ranks(count) if self.training else count
        return {"ce": total / torch.clamp(count, min=1)}
