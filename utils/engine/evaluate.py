"""Scoring: every head of a runner on every image of a split, shared between the ranks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from utils.core import distributed as dist
from utils.core.contracts import Batch, EvalSettings, Loader, Outputs, Results, Runner, Scores
from utils.core.log import LOGGER, progress
from utils.core.timing import Stopwatch
from utils.metrics import EVALUATORS
from utils.postprocess import POSTPROCESS

MANY_CLASSES = 50  # so many are printed only on request


@dataclass
class Report:
    """What one scoring found. `numbers` are flat, with the head's name before each."""

    metrics: dict[str, float]
    scores: dict[str, Scores]
    milliseconds: dict[str, float]  # per image: preprocess, inference, postprocess
    images: int = 0
    last_step: str = "post-process"  # what the third of the times is called

    def joined(self, other: Report) -> Report:
        """Return what both found; times are those of the images of either, on the average."""
        images = max(self.images + other.images, 1)
        times = {
            name: (value * self.images + other.milliseconds[name] * other.images) / images
            for name, value in self.milliseconds.items()
        }
        return Report(self.metrics | other.metrics, self.scores | other.scores, times, images, self.last_step)


@dataclass
class _Sums:
    """Loss terms and times of this rank."""

    losses: dict[str, float] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)  # that the losses were added up over
    images: int = 0
    cut: int = 0  # images whose candidates were capped

    def add_losses(self, losses: Mapping[str, Any], outputs: Outputs, batch: Batch) -> None:
        for head, loss in losses.items():
            for term, value in loss(outputs.raw[head], batch).items():
                name = f"val/{head}/{term}"
                self.losses[name] = self.losses.get(name, 0.0) + float(value)
                self.batches[name] = self.batches.get(name, 0) + 1


@dataclass
class _Scoring:
    """How the images of all parts are scored, and what has been found so far."""

    runner: Runner
    device: torch.device
    posts: dict[str, Any]
    evaluators: dict[str, Any]
    losses: Mapping[str, Any]
    sums: _Sums
    watches: Mapping[str, Stopwatch]
    alter: Callable[[Outputs, Batch], None] | None

    def batch(self, batch: Batch, heads: Collection[str]) -> list[Results]:
        """Run one batch and score `heads` on it."""
        with self.watches["preprocess"]:
            moved = batch.to(self.device)
        with self.watches["inference"]:
            outputs = self.runner.run(moved.images)
        if self.losses and outputs.raw:
            with torch.inference_mode():
                self.sums.add_losses({n: loss for n, loss in self.losses.items() if n in heads}, outputs, moved)
        if self.alter is not None:
            self.alter(outputs, moved)
        with self.watches["postprocess"]:
            results = [Results(info) for info in batch.info]
            for name in heads:
                self.posts[name](outputs.decoded[name], results)
            results = [result.cpu() for result in results]
        for name in heads:
            self.evaluators[name].update(results, batch)
        self.sums.images += len(batch)
        self.sums.cut += sum(result.candidates_cut for result in results)
        return results


def evaluate(
    runner: Runner,
    loader: Loader,
    settings: EvalSettings,
    device: torch.device,
    losses: Mapping[str, Any] | None = None,
    on_batch: Callable[[Batch, list[Results]], None] | None = None,
    alter: Callable[[Outputs, Batch], None] | None = None,
    without: Collection[str] = (),
) -> Report:
    """Run `runner` over `loader` and score every head that it has labels for, but for those in `without`.

    `losses` are evaluated on raw outputs if the runner has them. `on_batch` sees every batch with its results (in
    pixels of the original images); `alter` may change outputs before post-processing. All ranks must call this; all
    get the same report.
    """
    plans = []
    for part in loader.parts:
        heads = [name for name in runner.specs if name not in without and (name in part.heads or not part.heads)]
        if heads:
            plans.append((part, heads))
    scored = {name: spec for name, spec in runner.specs.items() if any(name in heads for _, heads in plans)}
    scoring = _Scoring(
        runner,
        device,
        {name: POSTPROCESS.get(name)(spec, settings) for name, spec in scored.items()},
        {name: EVALUATORS.get(name)(spec, settings) for name, spec in scored.items()},
        losses or {},
        _Sums(),
        {name: Stopwatch(device) for name in ("preprocess", "inference", "postprocess")},
        alter,
    )
    for loss in scoring.losses.values():
        loss.eval()
    for part, heads in plans:
        text = "validating" if len(plans) == 1 else f"validating {', '.join(heads)}"
        for batch in progress(part.epoch(0), total=part.num_batches, text=text):
            results = scoring.batch(batch, heads)
            if on_batch is not None:
                on_batch(batch, results)
    for loss in scoring.losses.values():
        loss.train()
    report = _report(scoring.sums, scoring.watches, {n: one.compute() for n, one in scoring.evaluators.items()})
    return replace(report, last_step=last_step(runner))


def last_step(runner: Runner) -> str:
    """Return what speed lines call the time after the network: NMS where boxes are found (behaviour.md 5.3, 6.7)."""
    return "NMS" if any(spec.strides for spec in runner.specs.values()) else "post-process"


def _report(sums: _Sums, watches: Mapping[str, Stopwatch], scores: dict[str, Scores]) -> Report:
    """Join the ranks' sums and flatten the scores."""
    gathered = dist.gather((sums, {name: watch.seconds for name, watch in watches.items()}))
    images = sum(part.images for part, _ in gathered)
    numbers: dict[str, float] = {}
    for head, score in scores.items():
        numbers |= {key if key.startswith("coco/") else f"{head}/{key}": v for key, v in score.metrics.items()}
    for name in dict.fromkeys(name for part, _ in gathered for name in part.losses):
        batches = sum(part.batches.get(name, 0) for part, _ in gathered)
        numbers[name] = sum(part.losses.get(name, 0.0) for part, _ in gathered) / batches
    if cut := sum(part.cut for part, _ in gathered):
        LOGGER.warning(f"{cut} image(s) had more candidate boxes than suppression takes; the least certain were cut")
    times = {name: sum(seconds[name] for _, seconds in gathered) * 1000 / max(images, 1) for name in watches}
    return Report(numbers, scores, times, images)


def table(scores: Scores, verbose: bool) -> str:
    """Return the printed table: a row for all, then one per class if `verbose` (behaviour.md 6.2); the remark."""
    lines = [("%22s" + "%11s" * len(scores.columns)) % ("Class", *scores.columns)]
    for name, row in scores.rows if verbose else scores.rows[:1]:
        cells = "".join(
            f"{row[column]:11d}" if isinstance(row[column], int) else f"{row[column]:11.3g}"
            for column in scores.columns
        )
        lines.append(f"{name[:22]:>22}{cells}")
    return "\n".join([*lines, scores.note] if scores.note else lines)


def speed_line(report: Report, shape: tuple[int, ...]) -> str:
    """Return the line about milliseconds per image."""
    times = report.milliseconds
    return (
        f"Speed: {times['preprocess']:.1f} ms pre-process, {times['inference']:.1f} ms inference, "
        f"{times['postprocess']:.1f} ms {report.last_step} per image at shape {shape}"
    )


def coco_line(numbers: dict[str, float]) -> str:
    """Return COCO's numbers as one line, "" if there are none."""
    found = {name.removeprefix("coco/"): value for name, value in numbers.items() if name.startswith("coco/")}
    return f"COCO: {', '.join(f'{name} {value:.3f}' for name, value in found.items())}" if found else ""
