"""Image classification: data, plots and fitness."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from utils.core.contracts import Batch, Loader, Results, Scores, Task
from utils.core.data_config import DataConfig
from utils.core.load_request import LoadRequest
from utils.datasets.generators.prepare import ensure_generated
from utils.datasets.pipeline.classification_samples import open_classification_loader
from utils.plots.classification import draw_class_batch, draw_class_counts
from utils.plots.curves import draw_confusion
from utils.tasks import TASKS


def load(request: LoadRequest) -> Loader:
    """Open the loader of one split; a generated data set is written first."""
    ensure_generated(request.data)
    return open_classification_loader(request)


def draw_scores(scores: Mapping[str, Scores], folder: Path, data: DataConfig) -> Iterable[Path]:
    """Plot the confusion matrix and the training curves; return the files."""
    from utils.plots.results import draw_results

    matrices = [score.details.confusion for score in scores.values() if len(score.details.confusion)]
    drawn = [draw_confusion(matrix, folder / "confusion_matrix.png", data.names) for matrix in matrices]
    if (csv := folder / "results.csv").is_file() and (plot := draw_results(csv)):
        drawn.append(plot)
    return drawn


def draw_batch(batch: Batch, path: Path, data: DataConfig, results: Sequence[Results] | None = None) -> None:
    """Plot a batch with its labels, or with the most probable classes."""
    draw_class_batch(batch, path, data.names, results)


def draw_labels(loader: Loader, folder: Path, data: DataConfig) -> None:
    """Plot the number of images per class."""
    draw_class_counts(loader, folder, data.names)


COLUMNS = {
    "train/loss": "train/classify/ce",
    "val/loss": "val/classify/ce",
    "metrics/accuracy_top1": "classify/top1",
    "metrics/accuracy_top5": "classify/top5",
    "lr/0": "lr/0",
}

TASKS.register("classify")(
    Task(
        name="classify",
        heads=("classify",),
        fitness={"classify/top1": 1.0},
        load=load,
        columns=COLUMNS,
        draw_batch=draw_batch,
        draw_labels=draw_labels,
        draw_scores=draw_scores,
        data="data/shapes-cls.yaml",
        cfg="yolov5n-cls",
    )
)
