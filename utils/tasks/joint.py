"""One task of two: boxes and classes of pixels, learned by one network in one pass (behaviour.md 12)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from utils.core.contracts import Loader, Scores, Task
from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.datasets.generators.prepare import ensure_generated
from utils.datasets.pipeline.mixed_loader import Suite, open_mixed, same_images

SEMANTIC_WEIGHT = 0.7  # of the mean IoU in what ranks epochs; the boxes' scores have the rest (behaviour.md 12.8)
BOX_WEIGHTS = {"map50": 0.1, "map50_95": 0.2}


def joined(boxes: Task, pixels: Task) -> Task:
    """Return the task of a network that has the heads of both."""

    def load(request: LoadRequest) -> Loader:
        return _load(request, boxes, pixels)

    def draw_scores(scores: Mapping[str, Scores], folder: Path, data: DataConfig) -> Iterable[Path]:
        drawn = [
            path
            for task in (boxes, pixels)
            for path in task.draw_scores({head: s for head, s in scores.items() if head in task.heads}, folder, data)
        ]
        return list(dict.fromkeys(drawn))

    def gains(hyp: Hyp) -> Mapping[str, float]:
        return dict.fromkeys(boxes.heads, hyp.det)

    kinds = {number.split("/")[1].rpartition("map50")[0] for number in boxes.fitness}  # "" or "box_", "mask_"
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
        fitness=weights | dict.fromkeys(pixels.fitness, SEMANTIC_WEIGHT),
        load=load,
        columns={**boxes.columns, **_beside(pixels.columns, boxes.columns)},
        draw_scores=draw_scores,
        periodic_heads=pixels.heads,
        gains=gains,
    )


def _beside(columns: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    """Return columns of which none is called like another task's: masks of objects have a `seg_loss`, too."""
    return {
        name if others.get(name, number) == number else name.replace("/", "/semantic_", 1): number
        for name, number in columns.items()
    }


def _load(request: LoadRequest, boxes: Task, pixels: Task) -> Loader:
    """Return mixed batches for training; for scoring one part after the other, of those that the data has."""
    data = request.data
    if not request.training:
        parts = []
        if request.split in data.splits:
            parts.append(boxes.load(request))
            parts[0].heads = boxes.heads
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
        if not same_images(request):
            raise UserError(f"{data.source}: --seg-mosaic is for boxes and classes of pixels of the same images")
        return boxes.load(request)
    ensure_generated(data)
    return open_mixed(request, (*boxes.heads, *pixels.heads), open_boxes=boxes.load)
