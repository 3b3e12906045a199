"""Classes: never seen, seen only where it is too late, rare, out of balance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tools.dataset_check import CHECKS
from tools.dataset_check.dataset_statistics import class_counts, pixel_counts
from tools.dataset_check.findings import Finding
from tools.dataset_check.records import Gathered

_RARE = 10  # training objects
_IMBALANCE = 100  # times as many
_SHOWN = 20


@CHECKS.register("classes")
def check_classes(gathered: Gathered) -> Iterator[Finding]:
    """Yield findings about the classes of objects, and of pixels."""
    data = gathered.data
    if gathered.splits:
        yield from _judge({split: class_counts(gathered, split) for split in gathered.splits}, data.names, "objects")
    if gathered.maps and data.semantic is not None:
        counts = {split: pixel_counts(gathered, split) for split in gathered.maps}
        yield from _judge(counts, data.semantic.names, "pixels")


def _judge(counts: dict[str, np.ndarray], names: Sequence[str], unit: str) -> Iterator[Finding]:
    total = np.sum(list(counts.values()), axis=0)
    nowhere = [names[number] for number in np.flatnonzero(total == 0).tolist()]
    if nowhere:
        yield Finding("empty-class", f"{len(nowhere)} of {len(names)} classes have no {unit} anywhere: {_few(nowhere)}")
    if "train" not in counts:
        return
    train = counts["train"]
    for number in np.flatnonzero((train == 0) & (total > 0)).tolist():
        yield Finding("never-trained", f"{names[number]}: {int(total[number])} {unit}, none of them in train", "train")
    shown = train[train > 0]
    if unit == "objects":
        few = np.flatnonzero((train > 0) & (train < _RARE)).tolist()
        rare = [f"{names[number]} ({int(train[number])})" for number in few]
        if rare:
            yield Finding("rare-class", f"{len(rare)} classes: {_few(rare)}", "train")
    if len(shown) and shown.max() > _IMBALANCE * shown.min():
        most, least = int(train.argmax()), int(np.flatnonzero(train == shown.min())[0])
        text = f"{int(train[most])} {unit} of {names[most]}, {int(train[least])} of {names[least]}"
        yield Finding("imbalance", text, "train")


def _few(words: Sequence[str]) -> str:
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + more
