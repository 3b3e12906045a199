"""Evaluate all heads of a network on the images of a split, distributed over the ranks."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from utils.core import distributed as dist
from utils.core.contracts import (
    IGNORED_PIXEL,
    Batch,
    EvalSettings,
    Evaluator,
    HeadSpec,
    Loader,
    Loss,
    Outputs,
    PostProcess,
    Raw,
    Results,
    Runner,
    Scores,
)
from utils.core.host_targets import with_targets
from utils.core.log import LOGGER, MAX_COLUMNS, progress
from utils.core.timing import Stopwatch
from utils.metrics import EVALUATORS
from utils.postprocess import POSTPROCESS

_NARROWEST_CELL = 5  # columns of a number with three significant digits
MANY_CLASSES = 50  # from this number on, rows per class are printed on request only


@dataclass
class Report:
    """Result of an evaluation. Metric names start with the head: `detect/map50`."""

    metrics: dict[str, float]
    scores: dict[str, Scores]  # by head name
    milliseconds: dict[str, float]  # per image: preprocess, inference, postprocess
    images: int = 0
    last_step: str = "post-process"  # name of the step after the network in log lines

    def merged(self, other: Report) -> Report:
        """Combine two reports on different heads; times are averaged over the images of both."""
        images = max(self.images + other.images, 1)
        times = {
            name: (value * self.images + other.milliseconds[name] * other.images) / images
            for name, value in self.milliseconds.items()
        }
        return Report(self.metrics | other.metrics, self.scores | other.scores, times, images, self.last_step)


@dataclass
class _Totals:
    """Sums over the batches of this rank."""

    losses: dict[str, float] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)  # number of batches in each loss sum
    images: int = 0
    truncated: int = 0  # images with more NMS candidates than the limit

    def add_losses(self, terms: Sequence[tuple[str, Tensor]]) -> None:
        """Add the terms of all batches by name; reads them from the device at once."""
        values = torch.stack([value for _, value in terms]).tolist() if terms else []
        for (name, _), value in zip(terms, values, strict=True):
            self.losses[name] = self.losses.get(name, 0.0) + value
            self.batches[name] = self.batches.get(name, 0) + 1


def _labelled_parts(raw: Raw, batch: Batch, labels: str) -> Iterator[tuple[Raw, Batch]]:
    """Divide a batch into images where their semantic maps have different sizes."""
    if labels != "semantic" or batch.panoptic is None:
        yield raw, batch
        return
    for row, found in enumerate(batch.panoptic):
        semantic = torch.from_numpy(found.semantic(IGNORED_PIXEL))[None].to(batch.images.device)
        images, info = batch.images[row : row + 1], batch.info[row : row + 1]
        one = Batch(images, batch.boxes[:0], info, semantic=semantic)
        yield {name: tensor[row : row + 1] for name, tensor in raw.items()}, one


@dataclass
class _Evaluation:
    """Parts of an evaluation and its totals."""

    runner: Runner
    device: torch.device
    post_processors: dict[str, PostProcess]
    evaluators: dict[str, Evaluator]
    losses: Mapping[str, Loss]
    totals: _Totals
    watches: Mapping[str, Stopwatch]
    modify_outputs: Callable[[Outputs, Batch], None] | None
    merged: dict[str, PostProcess] = field(default_factory=dict)  # of results that several heads contribute to
    loss_terms: list[tuple[str, Tensor]] = field(default_factory=list)  # of all batches, on the device

    def process(self, batch: Batch, heads: Collection[str]) -> list[Results]:
        """Run one batch and update the evaluators of `heads`."""
        with self.watches["preprocess"]:
            if self.losses:
                losses = {name: loss for name, loss in self.losses.items() if name in heads}
                batch = with_targets(batch, losses, (batch.images.shape[2], batch.images.shape[3]))
            moved = batch.to(self.device)
        with self.watches["inference"]:
            outputs = self.runner.run(moved.images)
        if self.losses and outputs.raw:
            self._compute_losses(outputs, moved, heads)
        if self.modify_outputs is not None:
            self.modify_outputs(outputs, moved)
        with self.watches["postprocess"]:
            results = [Results(info) for info in batch.info]
            for name in heads:
                self.post_processors[name](outputs.decoded[name], results)
            if self.merged:  # on the host
                results = [result.cpu() for result in results]
            for merge in self.merged.values():
                merge({}, results)
        # labels of pixels are compared where the predictions are, all others on the host
        labels = batch if self.merged else replace(batch, masks=moved.masks, semantic=moved.semantic)
        for name in (*heads, *self.merged):
            self.evaluators[name].update(results, labels)
        self.totals.images += len(batch)
        self.totals.truncated += sum(result.candidates_cut for result in results)
        return results

    @torch.inference_mode()
    def _compute_losses(self, outputs: Outputs, batch: Batch, heads: Collection[str]) -> None:
        """Compute the losses of `heads` without waiting for the device."""
        for head, loss in self.losses.items():
            if head in heads:
                for raw, part in _labelled_parts(outputs.raw[head], batch, loss.labels):
                    terms = loss(raw, part)
                    self.loss_terms += [(f"val/{head}/{term}", value) for term, value in terms.items()]


def evaluate(
    runner: Runner,
    loader: Loader,
    settings: EvalSettings,
    device: torch.device,
    losses: Mapping[str, Loss] | None = None,
    on_batch: Callable[[Batch, list[Results]], None] | None = None,
    modify_outputs: Callable[[Outputs, Batch], None] | None = None,
    skip_heads: Collection[str] = (),
) -> Report:
    """Evaluate every head of `runner` that `loader` has labels for. All ranks must call this.

    Args:
        runner: Network, ensemble or exported file.
        loader: Images and labels of a split.
        settings: Settings of post-processing and evaluators.
        device: Device for the batches.
        losses: Losses by head, computed on raw outputs if the runner returns them.
        on_batch: Called with every batch and its results in pixels of the original images; masks and semantic maps may
            still be on the device.
        modify_outputs: Called before post-processing; may change the outputs in place.
        skip_heads: Heads to leave out.

    Returns:
        The same report on every rank.
    """
    parts = []
    for part in loader.parts:
        heads = [name for name in runner.specs if name not in skip_heads and (name in part.heads or not part.heads)]
        if heads:
            parts.append((part, heads))
    specs = {name: spec for name, spec in runner.specs.items() if any(name in heads for _, heads in parts)}
    merged = {} if skip_heads else _merged_specs(runner, loader)
    whole = replace(settings, fine_masks=True, native_masks=True) if merged else settings  # merged at the original size
    evaluation = _Evaluation(
        runner,
        device,
        {name: POSTPROCESS.get(name)(spec, whole) for name, spec in specs.items()},
        {name: EVALUATORS.get(name)(spec, settings) for name, spec in (specs | merged).items()},
        losses or {},
        _Totals(),
        {name: Stopwatch(device) for name in ("preprocess", "inference", "postprocess")},
        modify_outputs,
        {name: POSTPROCESS.get(name)(spec, settings) for name, spec in merged.items()},
    )
    for loss in evaluation.losses.values():
        loss.eval()
    with ExitStack() as stack:
        if device.type == "cpu" and any(spec.num_masks for spec in specs.values()):
            from utils.core.heap import large_blocks_mapped  # masks only

            stack.enter_context(large_blocks_mapped())
        for part, heads in parts:
            text = "validating" if len(parts) == 1 else f"validating {', '.join(heads)}"
            for batch in progress(part.epoch(0), total=part.num_batches, text=text):
                results = evaluation.process(batch, heads)
                if on_batch is not None:
                    on_batch(batch, results)
    for loss in evaluation.losses.values():
        loss.train()
    evaluation.totals.add_losses(evaluation.loss_terms)
    scores = {name: evaluator.compute() for name, evaluator in evaluation.evaluators.items()}
    return replace(_report(evaluation.totals, evaluation.watches, scores), last_step=last_step(runner))


def _merged_specs(runner: Runner, loader: Loader) -> dict[str, HeadSpec]:
    """Describe the results of several heads that a loader has labels for: panoptic maps."""
    if not any("panoptic" in part.heads for part in loader.parts):
        return {}
    from utils.ops.panoptic import panoptic_spec  # rarely needed

    spec = panoptic_spec(runner.specs)
    return {} if spec is None else {spec.name: spec}


def last_step(runner: Runner) -> str:
    """Name the step after the network in speed lines: NMS for networks that predict boxes."""
    return "NMS" if any(spec.strides for spec in runner.specs.values()) else "post-process"


def _report(totals: _Totals, watches: Mapping[str, Stopwatch], scores: dict[str, Scores]) -> Report:
    """Add up the totals of all ranks and flatten the scores."""
    gathered = dist.gather((totals, {name: watch.seconds for name, watch in watches.items()}))
    images = sum(part.images for part, _ in gathered)
    metrics: dict[str, float] = {}
    for head, score in scores.items():
        metrics |= {key if key.startswith("coco/") else f"{head}/{key}": v for key, v in score.metrics.items()}
    for name in dict.fromkeys(name for part, _ in gathered for name in part.losses):
        batches = sum(part.batches.get(name, 0) for part, _ in gathered)
        metrics[name] = sum(part.losses.get(name, 0.0) for part, _ in gathered) / batches
    if truncated := sum(part.truncated for part, _ in gathered):
        LOGGER.warning(
            f"{truncated} image(s) have more NMS candidates than the limit; the lowest-scoring ones were dropped"
        )
    times = {name: sum(seconds[name] for _, seconds in gathered) * 1000 / max(images, 1) for name in watches}
    return Report(metrics, scores, times, images)


def format_table(scores: Scores, verbose: bool) -> str:
    """Format the table of a head: a row for all classes, one per class if `verbose`, then the note."""
    first, widths = _column_widths(scores.columns)
    split = any(len(name) >= width for name, width in widths.items())  # `Box P` becomes two lines
    above = ["".join(f"{name.rpartition(' ')[0]:>{width}}" for name, width in widths.items())] if split else []
    names = "".join(f"{name.rpartition(' ')[2] if split else name:>{width}}" for name, width in widths.items())
    lines = [*(" " * first + line for line in above), f"{'Class':>{first}}{names}"]
    for name, row in scores.rows if verbose else scores.rows[:1]:
        cells = "".join(f"{_cell(row[column], width):>{width}}" for column, width in widths.items())
        lines.append(f"{name[:first]:>{first}}{cells}")
    return "\n".join([*lines, scores.note] if scores.note else lines)


def _cell(value: float, width: int) -> str:
    """Write an integer, or three significant digits, fewer if they would leave no space before them."""
    text = f"{value:d}" if isinstance(value, int) else f"{value:.3g}"
    return text if len(text) < width or isinstance(value, int) else f"{value:.{width - 3}f}"


def _column_widths(columns: Sequence[str]) -> tuple[int, dict[str, int]]:
    """Choose the widths of the class names and of the other columns, narrower if the table exceeds a line."""
    if 22 + 11 * len(columns) <= MAX_COLUMNS:
        return 22, dict.fromkeys(columns, 11)
    widths = {name: max(*map(len, name.split()), _NARROWEST_CELL) + 1 for name in columns}
    return max(MAX_COLUMNS - sum(widths.values()), 8), widths


def format_speed(report: Report, shape: tuple[int, ...]) -> str:
    """Format the line about milliseconds per image."""
    times = report.milliseconds
    return (
        f"Speed: {times['preprocess']:.1f} ms pre-process, {times['inference']:.1f} ms inference, "
        f"{times['postprocess']:.1f} ms {report.last_step} per image at shape {shape}"
    )


def format_coco(metrics: Mapping[str, float]) -> str:
    """Format the COCO metrics in lines of at most `MAX_COLUMNS`, empty if there are none."""
    found = {name.removeprefix("coco/"): value for name, value in metrics.items() if name.startswith("coco/")}
    parts = [f"{name}\N{NO-BREAK SPACE}{value:.3f}" for name, value in found.items()]
    if not parts:
        return ""
    text = textwrap.fill("COCO: " + ", ".join(parts), MAX_COLUMNS, subsequent_indent=" " * 6, break_on_hyphens=False)
    return text.replace("\N{NO-BREAK SPACE}", " ")


def log_report(report: Report, shape: tuple[int, ...], verbose: bool) -> None:
    """Log the tables, COCO metrics and speed of an evaluation.

    Args:
        report: The evaluation.
        shape: Shape of a batch, for the speed line.
        verbose: Print a row per class.
    """
    for scores in report.scores.values():
        LOGGER.info(format_table(scores, verbose=verbose))
    if line := format_coco(report.metrics):
        LOGGER.info(line)
    LOGGER.info(format_speed(report, shape))
