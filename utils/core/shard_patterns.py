"""Patterns of tar shards, `train-{000..099}.tar` and `train-*.tar`, and data sets given as tar files without a YAML."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from utils.core.errors import UserError
from utils.core.yaml_file import read_text

MAX_SHARDS = 1_000_000
NAME_LISTS = ("classes.txt", "names.txt")  # beside the shards, with a class name per line
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(pattern: Path) -> list[Path]:
    """Expand braces in their order and wildcards in the order of the names.

    Args:
        pattern: path with `{000..012}`, `{a,b}`, `*`, `?` or `[0-9]`, or without any of these.

    Returns:
        The files; a path without wildcards, or a pattern that matches nothing, is returned whether it exists or not.

    Raises:
        UserError: the braces stand for more than `MAX_SHARDS` files.
    """
    found: list[Path] = []
    for text in _expand_braces(str(pattern)):
        matches = sorted(glob.glob(text)) if glob.has_magic(text) else []  # noqa: PTH207 - patterns are absolute
        found += [Path(match) for match in matches] or [Path(text)]
    return found


def _expand_braces(text: str) -> list[str]:
    texts = [text]
    while any(_BRACES.search(one) for one in texts):
        texts = [new for one in texts for new in _expand_first(one)]
        if len(texts) > MAX_SHARDS:
            raise UserError(f"{text}: stands for more than {MAX_SHARDS} shards; use larger ones")
    return texts


def _expand_first(text: str) -> list[str]:
    braces = _BRACES.search(text)
    if braces is None:
        return [text]
    span = _RANGE.fullmatch(braces[1])
    values = braces[1].split(",")
    if span is not None:
        first, last, width = int(span[1]), int(span[2]), max(len(span[1]), len(span[2])) * (span[1][0] == "0")
        if abs(last - first) >= MAX_SHARDS:
            raise UserError(f"{text}: stands for more than {MAX_SHARDS} shards; use larger ones")
        step = 1 if last >= first else -1
        values = [f"{number:0{width}d}" if width else str(number) for number in range(first, last + step, step)]
    return [text[: braces.start()] + value + text[braces.end() :] for value in values]


def find_shards(text: str) -> list[Path]:
    """List the tar files that `--data` gives as a file, pattern or folder; empty if it gives something else."""
    path = Path(text)
    if path.is_dir():
        return sorted(tar for tar in path.glob("*.tar") if tar.name[0] != ".")
    return [tar for tar in expand(path) if tar.is_file()] if path.suffix == ".tar" else []


def shard_splits(shards: list[Path]) -> dict[str, tuple[Path, ...]]:
    """Group tar files into splits by the start of their name or the name of their folder.

    Returns:
        The files of train, val and test; without any such name all files are both train and val.
    """
    found: dict[str, tuple[Path, ...]] = {}
    for shard in shards:
        names = (shard.name, shard.parent.name)
        split = next((one for name in names for one in ("train", "val", "test") if name.startswith(one)), "")
        if split:
            found[split] = (*found.get(split, ()), shard)
    return found or {"train": tuple(shards), "val": tuple(shards)}


def names_beside(folder: Path) -> tuple[str, ...]:
    """Read the class names of shards without a data YAML.

    Raises:
        UserError: there is no list of names.
    """
    for name in NAME_LISTS:
        if (folder / name).is_file():
            lines = (line.strip() for line in read_text(folder / name, "list of names").splitlines())
            return tuple(line for line in lines if line)
    raise UserError(f"{folder}: shards without class names; put data.yaml or classes.txt, a name per line, beside them")
