"""Scoring: every head of a runner on every image of a split, shared between the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from utils.core import dist
from utils.core.contracts import Batch, EvalSettings, Loader, Outputs, Results, Runner, Scores
from utils.core.log import LOGGER, progress
from utils.core.timing import Stopwatch
from utils.metrics import EVALUATORS
from utils.postprocess import POSTPROCESS

MANY_CLASSES = 50  # so many are printed only on request


@dataclass
class Report:
    """What one scoring found. `numbers` are flat, with the head's name before each."""

    numbers: dict[str, float]
    scores: dict[str, Scores]
    milliseconds: dict[str, float]  # per image: preprocess, inference, postprocess
    images: int = 0
    last_step: str = "post-process"  # what the third of the times is called


@dataclass
class _Sums:
    """Loss terms and times of this rank."""

    losses: dict[str, float] = field(default_factory=dict)
    batches: int = 0
    images: int = 0
    cut: int = 0  # images whose candidates were capped

    def add_losses(self, losses: Mapping[str, Any], outputs: Outputs, batch: Batch) -> None:
        for head, loss in losses.items():
            for term, value in loss(outputs.raw[head], batch).items():
                name = f"val/{head}/{term}"
                self.losses[name] = self.losses.get(name, 0.0) + float(value)


def evaluate(
    runner: Runner,
    loader: Loader,
    settings: EvalSettings,
    device: torch.device,
    losses: Mapping[str, Any] | None = None,
    on_batch: Callable[[Batch, list[Results]], None] | None = None,
    alter: Callable[[Outputs, Batch], None] | None = None,
    text: str = "validating",
) -> Report:
    """Run `runner` over `loader` and score every head that has an evaluator.

    `losses` are evaluated on raw outputs if the runner has them. `on_batch` sees every batch with its results (in
    pixels of the original images); `alter` may change outputs before post-processing. All ranks must call this; all
    get the same report.
    """
    posts = {name: POSTPROCESS.get(name)(spec, settings) for name, spec in runner.specs.items()}
    evaluators = {name: EVALUATORS.get(name)(spec, settings) for name, spec in runner.specs.items()}
    sums, watches = _Sums(), {name: Stopwatch(device) for name in ("preprocess", "inference", "postprocess")}
    for loss in (losses or {}).values():
        loss.eval()
    bar = progress(loader.epoch(0), total=loader.num_batches, text=text)
    for batch in bar:
        with watches["preprocess"]:
            moved = batch.to(device)
        with watches["inference"]:
            outputs = runner.run(moved.images)
        if losses and outputs.raw:
            with torch.inference_mode():
                sums.add_losses(losses, outputs, moved)
        if alter is not None:
            alter(outputs, moved)
        with watches["postprocess"]:
            results = [Results(info) for info in batch.info]
            for name, post in posts.items():
                post(outputs.decoded[name], results)
            results = [result.cpu() for result in results]
        for evaluator in evaluators.values():
            evaluator.update(results, batch)
        if on_batch is not None:
            on_batch(batch, results)
        sums.batches, sums.images = sums.batches + 1, sums.images + len(batch)
        sums.cut += sum(result.candidates_cut for result in results)
    for loss in (losses or {}).values():
        loss.train()
    report = _report(sums, watches, {name: evaluator.compute() for name, evaluator in evaluators.items()})
    return replace(report, last_step=last_step(runner))


def last_step(runner: Runner) -> str:
    """Return what speed lines call the time after the network: NMS where boxes are found (behaviour.md 5.3, 6.7)."""
    return "NMS" if any(spec.strides for spec in runner.specs.values()) else "post-process"


def _report(sums: _Sums, watches: Mapping[str, Stopwatch], scores: dict[str, Scores]) -> Report:
    """Join the ranks' sums and flatten the scores."""
    gathered = dist.gather((sums, {name: watch.seconds for name, watch in watches.items()}))
    batches = max(sum(part.batches for part, _ in gathered), 1)
    images = sum(part.images for part, _ in gathered)
    numbers: dict[str, float] = {}
    for head, score in scores.items():
        numbers |= {key if key.startswith("coco/") else f"{head}/{key}": v for key, v in score.numbers.items()}
    for name in dict.fromkeys(name for part, _ in gathered for name in part.losses):
        numbers[name] = sum(part.losses.get(name, 0.0) for part, _ in gathered) / batches
    if cut := sum(part.cut for part, _ in gathered):
        LOGGER.warning(f"{cut} image(s) had more candidate boxes than suppression takes; the least certain were cut")
    times = {name: sum(seconds[name] for _, seconds in gathered) * 1000 / max(images, 1) for name in watches}
    return Report(numbers, scores, times, images)


def table(scores: Scores, verbose: bool) -> str:
    """Return the printed table: a row for all, then one per class if `verbose` (behaviour.md 6.2)."""
    lines = [("%22s" + "%11s" * len(scores.columns)) % ("Class", *scores.columns)]
    for name, row in scores.rows if verbose else scores.rows[:1]:
        cells = "".join(
            f"{row[column]:11d}" if isinstance(row[column], int) else f"{row[column]:11.3g}"
            for column in scores.columns
        )
        lines.append(f"{name[:22]:>22}{cells}")
    return "\n".join(lines)


def speed_line(report: Report, shape: tuple[int, ...]) -> str:
    """Return the line about milliseconds per image."""
    times = report.milliseconds
    return (
        f"Speed: {times['preprocess']:.1f} ms pre-process, {times['inference']:.1f} ms inference, "
        f"{times['postprocess']:.1f} ms {report.last_step} per image at shape {shape}"
    )
