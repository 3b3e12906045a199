"""The tar files of a split: indexed in parallel, their samples as sequences of paths without a string per image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np

from utils.core.distributed import main_first
from utils.core.errors import UserError
from utils.core.log import progress
from utils.datasets.image_suffixes import IMAGE_SUFFIXES
from utils.datasets.labels.scan import ThreadPool
from utils.datasets.shards.shard_files import Shard, open_shard
from utils.datasets.shards.shard_index import IMAGE

SUFFIX = ".tar"
_MAX_THREADS = 8


def is_shards(source: Path) -> bool:
    """Check whether a path of the data YAML is a tar file, or a folder of tar files without images and folders."""
    if not source.is_dir():
        return source.suffix == SUFFIX
    with os.scandir(source) as entries:
        others = any(entry.is_dir() or Path(entry.name).suffix.lower() in IMAGE_SUFFIXES for entry in entries)
    return not others and bool(_tars_in(source))


def _tars_in(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(SUFFIX) and entry.name[0] != ".")
    return [folder / name for name in names if (folder / name).is_file()]


def shard_paths(sources: Sequence[Path], where: str) -> list[str]:
    """List the tar files of the paths of a split, in their order.

    Args:
        sources: tar files, and folders with tar files directly in them.
        where: data YAML and key, for the message.

    Raises:
        UserError: there is none, or a path is something else.
    """
    found: dict[str, None] = {}
    for source in sources:
        tars = _tars_in(source) if source.is_dir() else [source]
        if not tars or tars[0].suffix != SUFFIX:
            raise UserError(f"{where}: {source} is no tar file and has none in it; a split has shards only or none")
        found |= dict.fromkeys(map(str, tars))
    return list(found)


class ShardPaths(Sequence[str]):
    """Paths of members of tar files, built when they are asked for.

    Args:
        shards: the tar files.
        shard_of: (n,) row in `shards` of each path.
        members: (n,) member of that tar file.
        suffix: replaces the suffix of the members' names; None: the names as they are.
    """

    def __init__(
        self, shards: Sequence[Shard], shard_of: np.ndarray, members: np.ndarray, suffix: str | None = None
    ) -> None:
        self.shards, self.shard_of, self.members, self.suffix = shards, shard_of, members, suffix

    def __len__(self) -> int:
        return len(self.members)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        """Build the path of a row, or the paths of several."""
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        shard, member = self.shards[self.shard_of[row]], int(self.members[row])
        suffix = self.suffix
        if member < 0:  # of a mask that is missing, see `ShardSet.masks`
            member, suffix = -2 - member, MISSING_MASK
        name = shard.index.name(member).decode("utf-8", "surrogateescape")
        if suffix is not None:
            name = os.path.splitext(name)[0] + suffix  # noqa: PTH122 - a Path per image costs seconds on a large set
        return f"{shard.path}{os.sep}{name}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ShardPaths):
            return NotImplemented
        same = self.suffix == other.suffix and [s.path for s in self.shards] == [s.path for s in other.shards]
        return same and np.array_equal(self.shard_of, other.shard_of) and np.array_equal(self.members, other.members)

    __hash__ = None  # type: ignore[assignment]


MISSING_MASK = ".mask.png"  # of the path that stands for the missing mask of an image


class ShardSet:
    """The indexed tar files of a split and their images, in the order of the files.

    Args:
        paths: tar files.
        where: data YAML and key, for the message.

    Attributes:
        images: paths of the images.
        notes: warnings about what was left out of the tar files.

    Raises:
        UserError: a tar file is refused, or there is no image.
    """

    def __init__(self, paths: list[str], where: str) -> None:
        with main_first():
            self.shards = _open_all(paths)
        self.notes = [note for shard in self.shards for note in shard.notes]
        members = [np.flatnonzero(shard.index.kinds == IMAGE).astype(np.int32) for shard in self.shards]
        shard_of = np.repeat(np.arange(len(members), dtype=np.int32), [len(rows) for rows in members])
        self.images = ShardPaths(self.shards, shard_of, np.concatenate(members))
        if not len(self.images):
            raise UserError(f"{where}: no images in {paths[0]}" + (f" and {len(paths) - 1} more" * (len(paths) > 1)))

    def has_kind(self, kind: int) -> bool:
        """Check whether any tar file has a member of a kind."""
        return any((shard.index.kinds == kind).any() for shard in self.shards)

    def labels(self, suffix: str) -> ShardPaths:
        """Return the paths of the label files of the images, which may not exist."""
        return ShardPaths(self.shards, self.images.shard_of, self.images.members, suffix)

    def masks(self) -> tuple[ShardPaths, np.ndarray]:
        """Return the paths of the masks of the images, and which of them exist as (n,) bool."""
        rows = self.images
        found = np.concatenate([shard.index.masks[shard.index.kinds == IMAGE] for shard in self.shards])
        present = found >= 0
        return ShardPaths(self.shards, rows.shard_of, np.where(present, found, -2 - rows.members)), present

    def only(self, rows: np.ndarray) -> ShardPaths:
        """Return the paths of the images where `rows`, (n,) bool, is True."""
        return ShardPaths(self.shards, self.images.shard_of[rows], self.images.members[rows])


def _open_all(paths: list[str]) -> list[Shard]:
    new = max(1, min(_MAX_THREADS, len(paths)))
    with ThreadPool(new) as pool:
        return list(progress(pool.map(partial(open_shard, check=True), paths), len(paths), "opening shards", "shard"))
