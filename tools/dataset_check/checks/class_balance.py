"""Checks of classes: absent, absent from training, rare, imbalanced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tools.dataset_check import CHECKS
from tools.dataset_check.dataset_statistics import class_counts, pixel_counts
from tools.dataset_check.findings import Finding
from tools.dataset_check.records import DatasetRecords

_RARE_OBJECTS = 10  # fewer training objects make a class rare
_IMBALANCE_RATIO = 100  # between the most and the least frequent class
_MAX_NAMES = 20  # in one message


@CHECKS.register("classes")
def check_classes(records: DatasetRecords) -> Iterator[Finding]:
    """Check the classes of objects and of semantic maps."""
    data = records.data
    if records.splits:
        yield from _check_counts(
            {split: class_counts(records, split) for split in records.splits}, data.names, "objects"
        )
    if records.maps and data.semantic is not None:
        counts = {split: pixel_counts(records, split) for split in records.maps}
        yield from _check_counts(counts, data.semantic.names, "pixels")


def _check_counts(counts: dict[str, np.ndarray], names: Sequence[str], unit: str) -> Iterator[Finding]:
    total = np.sum(list(counts.values()), axis=0)
    absent = [names[number] for number in np.flatnonzero(total == 0).tolist()]
    if absent:
        yield Finding("empty-class", f"{len(absent)} of {len(names)} classes have no {unit}: {_join_names(absent)}")
    if "train" not in counts:
        return
    train = counts["train"]
    for number in np.flatnonzero((train == 0) & (total > 0)).tolist():
        yield Finding("never-trained", f"{names[number]}: {int(total[number])} {unit}, none of them in train", "train")
    present = train[train > 0]
    if unit == "objects":
        few = np.flatnonzero((train > 0) & (train < _RARE_OBJECTS)).tolist()
        rare = [f"{names[number]} ({int(train[number])})" for number in few]
        if rare:
            yield Finding("rare-class", f"{len(rare)} classes: {_join_names(rare)}", "train")
    if len(present) and present.max() > _IMBALANCE_RATIO * present.min():
        most, least = int(train.argmax()), int(np.flatnonzero(train == present.min())[0])
        text = f"{int(train[most])} {unit} of {names[most]}, {int(train[least])} of {names[least]}"
        yield Finding("imbalance", text, "train")


def _join_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
