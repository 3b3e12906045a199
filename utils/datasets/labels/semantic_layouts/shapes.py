"""The generated shapes: their background is a class of its own, the last one."""

from __future__ import annotations

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import Layout, Rule, SemanticListing, list_pairs, semantic_of, swapped


def read_shapes(data: DataConfig, split: str) -> SemanticListing:
    """Return images and masks; the classes must be those that are generated, and the background."""
    config = semantic_of(data)
    drawn = data.label_names or data.names
    if drawn and config.names[:-1] != drawn:
        raise UserError(f"{data.source}: `semantic.names` must be those of `names` and one for the background")
    return list_pairs(data, split, Rule(folders=lambda folder: swapped(folder, [("images", "masks")]) or [folder]))


SEMANTIC_READERS.register("shapes")(Layout(read_shapes, takes=()))
