"""One task of two: boxes and classes of pixels, learned by one network in one pass (behaviour.md 12)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from utils.core.contracts import Batch, Loader, LoadRequest, Results, Scores, Task
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.datasets.mixed import MixedLoader, Suite, split_batch

SEMANTIC_WEIGHT = 0.7  # of the mean IoU in what ranks epochs; the boxes' scores have the rest (behaviour.md 12.8)
BOX_WEIGHTS = {"map50": 0.1, "map50_95": 0.2}


def joined(boxes: Task, pixels: Task) -> Task:
    """Return the task of a network that has the heads of both."""

    def load(request: LoadRequest) -> Loader:
        return _load(request, boxes, pixels)

    def draw_batch(batch: Batch, path: Path, names: tuple[str, ...], results: Sequence[Results] | None = None) -> None:
        task = pixels if batch.semantic is not None else boxes
        task.draw_batch(batch, path, names, results)

    def draw_scores(scores: Mapping[str, Scores], folder: Path, names: tuple[str, ...]) -> Iterable[Path]:
        drawn = list(boxes.draw_scores(_of(scores, boxes), folder, names))
        return drawn + [path for path in pixels.draw_scores(_of(scores, pixels), folder, names) if path not in drawn]

    def gains(hyp: Hyp) -> Mapping[str, float]:
        return dict.fromkeys(boxes.heads, hyp.det)

    kinds = {number.split("/")[1].rpartition("map50")[0] for number in boxes.headline}  # "" or "box_", "mask_"
    weights = {
        f"{head}/{kind}{number}": weight / len(kinds)
        for head in boxes.heads
        for kind in kinds
        for number, weight in BOX_WEIGHTS.items()
    }
    return replace(
        boxes,
        name=f"{boxes.name}+{pixels.name}",
        heads=(*boxes.heads, *pixels.heads),
        headline=weights | dict.fromkeys(pixels.headline, SEMANTIC_WEIGHT),
        load=load,
        columns={**boxes.columns, **pixels.columns},
        draw_batch=draw_batch,
        draw_scores=draw_scores,
        seldom=pixels.heads,
        gains=gains,
    )


def _of(scores: Mapping[str, Scores], task: Task) -> dict[str, Scores]:
    return {head: score for head, score in scores.items() if head in task.heads}


def _load(request: LoadRequest, boxes: Task, pixels: Task) -> Loader:
    """Return mixed batches for training; for scoring one part after the other, of those that the data has."""
    data = request.data
    if not request.training:
        parts = [boxes.load(request)] if request.split in data.splits else []
        if data.semantic is not None and request.split in data.semantic.splits:
            parts.append(pixels.load(request))
        if not parts:
            raise UserError(f"{data.source}: has no {request.split} split, neither of boxes nor of pixels")
        return parts[0] if len(parts) == 1 else Suite(parts)
    if data.semantic is None:
        raise UserError(f"{data.source}: no `semantic:` block, and the network has a head for classes of pixels")
    if not data.splits:
        raise UserError(f"{data.source}: has no boxes (`names:`, `train:`), and the network has a head for them")
    if request.semantic.mosaic:
        return boxes.load(request)
    first, second = split_batch(request.batch_size, request.semantic.share)
    return MixedLoader(
        boxes.load(replace(request, batch_size=first)),
        pixels.load(replace(request, batch_size=second)),
        heads=(*boxes.heads, *pixels.heads),
    )
