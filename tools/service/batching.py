"""Dynamic batching: items of concurrent requests are processed together, with a bounded number in progress."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

IDLE_S = 10.0


class QueueFullError(Exception):
    """The number of items in progress has reached its limit."""


class ShuttingDownError(Exception):
    """The service accepts no more items."""


class InferenceError(Exception):
    """Processing of this item failed; the cause is the original exception."""


@dataclass
class _Job:
    item: Any
    key: Hashable
    result: asyncio.Future[Any]
    created: float = field(default_factory=time.monotonic)


class Batcher:
    """Collect items with equal keys for a short time and process them together in one thread.

    Items of cancelled requests are skipped. When a batch fails, each of its items is processed again by itself, so
    that only the requests of failing items get an `InferenceError`.

    Args:
        process: Computes the results of items with a common key, in their order. The result of an item must not
            depend on the other items.
        max_batch_size: Maximum number of items per batch, by key.
        max_wait_s: How long the first item of a batch waits for others.
        max_items: Maximum number of items in progress, see `reserve`.
        on_batch: Called with the size of every batch.
        on_idle: Called in the thread once no items have come for `IDLE_S` seconds.
    """

    def __init__(
        self,
        process: Callable[[Hashable, Sequence[Any]], Sequence[Any]],
        max_batch_size: Callable[[Hashable], int],
        max_wait_s: float,
        max_items: int,
        on_batch: Callable[[int], None] = lambda size: None,
        on_idle: Callable[[], object] = lambda: None,
    ) -> None:
        self.process, self.max_batch_size = process, max_batch_size
        self.max_wait_s, self.max_items = max_wait_s, max_items
        self._on_batch, self._on_idle = on_batch, on_idle
        self._queue: deque[_Job] = deque()
        self._reserved = 0
        self._changed = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, "network")
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def __len__(self) -> int:
        """Count the items in the queue."""
        return len(self._queue)

    def start(self) -> None:
        """Start processing; must be called inside the event loop."""
        self._task = asyncio.create_task(self._run())

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Count items as in progress: while they are received, prepared, queued and processed.

        Args:
            count: Number of items.

        Raises:
            QueueFullError: The limit `max_items` would be exceeded.
            ShuttingDownError: `stop` has been called.
        """
        if self._stopped:
            raise ShuttingDownError
        if self._reserved + count > self.max_items:
            raise QueueFullError
        self._reserved += count
        try:
            yield
        finally:
            self._reserved -= count

    async def submit(self, items: Sequence[Any], keys: Sequence[Hashable]) -> list[Any]:
        """Process items and wait for their results. Cancellation removes them from the queue.

        Args:
            items: The items.
            keys: Key of each item.

        Returns:
            Result of each item.

        Raises:
            InferenceError: An item failed.
            ShuttingDownError: `stop` has been called.
        """
        if self._stopped:
            raise ShuttingDownError
        loop = asyncio.get_running_loop()
        jobs = [_Job(item, key, loop.create_future()) for item, key in zip(items, keys, strict=True)]
        self._queue.extend(jobs)
        self._changed.set()
        try:
            return list(await asyncio.gather(*(job.result for job in jobs)))
        finally:
            for job in jobs:
                job.result.cancel()  # has no effect on results that were received

    async def _run(self) -> None:
        while not (self._stopped and not self._queue):
            jobs = await self._collect()
            if jobs:
                await self._process(jobs)

    async def _process(self, jobs: Sequence[_Job]) -> None:
        self._on_batch(len(jobs))
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, self._call, jobs[0].key, [job.item for job in jobs])
        await asyncio.wait({future})
        error = future.exception()
        if error is None:
            for job, result in zip(jobs, future.result(), strict=True):
                if not job.result.done():
                    job.result.set_result(result)
        elif len(jobs) > 1:
            for job in jobs:
                if not job.result.done():
                    await self._process([job])
        elif not jobs[0].result.done():
            failure = InferenceError(str(error))
            failure.__cause__ = error
            jobs[0].result.set_exception(failure)

    def _call(self, key: Hashable, items: Sequence[Any]) -> Sequence[Any]:
        results = self.process(key, items)
        if len(results) != len(items):
            raise RuntimeError(f"{len(results)} results for {len(items)} items")
        return results

    async def _collect(self) -> list[_Job]:
        """Wait until the oldest job has a full batch or has waited long enough; remove its batch from the queue."""
        if not self._queue:
            self._changed.clear()
            await self._wait_for_items()
            if not self._queue:
                return []
        oldest = self._queue[0]
        while not self._stopped and self._count(oldest.key) < self.max_batch_size(oldest.key):
            remaining = oldest.created + self.max_wait_s - time.monotonic()
            if remaining <= 0:
                break
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), remaining)
            except asyncio.TimeoutError:
                break
        return self._take(oldest.key)

    async def _wait_for_items(self) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), IDLE_S)
        except (asyncio.TimeoutError, TimeoutError):
            await asyncio.get_running_loop().run_in_executor(self._pool, self._on_idle)
            await self._changed.wait()

    def _count(self, key: Hashable) -> int:
        return sum(job.key == key for job in self._queue)

    def _take(self, key: Hashable) -> list[_Job]:
        taken: list[_Job] = []
        remaining: deque[_Job] = deque()
        limit = self.max_batch_size(key)
        for job in self._queue:
            if job.result.done():  # its request was cancelled
                continue
            (taken if job.key == key and len(taken) < limit else remaining).append(job)
        self._queue = remaining
        return taken

    async def stop(self) -> None:
        """Process the remaining items, then stop."""
        self._stopped = True
        self._changed.set()
        if self._task is not None:
            await self._task
        self._pool.shutdown()
