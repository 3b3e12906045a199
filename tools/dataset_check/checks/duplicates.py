"""Images that are there twice: in a split, where they count twice, and across splits, where they falsify scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tools.dataset_check import CHECKS
from tools.dataset_check.findings import Finding
from tools.dataset_check.image_hash import groups, near_pairs
from tools.dataset_check.records import Gathered, Labelled, Picture

_SHOWN = 6  # names in a finding's text


@CHECKS.register("twins")
def check_twins(gathered: Gathered) -> Iterator[Finding]:
    """Yield groups of equal and of nearly equal images, and splits that are the same."""
    places: list[tuple[str, Picture]] = []
    sets: dict[str, frozenset[str]] = {}
    for split in gathered.split_names:
        pictures = gathered.pictures(split)
        sets[split] = frozenset(pictures)
        same = next((other for other in sets if other != split and sets[other] == sets[split]), None)
        if same is not None:
            yield Finding("same-split", f"{same} and {split} are the same {len(pictures)} images", split)
            continue
        places += [(split, one) for one in pictures.values() if one.print is not None]
    yield from _same_paths(sets)
    seen: set[tuple[str, ...]] = set()
    for members in _equal(places):
        yield from _told(members, ("duplicate-image", "leak"), "the same bytes", seen)
        yield from _conflict(members, gathered)
    representatives = _one_of_each(places)
    prints = [picture.print for _, picture in representatives if picture.print is not None]
    for group in groups(len(prints), near_pairs(prints)):
        yield from _told([representatives[i] for i in group], ("near-duplicate", "near-leak"), "nearly equal", seen)


def _same_paths(sets: dict[str, frozenset[str]]) -> Iterator[Finding]:
    """Yield files that two splits list, where the splits are not the same altogether."""
    names = list(sets)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if sets[first] != sets[second]:
                for path in sorted(sets[first] & sets[second]):
                    yield Finding("leak", f"{path}: listed in {first} and in {second}", second, path, (path,))


def _digest(picture: Picture) -> bytes:
    return picture.print.digest if picture.print is not None else b""


def _equal(places: list[tuple[str, Picture]]) -> list[list[tuple[str, Picture]]]:
    """Return the groups of different files with the same bytes."""
    by_digest: dict[bytes, dict[str, tuple[str, Picture]]] = {}
    for split, picture in places:
        by_digest.setdefault(_digest(picture), {}).setdefault(picture.path, (split, picture))
    return [list(group.values()) for group in by_digest.values() if len(group) > 1]


def _one_of_each(places: list[tuple[str, Picture]]) -> list[tuple[str, Picture]]:
    """Return one file of each content and split: equal files are told of elsewhere."""
    return list({(split, _digest(picture)): (split, picture) for split, picture in reversed(places)}.values())[::-1]


def _told(
    members: list[tuple[str, Picture]], kinds: tuple[str, str], how: str, seen: set[tuple[str, ...]]
) -> Iterator[Finding]:
    """Yield one finding for a group: of the second kind if it spans splits, of the first if not."""
    digests = {_digest(picture) for _, picture in members}
    if kinds[0] == "near-duplicate" and len(digests) == 1:
        return  # equal bytes in several splits
    paths = tuple(picture.path for _, picture in members)
    if paths in seen:
        return
    seen.add(paths)
    splits = list(dict.fromkeys(split for split, _ in members))
    names = ", ".join(f"{split}: {picture.path}" for split, picture in members[:_SHOWN])
    more = f" and {len(members) - _SHOWN} more" if len(members) > _SHOWN else ""
    kind = kinds[1] if len(splits) > 1 else kinds[0]
    yield Finding(kind, f"{how}: {names}{more}", splits[-1], paths[0], paths[1:])


def _conflict(members: list[tuple[str, Picture]], gathered: Gathered) -> Iterator[Finding]:
    """Yield equal files whose labels differ."""
    labels: dict[str, Labelled] = {
        one.picture.path: one for split in {split for split, _ in members} for one in gathered.splits.get(split, ())
    }
    known = [labels[picture.path] for _, picture in members if picture.path in labels]
    known = [one for one in known if not one.labels.faults]
    for other in known[1:]:
        if not _same_labels(known[0].labels.boxes, other.labels.boxes):
            text = f"{known[0].picture.path} and {other.picture.path} show the same, their labels do not"
            yield Finding("conflict", text, members[-1][0], known[0].picture.path, (other.picture.path,))
            return


def _same_labels(first: np.ndarray, second: np.ndarray) -> bool:
    if first.shape != second.shape:
        return False
    ordered = [rows[np.lexsort(rows.round(3).T)] for rows in (first, second)]
    return bool(np.abs(ordered[0] - ordered[1]).max(initial=0) < 5e-3)
