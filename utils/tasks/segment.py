"""Instance segmentation: data, plots and fitness."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from utils.core.contracts import Loader, Scores, Task
from utils.core.data_config import DataConfig
from utils.core.load_request import LoadRequest
from utils.datasets.generators.prepare import ensure_generated
from utils.datasets.pipeline.box_samples import open_box_loader
from utils.plots.curves import draw_confusion, draw_score_curves
from utils.tasks import TASKS
from utils.tasks.detect import draw_box_labels, draw_labelled


def load(request: LoadRequest) -> Loader:
    """Open the loader of one split with masks; a generated data set is written first.

    In evaluation each object has a mask of its own, so that overlapping parts are compared as well.
    """
    ensure_generated(request.data)
    return open_box_loader(replace(request, masks=True, overlap=request.overlap and request.training))


def draw_scores(scores: Mapping[str, Scores], folder: Path, data: DataConfig) -> Iterable[Path]:
    """Plot score curves of boxes and masks, confusion matrix and training curves; return the files."""
    from utils.plots.results import draw_results

    drawn: list[Path] = []
    names = data.names
    for score in scores.values():
        drawn += draw_score_curves(score.details.box, folder, names, "Box")
        drawn += draw_score_curves(score.details.mask, folder, names, "Mask")
        if len(score.details.box.confusion):
            drawn.append(draw_confusion(score.details.box.confusion, folder / "confusion_matrix.png", names))
    if (csv := folder / "results.csv").is_file() and (plot := draw_results(csv)):
        drawn.append(plot)
    return drawn


def for_data(task: Task, data: DataConfig) -> Task:
    """Choose the architecture of networks for panoptic data, which gets a semantic head beside the masks."""
    if not data.is_panoptic:
        return task
    from utils.tasks.panoptic import DESIGN, PANOPTIC_CFG

    return replace(task, cfg=PANOPTIC_CFG, added_head=DESIGN)


_LOSSES = ("box", "seg", "obj", "cls")
_METRICS = {"precision": "precision", "recall": "recall", "mAP_0.5": "map50", "mAP_0.5:0.95": "map50_95"}
_KINDS = {"B": "box", "M": "mask"}
COLUMNS = {
    **{f"train/{loss}_loss": f"train/segment/{loss}" for loss in _LOSSES},
    **{f"metrics/{m}({k})": f"segment/{kind}_{n}" for k, kind in _KINDS.items() for m, n in _METRICS.items()},
    **{f"val/{loss}_loss": f"val/segment/{loss}" for loss in _LOSSES},
    **{f"x/lr{group}": f"lr/{group}" for group in range(3)},
}

TASKS.register("segment")(
    Task(
        name="segment",
        heads=("segment",),
        fitness={f"segment/{kind}_{n}": w for kind in ("box", "mask") for n, w in (("map50", 0.1), ("map50_95", 0.9))},
        load=load,
        columns=COLUMNS,
        draw_batch=draw_labelled,
        draw_labels=draw_box_labels,
        draw_scores=draw_scores,
        cfg="yolov5n-seg",
        for_data=for_data,
        fit_anchors=True,
    )
)
