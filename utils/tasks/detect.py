"""Object detection: data, plots and fitness."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from utils.core.contracts import Batch, Loader, Results, Scores, Task
from utils.core.data_config import DataConfig
from utils.core.load_request import LoadRequest
from utils.datasets.generators.prepare import ensure_generated
from utils.datasets.pipeline.box_samples import open_box_loader
from utils.plots.batches import draw_batch
from utils.plots.semantic_style import SemanticStyle
from utils.tasks import TASKS


def load(request: LoadRequest) -> Loader:
    """Open the loader of one split; a generated data set is written first."""
    ensure_generated(request.data)
    return open_box_loader(request)


def draw_labelled(batch: Batch, path: Path, data: DataConfig, results: Sequence[Results] | None = None) -> None:
    """Plot a batch with its labels, or with the results of all heads."""
    style = SemanticStyle(data.semantic.names, data.semantic.palette) if data.semantic else None
    draw_batch(batch, path, data.names, results, style)


def draw_box_labels(loader: Loader, folder: Path, data: DataConfig) -> None:
    """Plot the numbers, sizes and positions of the labelled boxes."""
    from utils.plots.label_statistics import draw_labels

    draw_labels(loader, folder, data.names)


def draw_scores(scores: Mapping[str, Scores], folder: Path, data: DataConfig) -> Iterable[Path]:
    """Plot score curves, confusion matrix and training curves; return the files."""
    from utils.plots.curves import draw_confusion, draw_score_curves
    from utils.plots.results import draw_results

    drawn: list[Path] = []
    names = data.names
    for score in scores.values():
        drawn += draw_score_curves(score.details, folder, names)
        if len(score.details.confusion):
            drawn.append(draw_confusion(score.details.confusion, folder / "confusion_matrix.png", names))
    if (csv := folder / "results.csv").is_file() and (plot := draw_results(csv)):
        drawn.append(plot)
    return drawn


COLUMNS = {
    "train/box_loss": "train/detect/box",
    "train/obj_loss": "train/detect/obj",
    "train/cls_loss": "train/detect/cls",
    "metrics/precision": "detect/precision",
    "metrics/recall": "detect/recall",
    "metrics/mAP_0.5": "detect/map50",
    "metrics/mAP_0.5:0.95": "detect/map50_95",
    "val/box_loss": "val/detect/box",
    "val/obj_loss": "val/detect/obj",
    "val/cls_loss": "val/detect/cls",
    "x/lr0": "lr/0",
    "x/lr1": "lr/1",
    "x/lr2": "lr/2",
}

TASKS.register("detect")(
    Task(
        name="detect",
        heads=("detect",),
        fitness={"detect/map50": 0.1, "detect/map50_95": 0.9},
        load=load,
        columns=COLUMNS,
        draw_batch=draw_labelled,
        draw_labels=draw_box_labels,
        draw_scores=draw_scores,
        fit_anchors=True,
    )
)
