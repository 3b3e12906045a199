"""Panoptic segmentation: instance masks and semantic maps of the same images, ranked by panoptic quality."""

from __future__ import annotations

from dataclasses import replace

from utils.core.contracts import Loader, Task
from utils.core.errors import UserError
from utils.core.load_request import LoadRequest

PANOPTIC_CFG = "yolov5n-pan"  # default architecture
DESIGN = "psp"  # of the semantic head that weights without one get
COLUMNS = {
    "metrics/PQ": "panoptic/pq",
    "metrics/SQ": "panoptic/sq",
    "metrics/RQ": "panoptic/rq",
    "metrics/PQ_things": "panoptic/pq_things",
    "metrics/PQ_stuff": "panoptic/pq_stuff",
}


def panoptic_task(joint: Task, boxes: Task, usual_fitness: bool) -> Task:
    """Adapt the joint task of masks and semantic maps to a panoptic data set, whose images have labels of both kinds.

    Args:
        joint: Task of both heads.
        boxes: Task of the mask head.
        usual_fitness: Rank epochs by panoptic quality; False: as `joint` does, because the user chose the weights.
    """

    def load(request: LoadRequest) -> Loader:
        if request.training:
            if request.rect or request.quad:
                option = "--rect" if request.rect else "--quad"
                raise UserError(f"{option}: cannot be combined with semantic maps; leave the option out")
            return boxes.load(replace(request, semantic=replace(request.semantic, mosaic=True)))
        loader = boxes.load(replace(request, panoptic=True))
        loader.heads = (*joint.heads, "panoptic")
        return loader

    return replace(
        joint,
        fitness={"panoptic/pq": 1.0} if usual_fitness else joint.fitness,
        load=load,
        columns={**joint.columns, **COLUMNS},
        periodic_heads=(),
    )
