"""CamVid in the folders of SegNet's authors: `train` and `trainannot`, and so on; the value 11 is unlabelled."""

from __future__ import annotations

from utils.core.contracts import IGNORED_PIXEL
from utils.core.data_config import DataConfig
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import (
    Layout,
    MaskRule,
    SemanticSplitFiles,
    default_table,
    list_pairs,
    require_semantic,
)

VOID = 11


def read_camvid(data: DataConfig, split: str) -> SemanticSplitFiles:
    """List the images of a folder and the masks of the folder with the suffix `annot`."""
    table = default_table(require_semantic(data))
    table[VOID] = IGNORED_PIXEL
    rule = MaskRule(folders=lambda folder: [folder.with_name(folder.name + "annot")])
    return list_pairs(data, split, rule, [table])


SEMANTIC_READERS.register("camvid")(Layout(read_camvid, options=("ignore",)))
