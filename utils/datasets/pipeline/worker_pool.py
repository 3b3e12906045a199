"""Persistent worker processes that create batches; killed workers are replaced."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.core.contracts import Batch
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.datasets.pipeline.batch_plan import BatchPlan
from utils.datasets.pipeline.worker_watch import WorkerWatch, describe_end

Chunk = tuple[BatchPlan, ...]  # successive batches created by one worker
_PREFETCHED_CHUNKS = 2  # per worker
_RESTARTS = 3  # successive ones without a new batch
_CONNECTION_ERRORS = (RuntimeError, OSError, EOFError)  # raised by torch and multiprocessing when a worker is gone
_DEATH_WAIT_S = 2.0  # a lost connection may be noticed before the death of the process


class WorkerPool:
    """Creates batches in `workers` processes, or in this one if `workers` is 0.

    `factory[chunk]` returns the batches of a chunk and the faults of their files; each fault is logged once. After the
    death of a worker, all workers are started again at the first chunk that is missing. With `pin`, batches are in
    page-locked memory.
    """

    def __init__(self, factory: Dataset[tuple[list[Batch], list[str]]], workers: int, pin: bool = False) -> None:
        self.factory, self.workers, self.pin = factory, workers, pin
        self.processes: list[BaseProcess] = []  # the workers, once they are started
        # before torch's iterator is deleted, which waits 5 s or more for a worker that does not end by itself
        weakref.finalize(self, _end, self.processes).atexit = False
        self._logged: set[str] = set()
        self._chunks = _Chunks()
        self._loader: DataLoader[Any] | None = None

    def batches(self, chunks: list[Chunk]) -> Iterator[Batch]:
        """Iterate over the batches of chunks in order; abandoning an iterator does not affect the next one.

        Raises:
            UserError: If workers die again and again without creating a batch.
        """
        done = restarts = 0
        while done < len(chunks):
            self._chunks.chunks = chunks[done:]
            try:
                for batches, faults in self._results():
                    done, restarts = done + 1, 0
                    self._log(faults)
                    yield from batches
            except _CONNECTION_ERRORS as error:
                ends = self._ends()
                if not ends:
                    raise
                restarts += 1
                self.close()
                if restarts > _RESTARTS:
                    raise UserError(
                        f"{ends}, {restarts} times without creating a batch; use fewer --workers if memory is short, "
                        "or --workers 0 to see the cause"
                    ) from error
                LOGGER.warning(f"{ends}; starting the workers again at the same batch")

    def _results(self) -> Iterator[tuple[list[Batch], list[str]]]:
        """Iterate over the results of the current chunks, watching the workers."""
        if self._loader is None:
            self._loader = self._create_loader()
        if not self.workers:
            yield from self._loader
            return
        others = set(active_children())
        on_death = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        results = iter(self._loader)
        if on_death is not None and threading.current_thread() is threading.main_thread():
            # torch's handler would raise an error in the middle of a step of the training
            signal.signal(signal.SIGCHLD, on_death)
        if not self.processes:
            self.processes += sorted(set(active_children()) - others, key=lambda process: process.pid or 0)
            _WORKERS.update(self.processes)
        with WorkerWatch(self.processes) as watch:
            while True:
                with watch.waiting():
                    result = next(results, None)
                if result is None:
                    return
                yield result

    def _log(self, faults: list[str]) -> None:
        for fault in faults:
            if fault not in self._logged:
                self._logged.add(fault)
                LOGGER.warning(fault)

    def _ends(self) -> str:
        """Describe how workers ended; empty if all are alive."""
        limit = time.monotonic() + _DEATH_WAIT_S
        while time.monotonic() < limit:
            ended = [
                describe_end(number, process) for number, process in enumerate(self.processes) if not process.is_alive()
            ]
            if ended or not self.processes:
                return ", ".join(ended)
            time.sleep(0.05)
        return ""

    def close(self) -> None:
        """End the workers at once."""
        for process in self.processes:
            process.kill()  # they ignore SIGTERM
        for process in self.processes:
            process.join()
        self.processes.clear()
        self._loader = None

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
            worker_init_fn=_WorkerStart(),
            generator=torch.Generator(),  # a resumed epoch must not draw from the training's global generator
            **parallel,
        )


_WORKERS: weakref.WeakSet[BaseProcess] = weakref.WeakSet()  # of all pools, also of pools that no longer exist


@atexit.register
def _end_workers() -> None:
    """End all workers before multiprocessing's own exit function, which waits for them after a SIGTERM."""
    _end(_WORKERS)


def _end(processes: Iterable[BaseProcess]) -> None:
    """Kill those of some workers that this process has started; a forked process has copies of the lists."""
    own = active_children()
    for process in processes:
        if process in own:
            process.kill()


class _Chunks(Sampler[Chunk]):
    """Chunks of the next epoch."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)


class _WorkerStart:
    """First call in a worker."""

    def __init__(self) -> None:
        self.parent = os.getpid()
        self.in_main_thread = threading.current_thread() is threading.main_thread()

    def __call__(self, _: int) -> None:
        """Leave signals to the main process, and end with it."""
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        if sys.platform == "linux" and self.in_main_thread:  # Linux ends the worker with the thread that started it
            torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
            if os.getppid() != self.parent:
                os._exit(1)
        gc.freeze()  # a worker must not collect loaders of earlier trainings in the process that it was forked from
        cv2.setNumThreads(0)
        torch.set_num_threads(1)
