"""One training epoch: forward, loss, backward, optimizer step, EMA."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from models.network_runner import to_input
from utils.core import distributed as dist
from utils.core.contracts import Batch, Loss, Raw
from utils.core.errors import UserError
from utils.core.files import atomic_path
from utils.core.host_targets import with_targets
from utils.core.interrupt import Interrupt
from utils.core.log import LOGGER, bar_format, progress
from utils.core.seed import generator
from utils.core.train_settings import TrainSettings
from utils.engine.parameter_groups import learning_rates
from utils.engine.profiler import Phase
from utils.engine.progress_text import progress_losses, progress_prefix
from utils.engine.run import Run, TrainState

_SIZE_STREAM = 2000  # random stream of --multi-scale
_PROGRESS_INTERVAL = 10  # batches between updates of the progress text


class RunInterruptedError(Exception):
    """The user interrupted the run, and its state has been saved."""


class _TimedLoader:
    """Iterator that accumulates the time spent waiting for data."""

    def __init__(self, batches: Iterator[Batch], phase: Phase) -> None:
        self._batches, self._phase, self.seconds = batches, phase, 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            start = time.perf_counter()
            with self._phase("data"):
                batch = next(self._batches, None)
            if batch is None:
                return
            self.seconds += time.perf_counter() - start
            yield batch


def train_one_epoch(run: Run, interrupt: Interrupt, save_last: Callable[[], None]) -> dict[str, float]:
    """Train the remaining batches of the current epoch.

    Args:
        run: The run; its state is advanced batch by batch.
        interrupt: Request of the user to stop.
        save_last: Writes a resumable checkpoint. Called at the first optimizer step after every `save_steps` batches
            and after an interrupt, because no gradients are accumulated then.

    Returns:
        Mean of each loss term (`train/detect/box`), learning rates (`lr/0`) and times in seconds (`time/epoch`).

    Raises:
        RunInterruptedError: After an interrupted run has been saved.
    """
    state, settings, loader = run.state, run.settings, run.train_loader
    set_train_mode(run.model, settings.freeze_bn)
    run.optimizer.zero_grad(set_to_none=True)
    weights = None
    if settings.image_weights:
        weights = _image_weights(loader.class_counts, loader.labels, state.class_scores)
    timed = _TimedLoader(loader.epoch(state.epoch, state.step, weights), run.phase)
    start, save_due = time.perf_counter(), False
    sums: Tensor | None = None
    names: list[str] = []
    prefix = progress_prefix(state, settings.epochs, run.device)
    bar = progress(iter(timed), total=loader.num_batches, text=prefix, unit="batch")
    bar.update(state.step)
    for batch in bar:
        run.schedule.apply(run.optimizer, state.epoch, state.global_step)
        terms = forward_backward(run, batch)
        names = list(terms)
        values = torch.stack([value.detach().float() for value in terms.values()])
        sums = values if sums is None else sums + values
        updated = update_weights(run, batch)
        state.step += 1
        state.global_step += 1
        if run.loggers.wants_batches:
            _log_batch(run, names, values)
        save_due |= settings.save_steps > 0 and state.global_step % settings.save_steps == 0
        stop = updated and any_rank_interrupted(interrupt, run.device)
        if updated and (save_due or stop):
            _add_loss_sums(state, names, sums)
            sums, save_due = None, False
            save_last()
        if stop:
            raise RunInterruptedError
        if state.step % _PROGRESS_INTERVAL == 0 or state.step == loader.num_batches:
            prefix = progress_prefix(state, settings.epochs, run.device)
            text = prefix + progress_losses(state, names, sums, batch)
            bar.bar_format = bar_format(len(text))
            bar.set_description_str(text, refresh=False)
    seconds = time.perf_counter() - start
    _add_loss_sums(state, names, sums)
    means = {f"train/{name}": value / max(state.step, 1) for name, value in state.loss_sums.items()}
    return means | learning_rates(run.optimizer) | {"time/epoch": seconds, "time/loader": timed.seconds}


def set_train_mode(model: nn.Module, freeze_bn: bool) -> None:
    """Set a model to training mode; with `freeze_bn` its BatchNorm layers keep their statistics."""
    model.train()
    if freeze_bn:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def forward_backward(run: Run, batch: Batch) -> dict[str, Tensor]:
    """Accumulate the gradients of one batch.

    Returns:
        Loss terms by `head/term`: the contribution of this rank to the mean over the images of all ranks.
    """
    image_hw = (batch.images.shape[2], batch.images.shape[3])
    input_hw = random_input_hw(image_hw, run.settings, run.network.stride, run.state.epoch, run.state.step)
    with run.phase("transfer"):
        batch = with_targets(batch, run.losses, input_hw).to(run.device)
        images = to_input(batch.images, run.device)
        if input_hw != image_hw:
            images = interpolate(images, size=input_hw, mode="bilinear", align_corners=False)
    autocast = torch.autocast(run.device.type, dtype=run.mixed, enabled=run.mixed is not None)
    # DDP sums gradients over ranks only in the last of the accumulated batches
    local = dist.world_size() > 1 and not _is_update_due(run)
    with run.model.no_sync() if local else nullcontext():  # type: ignore[operator]
        with run.phase("forward"), run.counters.paused(), autocast:
            raw = run.model(images)
        with run.phase("loss"):
            total, terms = compute_losses(run.losses, run.gains, raw, batch)
        with run.phase("backward"):
            # each rank has its part of the global mean, and DDP averages gradients over ranks
            run.scaler.scale(total * dist.world_size()).backward()
    return terms


def compute_losses(
    losses: Mapping[str, Loss], gains: Mapping[str, float], raw: Mapping[str, Raw], batch: Batch
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the losses of all heads.

    Args:
        losses: Losses by head name.
        gains: Loss weights by head name, default 1.
        raw: Raw outputs by head name.
        batch: Labels of this rank.

    Returns:
        The weighted sum of all terms, and the terms by `head/term`.
    """
    total = torch.zeros((), device=batch.images.device)
    terms: dict[str, Tensor] = {}
    labelled = [total + batch.num_labelled(loss.labels) for loss in losses.values()]
    labelled_on_all_ranks = dist.sum_over_ranks(torch.stack(labelled))
    for index, (head, loss) in enumerate(losses.items()):
        head_terms = loss(raw[head], batch)
        weight = gains.get(head, 1.0) * (labelled_on_all_ranks[index] if loss.per_image else 1)
        total = total + torch.stack(list(head_terms.values())).sum() * weight
        terms |= {f"{head}/{name}": value for name, value in head_terms.items()}
    return total, terms


def random_input_hw(
    image_hw: tuple[int, int], settings: TrainSettings, stride: int, epoch: int, step: int
) -> tuple[int, int]:
    """Choose the size of the network's input for this step (`--multi-scale`), the same on every rank.

    Args:
        image_hw: Height and width of the images of the batch.
        settings: Options `multi_scale`, `resize_rate`, `imgsz` and `seed`.
        stride: Stride of the network.
        epoch: Index of the epoch.
        step: Index of the batch in the epoch.

    Returns:
        Height and width, the longer between 0.5 and 1.5 times the image size, or a listed size.
    """
    if not settings.multi_scale:
        return image_hw
    stride, size = max(stride, 32), settings.imgsz[0]
    first = step // settings.resize_rate * settings.resize_rate  # first of the batches with a common size
    rng = generator(settings.seed, epoch, first, stream=_SIZE_STREAM)
    if isinstance(settings.multi_scale, tuple):
        target = int(settings.multi_scale[rng.integers(len(settings.multi_scale))])
    else:
        target = int(rng.integers(int(size * 0.5), int(size * 1.5) + stride)) // stride * stride
    # at least two cells, because BatchNorm cannot normalise a single image of one cell
    ratio = max(target, 2 * stride) / max(image_hw)
    if ratio == 1:
        return image_hw
    height, width = (math.ceil(side * ratio / stride) * stride for side in image_hw)
    return height, width


def update_weights(run: Run, batch: Batch) -> bool:
    """Make an optimizer step and update the EMA if enough batches are accumulated.

    A step with non-finite gradients is skipped. Returns whether gradients were consumed, so that none are pending.
    """
    if not _is_update_due(run):
        return False
    with run.phase("optimizer"):
        run.guard.step()
        _check_bad_steps(run, batch)
    with run.phase("ema"):
        run.ema.update()
    run.state.last_update = run.state.global_step
    return True


def _is_update_due(run: Run) -> bool:
    """Check whether the current batch is the last of those that are accumulated for one optimizer step."""
    step = run.state.global_step
    return step - run.state.last_update >= run.schedule.accumulate(step)


def _check_bad_steps(run: Run, batch: Batch) -> None:
    """Report skipped steps: save a batch at the first one, abort the run after too many."""
    before, run.state.bad_steps = run.state.bad_steps, run.guard.bad_steps
    if before == 0 < run.state.bad_steps and dist.is_main():
        path = run.folder / "not_finite_batch.pt"
        with atomic_path(path) as temporary:
            paths = [info.path for info in batch.info]
            torch.save({"images": batch.images.cpu(), "boxes": batch.boxes.cpu(), "paths": paths}, temporary)
        if run.scaler.is_enabled():
            LOGGER.info("non-finite gradients at the current loss scale; step skipped, the scale is reduced")
        else:
            LOGGER.warning(f"epoch {run.state.epoch + 1}: non-finite gradients; step skipped, batch saved to {path}")
    if run.guard.failed:
        raise UserError(
            f"{run.folder}: {run.state.bad_steps} steps had non-finite gradients; "
            "lower lr0 in the hyp file, or train with --amp fp32"
        )


def _log_batch(run: Run, names: Sequence[str], values: Tensor) -> None:
    metrics = {f"train/{name}": value * dist.world_size() for name, value in zip(names, values.tolist(), strict=True)}
    run.loggers.batch(run.state.global_step, metrics)


def any_rank_interrupted(interrupt: Interrupt, device: torch.device) -> bool:
    """Check whether any rank was interrupted, so that all leave at the same step."""
    if dist.world_size() == 1:
        return interrupt.requested
    return bool(dist.sum_over_ranks(torch.tensor(float(interrupt.requested), device=device)))


def _add_loss_sums(state: TrainState, names: Sequence[str], sums: Tensor | None) -> None:
    """Add the loss sums of all ranks to the state, so that checkpoints contain them."""
    if sums is None:
        return
    for name, value in zip(names, dist.sum_over_ranks(sums).tolist(), strict=True):
        state.loss_sums[name] = state.loss_sums.get(name, 0.0) + value


def _image_weights(class_counts: np.ndarray, labels: Sequence[np.ndarray], class_scores: Sequence[float]) -> Any:
    """Compute a sampling weight per image that favours rare and badly detected classes (`--image-weights`)."""
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    classes = len(counts)
    inverse = 1 / counts.clamp(min=1)
    scores = torch.tensor(class_scores or [0.0] * classes, dtype=torch.float64)
    weights = inverse / inverse.sum() * classes * (1 - scores) ** 2 / classes
    per_image = [weights[torch.as_tensor(image_labels[:, 0]).long()].sum() for image_labels in labels]
    return torch.stack(per_image).numpy()
