"""Generated shapes: the classes of the boxes, and the background as the last class."""

from __future__ import annotations

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import (
    Layout,
    MaskRule,
    SemanticSplitFiles,
    list_pairs,
    replace_folder,
    require_semantic,
)


def read_shapes(data: DataConfig, split: str) -> SemanticSplitFiles:
    """List images and masks.

    Raises:
        UserError: the classes are not those of the boxes and one more for the background.
    """
    config = require_semantic(data)
    names = data.label_names or data.names
    if names and config.names[:-1] != names:
        raise UserError(f"{data.source}: `semantic.names` must be those of `names` and one for the background")
    rule = MaskRule(folders=lambda folder: replace_folder(folder, [("images", "masks")]) or [folder])
    return list_pairs(data, split, rule)


SEMANTIC_READERS.register("shapes")(Layout(read_shapes, options=()))
