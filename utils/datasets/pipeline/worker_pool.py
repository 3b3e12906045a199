"""Persistent worker processes that create batches."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.core.contracts import Batch
from utils.core.log import LOGGER
from utils.datasets.pipeline.batch_plan import BatchPlan

Chunk = tuple[BatchPlan, ...]  # successive batches created by one worker
_PREFETCHED_CHUNKS = 2  # per worker


class WorkerPool:
    """Creates batches in `workers` processes, or in this one if `workers` is 0.

    `factory[chunk]` returns the batches of a chunk and the faults of their files; each fault is logged once.
    With `pin`, batches are in page-locked memory.
    """

    def __init__(self, factory: Dataset[tuple[list[Batch], list[str]]], workers: int, pin: bool = False) -> None:
        self.factory, self.workers, self.pin = factory, workers, pin
        self._logged: set[str] = set()
        self._chunks = _Chunks()
        self._loader: DataLoader[Any] | None = None

    def batches(self, chunks: list[Chunk]) -> Iterator[Batch]:
        """Iterate over the batches of chunks in order; abandoning an iterator does not affect the next one."""
        self._chunks.chunks = chunks
        if self._loader is None:
            self._loader = self._create_loader()
        for batches, faults in self._loader:
            for fault in faults:
                if fault not in self._logged:
                    self._logged.add(fault)
                    LOGGER.warning(fault)
            yield from batches

    def _create_loader(self) -> DataLoader[Any]:
        parallel: dict[str, Any] = {}
        if self.workers:
            context = "fork" if sys.platform == "linux" else None  # forked workers share the index and the cache
            parallel = {"persistent_workers": True, "prefetch_factor": _PREFETCHED_CHUNKS}
            parallel["multiprocessing_context"] = context
        return DataLoader(
            self.factory,
            batch_size=None,
            sampler=self._chunks,
            num_workers=self.workers,
            pin_memory=self.pin,
            worker_init_fn=_init_worker,
            generator=torch.Generator(),  # a resumed epoch must not draw from the training's global generator
            **parallel,
        )


class _Chunks(Sampler[Chunk]):
    """Chunks of the next epoch."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)


def _init_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
