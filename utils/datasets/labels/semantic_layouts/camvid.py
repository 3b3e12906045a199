"""CamVid as SegNet's authors lay it out: `train` and `trainannot`, and so on; the value 11 is no label."""

from __future__ import annotations

from utils.core.data_config import DataConfig
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import (
    IGNORED_PIXEL,
    Layout,
    Rule,
    SemanticListing,
    list_pairs,
    plain_table,
    semantic_of,
)

VOID = 11


def read_camvid(data: DataConfig, split: str) -> SemanticListing:
    """Return the images of a folder and the masks of the one whose name ends in `annot`."""
    table = plain_table(semantic_of(data))
    table[VOID] = IGNORED_PIXEL
    rule = Rule(folders=lambda folder: [folder.with_name(folder.name + "annot")])
    return list_pairs(data, split, rule, [table])


SEMANTIC_READERS.register("camvid")(Layout(read_camvid, takes=("ignore",)))
