"""Targets that losses compute on the host, before a batch is moved to the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # keeps --help fast: parsers are built without loading torch
    from torch import device
    from typing_extensions import Self

    from utils.core.contracts import Batch, Loss


class Prepared(Protocol):
    """Targets of one loss for one batch."""

    def to(self, device: device) -> Self:
        """Move the targets to a device without blocking the host."""


@runtime_checkable
class HostTargets(Protocol):
    """A loss whose targets need only the labels and the size of the network's input.

    The engine calls `prepare` before it moves a batch to the device, and hands the result over in `batch.prepared`.
    """

    def prepare(self, batch: Batch, input_hw: tuple[int, int]) -> Prepared:
        """Compute the targets of a batch on the CPU."""


def with_targets(batch: Batch, losses: Mapping[str, Loss], input_hw: tuple[int, int]) -> Batch:
    """Return the batch with the host targets of all losses that have them, by head name."""
    able = {head: loss for head, loss in losses.items() if isinstance(loss, HostTargets)}
    return replace(batch, prepared={head: loss.prepare(batch, input_hw) for head, loss in able.items()})
