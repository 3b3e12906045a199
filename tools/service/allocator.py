"""Settings of glibc's allocator for a process that computes with inputs of many shapes.

Layer outputs differ in size between input shapes and batch sizes. With glibc's defaults every thread has heaps of its
own, which such blocks fragment, so that a service grows under load; and memory that is returned to the system after
each batch has to be cleared again for the next one.
"""

from __future__ import annotations

import ctypes

from utils.core.heap import glibc_function

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # parameters of glibc's mallopt
MMAP_THRESHOLD = 32 * 2**20  # bytes; the largest that glibc accepts. Larger blocks are mapped, and unmapped when free
NEVER_TRIM = 2**31 - 1  # bytes at the end of the heap


def keep_one_heap() -> bool:
    """Let all threads use one heap, whose free memory is used again and not returned to the system.

    The heap grows to what the largest batches need and stays there. Call it before torch starts threads.

    Returns:
        Whether the C library supports it.
    """
    mallopt = glibc_function("mallopt", ctypes.c_int, ctypes.c_int)
    settings = {_M_ARENA_MAX: 1, _M_MMAP_THRESHOLD: MMAP_THRESHOLD, _M_TRIM_THRESHOLD: NEVER_TRIM}
    return mallopt is not None and all([bool(mallopt(name, value)) for name, value in settings.items()])


def release_free_memory() -> bool:
    """Return the free memory of the heap to the system, which takes some milliseconds.

    Returns:
        Whether memory was released; False also where the C library does not support it.
    """
    malloc_trim = glibc_function("malloc_trim", ctypes.c_size_t)
    return malloc_trim is not None and bool(malloc_trim(0))
