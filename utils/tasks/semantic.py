"""Semantic segmentation: data, plots and fitness."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.core.contracts import Loader, Scores, Task
from utils.core.data_config import DataConfig
from utils.core.load_request import LoadRequest
from utils.datasets.generators.prepare import ensure_generated
from utils.datasets.pipeline.semantic_samples import open_semantic_loader
from utils.plots.semantic_scores import draw_semantic_scores
from utils.tasks import TASKS
from utils.tasks.detect import draw_labelled


def load(request: LoadRequest) -> Loader:
    """Open the loader of one split; a generated data set is written first."""
    ensure_generated(request.data)
    return open_semantic_loader(request)


def draw_labels(loader: Loader, folder: Path, data: DataConfig) -> None:
    """Plot nothing: counting the pixels of each class would require reading all semantic maps."""


def draw_scores(scores: Mapping[str, Scores], folder: Path, data: DataConfig) -> Iterable[Path]:
    """Plot the IoU per class, confusion matrix and training curves; return the files."""
    from utils.plots.results import draw_results

    drawn: list[Path] = []
    for score in scores.values():
        drawn += draw_semantic_scores(score.details, folder, data.semantic.palette if data.semantic else ())
    if (csv := folder / "results.csv").is_file() and (plot := draw_results(csv)):
        drawn.append(plot)
    return drawn


COLUMNS = {
    "train/seg_loss": "train/semantic/seg",
    "metrics/mIoU": "semantic/miou",
    "metrics/pixel_accuracy": "semantic/pixel_accuracy",
    "val/seg_loss": "val/semantic/seg",
    **{f"x/lr{group}": f"lr/{group}" for group in range(3)},
}

TASKS.register("semantic")(
    Task(
        name="semantic",
        heads=("semantic",),
        fitness={"semantic/miou": 1.0},
        load=load,
        columns=COLUMNS,
        draw_batch=draw_labelled,
        draw_labels=draw_labels,
        draw_scores=draw_scores,
        cfg="yolov5n-sem",
    )
)
