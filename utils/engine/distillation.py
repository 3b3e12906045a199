"""Distillation (`--distill`): a loss term that draws a network to the outputs of a trained teacher.

With the teacher's probability p, the student's q, and the divergence KL(p, q) of two Bernoulli variables, the term is

    anchor-free heads: dense_cls sum over cells and classes of  KL(p, q) / W
                     + dense_dfl sum over cells of  w mean over sides of  KL(p, q of the distributions) / W
    heads with anchors: obj sum over levels of  balance mean over predictors of  KL(p, q of the objectness)
                     + cls sum over predictors of  w mean over classes of  KL(p, q) / W

w is the teacher's confidence in a cell or predictor (its best class probability, or its objectness) and W the sum of w
on all ranks. Distances of heads with one bin are compared by their L1 error in place of the divergence. The whole is
multiplied by the hyperparameter `distill` and by a weight that falls from 1 to 0 along a half cosine: at the end of the
training only the labels count. Divergences of class scores go back to Hinton et al. (arXiv:1503.02531), those of
distributions of distances to Zheng et al. (Localization Distillation, arXiv:2102.12252).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, kl_div, l1_loss, log_softmax, softplus

from models.checkpoint import load_checkpoint
from models.fuse import fuse_in_place
from models.network import Network
from models.network_runner import to_input
from models.weight_download import resolve_weights
from utils.core.contracts import Batch, HeadSpec, Loss, Raw
from utils.core.distributed import sum_over_ranks
from utils.core.errors import UserError
from utils.core.host_targets import HostTargets, Prepared
from utils.core.hyp import Hyp
from utils.core.log import LOGGER
from utils.core.train_settings import TrainSettings
from utils.losses.detect import autocast_disabled, level_balance

_ANCHOR_TOLERANCE = 0.02  # relative; half-precision checkpoints round anchors
_MIN_WEIGHT = 1.0  # limits 1 / W for images in which the teacher is sure of nothing

Divergence = Callable[[Raw, Raw], Tensor]  # of the raw outputs of teacher and student


def distil_losses(
    losses: Mapping[str, Loss], network: Network, settings: TrainSettings, hyp: Hyp, mixed: torch.dtype | None,
    total_steps: int,
) -> dict[str, Loss]:  # fmt: skip
    """Add the distillation term to the loss of the head with boxes.

    Args:
        losses: Losses by head name.
        network: Network to train, on its device.
        settings: Options of the run; `distill` is the checkpoint of the teacher.
        hyp: Hyperparameters, not scaled.
        mixed: Type of mixed precision for the teacher; None for fp32.
        total_steps: Batches of the whole training.

    Raises:
        UserError: If the teacher does not exist or its head does not fit the network.
    """
    device = next(network.parameters()).device
    head = next((name for name, spec in network.specs.items() if spec.strides), "")
    if not head:
        raise UserError("--distill: the network has no head with boxes; leave the option out")
    teacher, teacher_head = _load_teacher(settings, network.specs[head])
    teacher.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    spec = network.specs[head]
    gains = hyp.scaled(len(spec.strides), spec.num_classes, settings.imgsz[0])
    divergence = DenseDivergence(spec, gains) if spec.bins else AnchorDivergence(spec, gains)
    run_teacher = Teacher(teacher, teacher_head, spec.strides[0], mixed)
    wrapped = DistilledLoss(losses[head], run_teacher, divergence, hyp.distill, total_steps)
    return {**losses, head: wrapped.to(device)}


def _load_teacher(settings: TrainSettings, student: HeadSpec) -> tuple[Network, str]:
    """Load and fold the teacher; return it with the name of its head with boxes."""
    option = f"--distill {settings.distill}"
    path = Path(resolve_weights(settings.distill, settings.download))
    if not path.is_file():
        advice = "put it back to resume this run" if settings.resume else "give the checkpoint of a trained network"
        raise UserError(f"{option}: no such file; {advice}")
    network = load_checkpoint(path).network
    heads = {name: spec for name, spec in network.specs.items() if spec.strides}
    if not heads:
        raise UserError(f"{option}: has no head with boxes; choose a teacher for detection or instance segmentation")
    name, spec = next(iter(heads.items()))
    if reason := _mismatch(spec, student):
        raise UserError(f"{option}: {reason}; choose a teacher of the same family, trained on the same classes")
    LOGGER.info(f"distillation from {path} ({network.architecture['name']})")
    return fuse_in_place(network).eval().requires_grad_(False), name


def _mismatch(teacher: HeadSpec, student: HeadSpec) -> str:
    """Explain why two heads cannot be compared; empty if they can."""
    named = not all(name.isdigit() for name in (*teacher.names, *student.names))
    if teacher.num_classes != student.num_classes or (named and teacher.names != student.names):
        ours, theirs = (", ".join(spec.names[:3]) for spec in (student, teacher))
        return f"has {teacher.num_classes} classes ({theirs}, ...), the data has {student.num_classes} ({ours}, ...)"
    if teacher.bins != student.bins:
        kinds = [f"an anchor-free head with {s.bins} bins" if s.bins else "anchors" for s in (teacher, student)]
        return f"has {kinds[0]}, the network {kinds[1]}"
    if teacher.strides != student.strides:
        return f"has levels of stride {teacher.strides}, the network {student.strides}"
    same_counts = [len(level) for level in teacher.anchors] == [len(level) for level in student.anchors]
    if not same_counts or not torch.allclose(
        torch.tensor(teacher.anchors), torch.tensor(student.anchors), rtol=_ANCHOR_TOLERANCE
    ):
        return "has other anchors than the network (--noautoanchor leaves those of --weights or --cfg)"
    return ""


class Teacher:
    """Frozen network that is run on the images of a batch.

    Args:
        network: Folded network in evaluation mode, on the device of the batches.
        head: Head to return.
        stride: Finest stride, which gives the size of the student's input.
        mixed: Type of mixed precision; None for fp32.
    """

    def __init__(self, network: Network, head: str, stride: int, mixed: torch.dtype | None) -> None:
        self.network, self.head, self.stride, self.mixed = network, head, stride, mixed

    @torch.no_grad()
    def __call__(self, batch: Batch, grid_hw: tuple[int, int]) -> Raw:
        """Compute the raw outputs for images of the size of the student's input, whose finest grid is `grid_hw`."""
        images = to_input(batch.images, batch.images.device)
        input_hw = (grid_hw[0] * self.stride, grid_hw[1] * self.stride)
        if images.shape[2:] != input_hw:  # --multi-scale
            images = interpolate(images, size=input_hw, mode="bilinear", align_corners=False)
        with torch.autocast(images.device.type, dtype=self.mixed, enabled=self.mixed is not None):
            raw: Raw = self.network(images)[self.head]
        return raw


class DistilledLoss(nn.Module):
    """Loss of a head with the additional term `distill` in training.

    The teacher is no part of the state: checkpoints hold the state of the inner loss and the number of steps.

    Args:
        inner: Loss of the labels.
        teacher: Computes the raw outputs of the teacher for a batch.
        divergence: Compares raw outputs.
        gain: Initial weight of the term.
        total_steps: Batches of the whole training, after which the weight is 0.
    """

    steps: Tensor

    def __init__(
        self, inner: Loss, teacher: Callable[[Batch, tuple[int, int]], Raw], divergence: Divergence, gain: float,
        total_steps: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.inner = inner
        self.teacher, self.divergence, self.gain, self.total_steps = teacher, divergence, gain, max(total_steps, 1)
        self.per_image, self.labels = inner.per_image, inner.labels
        self.extra_terms, self.omitted_terms = inner.extra_terms, inner.omitted_terms
        self.training_terms = (*inner.training_terms, "distill")
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def prepare(self, batch: Batch, input_hw: tuple[int, int]) -> Prepared:
        """Compute the targets of the inner loss on the host."""
        assert isinstance(self.inner, HostTargets)
        return self.inner.prepare(batch, input_hw)

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Compute the terms of the inner loss and, in training, `distill`."""
        terms = dict(self.inner(raw, batch))
        if not self.training:
            return terms
        finest = raw["level0"]
        rows, columns = finest.shape[2:4]  # of (B, channels, H, W) and of (B, A, H, W, columns)
        with autocast_disabled(finest.device.type):
            found = self.divergence(self.teacher(batch, (rows, columns)), raw)
        fraction = (self.steps / self.total_steps).clamp(max=1)
        self.steps += 1
        terms["distill"] = found * (self.gain * 0.5 * (1 + torch.cos(math.pi * fraction)))
        return terms


def bernoulli_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Compute KL(p, q) of each element from the logits of p and q."""
    return teacher.sigmoid() * (teacher - student) + softplus(student) - softplus(teacher)


class DenseDivergence:
    """Divergence of the classes and distances of anchor-free heads; see the module.

    Args:
        spec: Head of the student.
        hyp: Gains `dense_cls` and `dense_dfl`.
    """

    def __init__(self, spec: HeadSpec, hyp: Hyp) -> None:
        self.spec, self.gains = spec, (hyp.dense_cls, hyp.dense_dfl)

    def __call__(self, teacher: Raw, student: Raw) -> Tensor:
        """Compare `level0`, `level1`, ...: (B, 4 x bins + C (+ masks), H, W) logits."""
        first, last = 4 * self.spec.bins, 4 * self.spec.bins + self.spec.num_classes
        sums: list[Tensor] = []
        for index in range(len(self.spec.strides)):
            wanted, given = (raw[f"level{index}"].float() for raw in (teacher, student))
            weight = wanted[:, first:last].sigmoid().amax(dim=1)  # (B, H, W)
            classes = bernoulli_divergence(wanted[:, first:last], given[:, first:last]).sum()
            sides = self._sides(wanted[:, :first], given[:, :first])
            sums.append(torch.stack((classes, (sides * weight).sum(), weight.sum())))
        classes, sides, weight = torch.stack(sums).sum(dim=0).unbind()
        return (classes * self.gains[0] + sides * self.gains[1]) / _over_ranks(weight)

    def _sides(self, wanted: Tensor, given: Tensor) -> Tensor:
        """Compare distances: (B, 4 x bins, H, W) logits to (B, H, W)."""
        if self.spec.bins == 1:
            return l1_loss(softplus(given), softplus(wanted), reduction="none").mean(dim=1)
        ours, theirs = (log_softmax(values.unflatten(1, (4, self.spec.bins)), dim=2) for values in (given, wanted))
        return kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=2).mean(dim=1)


class AnchorDivergence:
    """Divergence of the objectness and classes of heads with anchors; see the module.

    Args:
        spec: Head of the student.
        hyp: Scaled gains `obj` and `cls`.
    """

    def __init__(self, spec: HeadSpec, hyp: Hyp) -> None:
        self.spec, self.gains = spec, (hyp.obj, hyp.cls)

    def __call__(self, teacher: Raw, student: Raw) -> Tensor:
        """Compare `level0`, `level1`, ...: (B, A, H, W, 5 + C (+ masks)) logits."""
        objectness: list[Tensor] = []
        sums: list[Tensor] = []
        for index, balance in enumerate(level_balance(len(self.spec.strides))):
            columns = slice(4, 5 + self.spec.num_classes)
            wanted, given = (raw[f"level{index}"][..., columns].float() for raw in (teacher, student))
            found = bernoulli_divergence(wanted, given)
            count = _over_ranks(found.new_full((), found[..., 0].numel()))
            objectness.append(found[..., 0].sum() / count * balance)
            weight = wanted[..., 0].sigmoid()
            sums.append(torch.stack(((found[..., 1:].mean(dim=-1) * weight).sum(), weight.sum())))
        classes, weight = torch.stack(sums).sum(dim=0).unbind()
        return torch.stack(objectness).sum() * self.gains[0] + classes / _over_ranks(weight) * self.gains[1]


def _over_ranks(value: Tensor) -> Tensor:
    return sum_over_ranks(value).clamp(min=_MIN_WEIGHT)
