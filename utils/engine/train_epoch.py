"""One pass over the training images."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from models.network_runner import to_input
from utils.core import distributed as dist
from utils.core.contracts import Batch, Raw
from utils.core.errors import UserError
from utils.core.files import atomic_path
from utils.core.interrupt import Interrupt
from utils.core.log import LOGGER, progress
from utils.core.seed import generator
from utils.core.timing import duration
from utils.engine.parameter_groups import clip_gradients
from utils.engine.profiler import Phase
from utils.engine.run import Run

MAX_BAD_STEPS = 20  # updates in one run that may be left out before the run is given up
_SIZES = 2000  # stream of the random numbers that draw image sizes


class RunInterruptedError(Exception):
    """The user asked to stop, and the run has been saved."""


class _Timed:
    """Iterate, adding up the seconds spent waiting for the next item."""

    def __init__(self, items: Iterator[Any], phase: Phase) -> None:
        self._items, self._phase, self.seconds = items, phase, 0.0

    def __iter__(self) -> Iterator[Any]:
        while True:
            start = time.perf_counter()
            with self._phase("data"):
                item = next(self._items, None)
            if item is None:
                return
            self.seconds += time.perf_counter() - start
            yield item


def train_one_epoch(run: Run, interrupt: Interrupt, save_last: Any) -> dict[str, float]:
    """Train the rest of the current epoch; return the mean of every loss term, rates and seconds.

    `save_last()` is called at the first update after every `save_steps` batches, and when `interrupt` is requested;
    then RunInterruptedError follows. Updates are the only moments when no gradient is pending.
    """
    state, settings = run.state, run.settings
    _set_modes(run)
    run.optimizer.zero_grad(set_to_none=True)
    waiting = _Timed(run.train_loader.epoch(state.epoch, state.step, _image_weights(run)), run.phase)
    start, save_due = time.perf_counter(), False
    sums: Tensor | None = None
    names: list[str] = []
    bar = progress(iter(waiting), total=run.train_loader.num_batches, text=_title(run), unit="batch")
    bar.update(state.step)
    for batch in bar:
        run.schedule.apply(run.optimizer, state.epoch, state.global_step)
        terms = _forward_backward(run, batch)
        names = list(terms)
        values = torch.stack([value.detach().float() for value in terms.values()])
        sums = values if sums is None else sums + values
        updated = _maybe_update(run, batch)
        state.step += 1
        state.global_step += 1
        if run.loggers.wants_batches:
            _tell_batch(run, names, values)
        save_due |= settings.save_steps > 0 and state.global_step % settings.save_steps == 0
        stop = updated and _asked_to_stop(run, interrupt)
        if updated and (save_due or stop):
            _bank(run, names, sums)
            sums, save_due = None, False
            save_last()
        if stop:
            raise RunInterruptedError
        if state.step % 10 == 0 or state.step == run.train_loader.num_batches:
            bar.set_description_str(_title(run, names, sums, batch), refresh=False)
    seconds = time.perf_counter() - start
    _bank(run, names, sums)
    means = {f"train/{name}": value / max(state.step, 1) for name, value in state.loss_sums.items()}
    return means | _rates(run) | {"time/epoch": seconds, "time/loader": waiting.seconds}


def _tell_batch(run: Run, names: list[str], values: Tensor) -> None:
    numbers = {f"train/{name}": value * dist.world_size() for name, value in zip(names, values.tolist(), strict=True)}
    run.loggers.batch(run.state.global_step, numbers)


def _asked_to_stop(run: Run, interrupt: Interrupt) -> bool:
    """Tell whether any rank was asked to stop: all must leave at the same step."""
    if dist.world_size() == 1:
        return interrupt.requested
    return bool(dist.sum_over_ranks(torch.tensor(float(interrupt.requested), device=run.device)))


def _set_modes(run: Run) -> None:
    run.model.train()
    if run.settings.freeze_bn:
        for module in run.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _bank(run: Run, names: list[str], sums: Tensor | None) -> None:
    """Add this rank's loss sums, joined over ranks, to the state; a checkpoint then knows them."""
    if sums is None:
        return
    for name, value in zip(names, dist.sum_over_ranks(sums).tolist(), strict=True):
        run.state.loss_sums[name] = run.state.loss_sums.get(name, 0.0) + value


def _forward_backward(run: Run, batch: Batch) -> dict[str, Tensor]:
    """Add the gradient of one batch; return its loss terms by `head/term` (this rank's share of the global mean)."""
    with run.phase("transfer"):
        batch = batch.to(run.device)
        images = _resized(run, to_input(batch.images, run.device))
    with run.phase("forward"), torch.autocast(run.device.type, dtype=run.mixed, enabled=run.mixed is not None):
        raw = run.model(images)
    with run.phase("loss"):
        total, terms = _losses(run, raw, batch)
    # terms are this rank's share of the mean over all ranks' images (contracts.Loss), and DDP averages gradients
    with run.phase("backward"):
        run.scaler.scale(total * dist.world_size()).backward()
    return terms


def _losses(run: Run, raw: dict[str, Raw], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of all losses, and their terms by `head/term`."""
    total = torch.zeros((), device=run.device)
    terms: dict[str, Tensor] = {}
    labelled = [total + batch.num_labelled(loss.labels) for loss in run.losses.values()]
    images_of_all = dist.sum_over_ranks(torch.stack(labelled))
    for index, (head, loss) in enumerate(run.losses.items()):
        found = loss(raw[head], batch)
        weight = run.gains.get(head, 1.0) * (images_of_all[index] if loss.per_image else 1)
        total = total + torch.stack(list(found.values())).sum() * weight
        terms |= {f"{head}/{name}": value for name, value in found.items()}
    return total, terms


def _resized(run: Run, images: Tensor) -> Tensor:
    """Return the images at this step's size (`--multi-scale`, behaviour.md 3.9), the same on every rank."""
    settings = run.settings
    if not settings.multi_scale:
        return images
    stride, size = max(run.network.stride, 32), settings.imgsz[0]
    first = run.state.step // settings.resize_rate * settings.resize_rate  # of the batches that share a size
    rng = generator(settings.seed, run.state.epoch, first, stream=_SIZES)
    if isinstance(settings.multi_scale, tuple):
        wanted = int(settings.multi_scale[rng.integers(len(settings.multi_scale))])
    else:
        wanted = int(rng.integers(int(size * 0.5), int(size * 1.5) + stride)) // stride * stride
    # two cells at least: BatchNorm cannot normalise a single image of one cell
    ratio = max(wanted, 2 * stride) / max(images.shape[2:])
    if ratio == 1:
        return images
    shape = [math.ceil(side * ratio / stride) * stride for side in images.shape[2:]]
    return interpolate(images, size=shape, mode="bilinear", align_corners=False)


def _maybe_update(run: Run, batch: Batch) -> bool:
    """Make an optimizer step if enough batches have been gathered; tell whether none is pending."""
    state = run.state
    if state.global_step - state.last_update < run.schedule.accumulate(state.global_step):
        return False
    with run.phase("optimizer"):
        _step(run, batch)
    with run.phase("ema"):
        run.ema.update()
    state.last_update = state.global_step
    return True


def _step(run: Run, batch: Batch) -> None:
    """Move the weights, unless a gradient is not finite."""
    run.scaler.unscale_(run.optimizer)
    norm = clip_gradients(parameter for group in run.optimizer.param_groups for parameter in group["params"])
    if run.scaler.is_enabled() or bool(torch.isfinite(norm)):  # the scaler leaves out such steps by itself
        run.scaler.step(run.optimizer)
    else:
        _report_bad(run, batch)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)


def _report_bad(run: Run, batch: Batch) -> None:
    """Count an update that was left out; keep its last batch for a look, once."""
    state = run.state
    state.bad_steps += 1
    if state.bad_steps == 1 and dist.is_main():
        path = run.folder / "not_finite_batch.pt"
        with atomic_path(path) as temporary:
            paths = [info.path for info in batch.info]
            torch.save({"images": batch.images.cpu(), "boxes": batch.boxes.cpu(), "paths": paths}, temporary)
        LOGGER.warning(f"epoch {state.epoch + 1}: a gradient is not finite; update left out, batch saved to {path}")
    if state.bad_steps > MAX_BAD_STEPS:
        raise UserError(
            f"{run.folder}: {state.bad_steps} updates had gradients that are not finite; "
            "lower lr0 in the hyp file, or train with --amp fp32"
        )


def _image_weights(run: Run) -> Any:
    """Return one weight per image by class frequency and accuracy (`--image-weights`), None without the option."""
    if not run.settings.image_weights:
        return None
    counts = torch.as_tensor(run.train_loader.class_counts, dtype=torch.float64)
    classes = len(counts)
    inverse = 1 / counts.clamp(min=1)
    scores = torch.tensor(run.state.class_scores or [0.0] * classes, dtype=torch.float64)
    weights = inverse / inverse.sum() * classes * (1 - scores) ** 2 / classes
    per_image = [weights[torch.as_tensor(labels[:, 0]).long()].sum() for labels in run.train_loader.labels]
    return torch.stack(per_image).numpy()


def _rates(run: Run) -> dict[str, float]:
    """Return the learning rate of every role (biases, weights, norms), in the order of results.csv.

    Where layers learn at rates of their own, it is the highest.
    """
    rates: dict[str, float] = {}
    for group in run.optimizer.param_groups:
        rates[group["role"]] = max(rates.get(group["role"], 0.0), group["lr"])
    return {f"lr/{index}": rate for index, rate in enumerate(rates.values())}


def _title(run: Run, names: list[str] | None = None, sums: Tensor | None = None, batch: Batch | None = None) -> str:
    """Return the text before the progress bar, in the columns of `header`."""
    place = f"{run.state.epoch + 1}/{run.settings.epochs}"
    memory = torch.cuda.memory_reserved() / 2**30 if run.device.type == "cuda" else 0.0
    text = f"{place:>10}" + (f"{memory:9.3g}G" if memory else f"{'-':>10}")
    if not names or sums is None or batch is None:
        return text
    world = dist.world_size()
    totals = {
        name: run.state.loss_sums.get(name, 0.0) + value * world
        for name, value in zip(names, sums.tolist(), strict=True)
    }
    means = "".join(f"{value / max(run.state.step, 1):12.4g}" for value in totals.values())
    return f"{text}{means}{batch.instances:11d}{batch.images.shape[-1]:7d}"


def header(run: Run, names: list[str]) -> str:
    """Return the line above the progress bars."""
    losses = "".join(f"{name.split('/')[-1] + '_loss':>12}" for name in names)
    return f"{'Epoch':>10}{'GPU_mem':>10}{losses}{'Instances':>11}{'Size':>7}"


def bottleneck(numbers: dict[str, float]) -> str:
    """Return how the epoch's time was spent and what to speed up first."""
    total, waiting = numbers["time/epoch"], numbers["time/loader"]
    who = "the data loader is the bottleneck" if waiting > 0.3 * total else "the network is the bottleneck"
    return f"{duration(total)}: {duration(waiting)} waiting for data, {duration(total - waiting)} computing; {who}"
