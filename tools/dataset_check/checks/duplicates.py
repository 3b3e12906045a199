"""Checks for duplicate and near-duplicate images, within splits and across them (leaks)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tools.dataset_check import CHECKS
from tools.dataset_check.findings import Finding
from tools.dataset_check.image_hash import connected_groups, near_duplicate_pairs
from tools.dataset_check.records import DatasetRecords, ImageRecord, LabelRecord

_MAX_PATHS = 6  # in a finding's text

Member = tuple[str, ImageRecord]  # split, image


@CHECKS.register("duplicates")
def check_duplicates(records: DatasetRecords) -> Iterator[Finding]:
    """Find groups of identical and of nearly identical images, and identical splits."""
    members: list[Member] = []
    sets: dict[str, frozenset[str]] = {}
    for split in records.split_names:
        images = records.images(split)
        sets[split] = frozenset(images)
        same = next((other for other in sets if other != split and sets[other] == sets[split]), None)
        if same is not None:
            yield Finding("same-split", f"{same} and {split} have the same {len(images)} images", split)
            continue
        members += [(split, one) for one in images.values() if one.fingerprint is not None]
    yield from _shared_files(sets)
    seen: set[tuple[str, ...]] = set()
    for group in _identical_groups(members):
        yield from _group_finding(group, ("duplicate-image", "leak"), "identical files", seen)
        yield from _conflict(group, records)
    distinct = _distinct_images(members)
    fingerprints = [image.fingerprint for _, image in distinct if image.fingerprint is not None]
    for numbers in connected_groups(len(fingerprints), near_duplicate_pairs(fingerprints)):
        group = [distinct[i] for i in numbers]
        yield from _group_finding(group, ("near-duplicate", "near-leak"), "near-duplicates", seen)


def _shared_files(sets: dict[str, frozenset[str]]) -> Iterator[Finding]:
    """Find files listed in two splits that are not identical."""
    names = list(sets)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if sets[first] != sets[second]:
                for path in sorted(sets[first] & sets[second]):
                    yield Finding("leak", f"{path}: in both {first} and {second}", second, path, (path,))


def _digest(image: ImageRecord) -> bytes:
    return image.fingerprint.digest if image.fingerprint is not None else b""


def _identical_groups(members: list[Member]) -> list[list[Member]]:
    """Group different files with identical bytes."""
    by_digest: dict[bytes, dict[str, Member]] = {}
    for split, image in members:
        by_digest.setdefault(_digest(image), {}).setdefault(image.path, (split, image))
    return [list(group.values()) for group in by_digest.values() if len(group) > 1]


def _distinct_images(members: list[Member]) -> list[Member]:
    """Select one file per content and split; identical files are reported separately."""
    return list({(split, _digest(image)): (split, image) for split, image in reversed(members)}.values())[::-1]


def _group_finding(
    members: list[Member], kinds: tuple[str, str], how: str, seen: set[tuple[str, ...]]
) -> Iterator[Finding]:
    """Report a group, as the second kind if it spans several splits, otherwise as the first."""
    digests = {_digest(image) for _, image in members}
    if kinds[0] == "near-duplicate" and len(digests) == 1:
        return  # identical files in several splits
    paths = tuple(image.path for _, image in members)
    if paths in seen:
        return
    seen.add(paths)
    splits = list(dict.fromkeys(split for split, _ in members))
    names = ", ".join(f"{split}: {image.path}" for split, image in members[:_MAX_PATHS])
    more = f" and {len(members) - _MAX_PATHS} more" if len(members) > _MAX_PATHS else ""
    kind = kinds[1] if len(splits) > 1 else kinds[0]
    yield Finding(kind, f"{how}: {names}{more}", splits[-1], paths[0], paths[1:])


def _conflict(members: list[Member], records: DatasetRecords) -> Iterator[Finding]:
    """Report identical files with different labels."""
    labels: dict[str, LabelRecord] = {
        one.image.path: one for split in {split for split, _ in members} for one in records.splits.get(split, ())
    }
    known = [labels[image.path] for _, image in members if image.path in labels]
    known = [one for one in known if not one.labels.faults]
    for other in known[1:]:
        if not _same_labels(known[0].labels.boxes, other.labels.boxes):
            text = f"{known[0].image.path} and {other.image.path} are identical, but their labels differ"
            yield Finding("conflict", text, members[-1][0], known[0].image.path, (other.image.path,))
            return


def _same_labels(first: np.ndarray, second: np.ndarray) -> bool:
    if first.shape != second.shape:
        return False
    ordered = [rows[np.lexsort(rows.round(3).T)] for rows in (first, second)]
    return bool(np.abs(ordered[0] - ordered[1]).max(initial=0) < 5e-3)
