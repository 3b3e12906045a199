"""Joint task: boxes and semantic segmentation with one network."""

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
from utils.datasets.pipeline.mixed_loader import LoaderSequence, has_same_images, open_mixed_loader

SEMANTIC_WEIGHT = 0.7  # of the mean IoU in the fitness
BOX_WEIGHTS = {"map50": 0.1, "map50_95": 0.2}  # of the box metrics


def join_tasks(boxes: Task, semantic: Task) -> Task:
    """Combine a task with boxes and the semantic task to one for networks with the heads of both."""

    def load(request: LoadRequest) -> Loader:
        return _load(request, boxes, semantic)

    def draw_scores(scores: Mapping[str, Scores], folder: Path, data: DataConfig) -> Iterable[Path]:
        drawn = [
            path
            for task in (boxes, semantic)
            for path in task.draw_scores({head: s for head, s in scores.items() if head in task.heads}, folder, data)
        ]
        return list(dict.fromkeys(drawn))

    def gains(hyp: Hyp) -> Mapping[str, float]:
        return dict.fromkeys(boxes.heads, hyp.det)

    def for_data(task: Task, data: DataConfig) -> Task:
        if not data.is_panoptic or "segment" not in boxes.heads:
            return task
        from utils.tasks.panoptic import panoptic_task

        return panoptic_task(task, boxes, usual_fitness=task.fitness == fitness)

    kinds = {metric.split("/")[1].rpartition("map50")[0] for metric in boxes.fitness}  # "", or "box_" and "mask_"
    weights = {
        f"{head}/{kind}{metric}": weight / len(kinds)
        for head in boxes.heads
        for kind in kinds
        for metric, weight in BOX_WEIGHTS.items()
    }
    fitness = weights | dict.fromkeys(semantic.fitness, SEMANTIC_WEIGHT)
    return replace(
        boxes,
        name=f"{boxes.name}+{semantic.name}",
        heads=(*boxes.heads, *semantic.heads),
        fitness=fitness,
        load=load,
        columns={**boxes.columns, **_distinct_columns(semantic.columns, boxes.columns)},
        draw_scores=draw_scores,
        periodic_heads=semantic.heads,
        gains=gains,
        for_data=for_data,
    )


def _distinct_columns(columns: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    """Rename columns that another task has as well: instance segmentation also has a `seg_loss`."""
    return {
        name if others.get(name, metric) == metric else name.replace("/", "/semantic_", 1): metric
        for name, metric in columns.items()
    }


def _load(request: LoadRequest, boxes: Task, semantic: Task) -> Loader:
    """Open a loader of mixed batches for training, of the existing parts one after the other for evaluation."""
    data = request.data
    if not request.training:
        parts = []
        if request.split in data.splits:
            parts.append(boxes.load(request))
            parts[0].heads = boxes.heads
        if data.semantic is not None and request.split in data.semantic.splits:
            parts.append(semantic.load(request))
        if not parts:
            raise UserError(f"{data.source}: has no {request.split} split, neither of boxes nor of semantic maps")
        return parts[0] if len(parts) == 1 else LoaderSequence(parts)
    if data.semantic is None:
        raise UserError(f"{data.source}: has no `semantic:` block, but the network has a semantic head")
    if not data.splits:
        raise UserError(f"{data.source}: has no boxes (`names:`, `train:`), but the network has a head for them")
    if request.semantic.mosaic:
        if not has_same_images(request):
            raise UserError(f"{data.source}: --seg-mosaic needs boxes and semantic maps of the same images")
        return boxes.load(request)
    ensure_generated(data)
    return open_mixed_loader(request, (*boxes.heads, *semantic.heads), open_boxes=boxes.load)
