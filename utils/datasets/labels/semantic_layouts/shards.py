"""Tar shards with masks: the mask of `000123.jpg` is `000123.mask.png`, `000123.seg.png` or `000123.png`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.scan_cache import CACHE_SUFFIX, short_hash
from utils.datasets.labels.semantic_layout import Layout, SemanticSplitFiles, default_table, require_semantic
from utils.datasets.shards.shard_set import ShardPaths, ShardSet, shard_paths


def read_shards(data: DataConfig, split: str) -> SemanticSplitFiles:
    """List the images and masks of the tar files of a split.

    An image without a mask is a fault, except in shards that the data set also takes boxes from: there it has boxes
    only.

    Raises:
        UserError: a tar file is refused, or there are no images or masks.
    """
    where = f"{data.source}: `semantic.{split}:`"
    sources = data.semantic_split(split)
    paths = shard_paths(sources, where)
    shards = ShardSet(paths, where)
    notes, images = list(shards.notes), shards.images
    masks, present = shards.masks()
    if not present.any():
        raise UserError(f"{where}: none of {len(present)} images has a mask; looked for {masks[0]}")
    if data.splits.get(split) == sources and not present.all():
        count = int((~present).sum())
        notes.append(f"{data.source}: {count} of {len(present)} images without a mask dropped")
        images = shards.only(present)
        masks = ShardPaths(shards.shards, images.shard_of, masks.members[present])
    first = Path(paths[0])
    return SemanticSplitFiles(
        images=images,
        masks=masks,
        tables=default_table(require_semantic(data))[None],
        table_of=np.zeros(len(images), np.uint8),
        cache=first.with_name(f"{first.name}.{short_hash([split, *paths])}.semantic{CACHE_SUFFIX}"),
        notes=notes,
        stamped=paths,
    )


SEMANTIC_READERS.register("shards")(Layout(read_shards))
