"""Images of many requests go through the network together: dynamic batching with a bounded queue."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


class FullError(Exception):
    """More images wait than may."""


class StoppedError(Exception):
    """The service is shutting down."""


@dataclass
class _Job:
    item: Any
    key: Hashable
    result: asyncio.Future[Any]
    born: float = field(default_factory=time.monotonic)


class Batcher:
    """Collect items with equal keys for a moment, then hand up to `max_batch` of them to `work` in one thread.

    An item's result does not depend on what shares its batch, as long as `work` keeps that promise. Items whose
    request has gone are left out.
    """

    def __init__(
        self,
        work: Callable[[Hashable, Sequence[Any]], Sequence[Any]],
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        watch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.work, self.max_batch, self.max_wait_s, self.max_queue = work, max_batch, max_wait_s, max_queue
        self._watch = watch
        self._waiting: deque[_Job] = deque()
        self._something = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, "network")
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def __len__(self) -> int:
        """Return how many items wait."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to serve; call it inside the event loop."""
        self._task = asyncio.create_task(self._run())

    async def submit(self, items: Sequence[Any], keys: Sequence[Hashable]) -> list[Any]:
        """Return the results of some items; FullError if they do not all fit into the queue."""
        if self._stopped:
            raise StoppedError
        if len(self._waiting) + len(items) > self.max_queue:
            raise FullError
        loop = asyncio.get_running_loop()
        jobs = [_Job(item, key, loop.create_future()) for item, key in zip(items, keys, strict=True)]
        self._waiting.extend(jobs)
        self._something.set()
        try:
            return list(await asyncio.gather(*(job.result for job in jobs)))
        finally:
            for job in jobs:
                job.result.cancel()  # of those that nobody will read

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not (self._stopped and not self._waiting):
            jobs = await self._collect()
            if not jobs:
                continue
            self._watch(len(jobs))
            try:
                results = await loop.run_in_executor(self._pool, self.work, jobs[0].key, [job.item for job in jobs])
            except Exception as error:
                for job in jobs:
                    if not job.result.done():
                        job.result.set_exception(error)
                if not isinstance(error, (ValueError, RuntimeError, MemoryError, OSError)):
                    raise
                continue
            for job, result in zip(jobs, results, strict=True):
                if not job.result.done():
                    job.result.set_result(result)

    async def _collect(self) -> list[_Job]:
        """Return jobs with the key of the oldest one, once there are enough or it has waited long enough."""
        if not self._waiting:
            self._something.clear()
            await self._something.wait()
            if not self._waiting:
                return []
        oldest = self._waiting[0]
        while not self._stopped and self._count(oldest.key) < self.max_batch:
            left = oldest.born + self.max_wait_s - time.monotonic()
            if left <= 0:
                break
            self._something.clear()
            try:
                await asyncio.wait_for(self._something.wait(), left)
            except asyncio.TimeoutError:
                break
        return self._take(oldest.key)

    def _count(self, key: Hashable) -> int:
        return sum(job.key == key for job in self._waiting)

    def _take(self, key: Hashable) -> list[_Job]:
        taken: list[_Job] = []
        left: deque[_Job] = deque()
        for job in self._waiting:
            if job.result.done():  # its request has gone
                continue
            (taken if job.key == key and len(taken) < self.max_batch else left).append(job)
        self._waiting = left
        return taken

    async def stop(self) -> None:
        """Finish what waits, then stop."""
        self._stopped = True
        self._something.set()
        if self._task is not None:
            await self._task
        self._pool.shutdown()
