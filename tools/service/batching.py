"""Images of many requests go through the network together: dynamic batching with a bounded queue."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


class FullError(Exception):
    """More images are in work than may."""


class StoppedError(Exception):
    """The service is shutting down."""


class WorkError(Exception):
    """The network failed on this item; the cause is the exception."""


@dataclass
class _Job:
    item: Any
    key: Hashable
    result: asyncio.Future[Any]
    born: float = field(default_factory=time.monotonic)


class Batcher:
    """Collect items with equal keys for a moment, then hand up to `most(key)` of them to `work` in one thread.

    An item's result does not depend on what shares its batch, as long as `work` keeps that promise. Items whose
    request has gone are left out. When `work` raises on several items it is asked again for each alone, so that one
    that cannot be worked on spoils no other; that one's request gets WorkError, and the batcher goes on.
    """

    def __init__(
        self,
        work: Callable[[Hashable, Sequence[Any]], Sequence[Any]],
        most: Callable[[Hashable], int],
        max_wait_s: float,
        max_items: int,
        watch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.work, self.most, self.max_wait_s, self.max_items = work, most, max_wait_s, max_items
        self._watch = watch
        self._waiting: deque[_Job] = deque()
        self._taken = 0  # places: items that are received, prepared, wait or are worked on
        self._something = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, "network")
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def __len__(self) -> int:
        """Return how many items wait for the network."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to serve; call it inside the event loop."""
        self._task = asyncio.create_task(self._run())

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Hold `count` of the `max_items` places; FullError where so many are not free, StoppedError at the end."""
        if self._stopped:
            raise StoppedError
        if self._taken + count > self.max_items:
            raise FullError
        self._taken += count
        try:
            yield
        finally:
            self._taken -= count

    async def submit(self, items: Sequence[Any], keys: Sequence[Hashable]) -> list[Any]:
        """Return the results of some items. Who is cancelled here frees the network of them."""
        if self._stopped:
            raise StoppedError
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
        while not (self._stopped and not self._waiting):
            jobs = await self._collect()
            if jobs:
                await self._serve(jobs)

    async def _serve(self, jobs: Sequence[_Job]) -> None:
        self._watch(len(jobs))
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, self._worked, jobs[0].key, [job.item for job in jobs])
        await asyncio.wait({future})
        error = future.exception()
        if error is None:
            for job, result in zip(jobs, future.result(), strict=True):
                if not job.result.done():
                    job.result.set_result(result)
        elif len(jobs) > 1:
            for job in jobs:
                if not job.result.done():
                    await self._serve([job])
        elif not jobs[0].result.done():
            failed = WorkError(str(error))
            failed.__cause__ = error
            jobs[0].result.set_exception(failed)

    def _worked(self, key: Hashable, items: Sequence[Any]) -> Sequence[Any]:
        results = self.work(key, items)
        if len(results) != len(items):
            raise RuntimeError(f"{len(items)} items were given, {len(results)} results came back")
        return results

    async def _collect(self) -> list[_Job]:
        """Return jobs with the key of the oldest one, once there are enough or it has waited long enough."""
        if not self._waiting:
            self._something.clear()
            await self._something.wait()
            if not self._waiting:
                return []
        oldest = self._waiting[0]
        while not self._stopped and self._count(oldest.key) < self.most(oldest.key):
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
        most = self.most(key)
        for job in self._waiting:
            if job.result.done():  # its request has gone
                continue
            (taken if job.key == key and len(taken) < most else left).append(job)
        self._waiting = left
        return taken

    async def stop(self) -> None:
        """Finish what waits, then stop."""
        self._stopped = True
        self._something.set()
        if self._task is not None:
            await self._task
        self._pool.shutdown()
