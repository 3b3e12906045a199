"""Worker processes that make batches in chunks; they outlive the epochs."""

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

Chunk = tuple[BatchPlan, ...]  # successive batches that one worker makes


class Crew:
    """Has `maker` make batches: `maker[chunk]` returns the batches of a chunk and what befell their files.

    With 0 workers the batches are made in this process. What befell a file is told once.
    """

    def __init__(self, maker: Dataset[Any], workers: int) -> None:
        self.maker, self.workers = maker, workers
        self.told: set[str] = set()
        self._tasks = _Tasks()
        self._loader: DataLoader[Any] | None = None

    def batches(self, chunks: list[Chunk]) -> Iterator[Batch]:
        """Yield the batches of the chunks in order; an iterator left half way does not disturb the next."""
        self._tasks.chunks = chunks
        if self._loader is None:
            self._loader = self._open()
        for batches, faults in self._loader:
            self._tell(faults)
            yield from batches

    def _open(self) -> DataLoader[Any]:
        parallel: dict[str, Any] = {}
        if self.workers:
            context = "fork" if sys.platform == "linux" else None  # forked workers share the index and the cache
            parallel = {"persistent_workers": True, "prefetch_factor": 2, "multiprocessing_context": context}
        return DataLoader(
            self.maker,
            batch_size=None,
            sampler=self._tasks,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # its own: a resumed epoch must not draw from the training's random numbers
            **parallel,
        )

    def _tell(self, faults: list[str]) -> None:
        """Warn once about each file that turned out unreadable."""
        for fault in faults:
            if fault not in self.told:
                self.told.add(fault)
                LOGGER.warning(fault)


class _Tasks(Sampler[Chunk]):
    """The chunks of the coming epoch."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
