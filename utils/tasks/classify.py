"""Classification: the class of a whole image, its pictures, and the score that ranks runs."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.core.contracts import Loader, LoadRequest, Scores, Task
from utils.datasets.classes import open_class_loader
from utils.datasets.generators.prepare import ensure
from utils.plots.classes import draw_class_batch, draw_class_counts
from utils.plots.curves import draw_confusion
from utils.plots.results import draw_results
from utils.tasks import TASKS


def load(request: LoadRequest) -> Loader:
    """Return the batches of one split; a generated data set is made first if need be."""
    ensure(request.data)
    return open_class_loader(request)


def draw_scores(scores: Mapping[str, Scores], folder: Path, names: tuple[str, ...]) -> Iterable[Path]:
    """Draw the confusion matrix and the story of the run; return the pictures' paths."""
    drawn = [draw_confusion(s.details.confusion, folder / "confusion_matrix.png", names) for s in scores.values()]
    if (csv := folder / "results.csv").is_file() and (picture := draw_results(csv)):
        drawn.append(picture)
    return drawn


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
        headline={"classify/top1": 1.0},
        load=load,
        columns=COLUMNS,
        draw_batch=draw_class_batch,
        draw_labels=draw_class_counts,
        draw_scores=draw_scores,
        data="data/shapes-cls.yaml",
        cfg="yolov5n-cls",
    )
)
