"""Return unused memory of the process to the operating system (glibc only)."""

from __future__ import annotations

import ctypes

from utils.core.heap import glibc_function

_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3  # parameters of glibc's mallopt
MMAP_THRESHOLD = 2**20  # bytes; larger blocks are mapped separately
MAX_ARENAS = 2


def release_large_blocks_immediately() -> bool:
    """Configure the allocator to return large blocks to the system as soon as they are freed.

    The process then holds only what it uses. Since the system clears the same memory again and again, inference takes
    about a quarter longer.

    Returns:
        Whether the C library supports it.
    """
    mallopt = glibc_function("mallopt", ctypes.c_int, ctypes.c_int)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)) and bool(mallopt(_M_ARENA_MAX, MAX_ARENAS))


def release_free_memory() -> bool:
    """Return free heap memory to the system.

    Layer outputs differ in size between input shapes and batch sizes, which fragments glibc's heaps: a service under
    load would otherwise grow by hundreds of MB in the first minutes.

    Returns:
        Whether memory was released; False also where the C library does not support it.
    """
    malloc_trim = glibc_function("malloc_trim", ctypes.c_size_t)
    return malloc_trim is not None and bool(malloc_trim(0))
