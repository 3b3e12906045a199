"""Settings of the C library's memory allocator that prevent fragmentation (glibc only)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_M_MMAP_THRESHOLD = -3  # parameter of mallopt
_LARGE = 2**22  # bytes
_USUAL = 2**25  # bytes; what glibc raises the threshold to once a process has freed a block of this size


@contextmanager
def large_blocks_mapped() -> Iterator[None]:
    """Return blocks of at least 4 MiB to the system as soon as they are freed.

    Otherwise glibc takes blocks of up to 32 MiB from the heap, where the small results that a loop keeps end up between
    them: the holes get too small for the next block, and the process grows with every iteration.
    """
    mallopt = glibc_function("mallopt", ctypes.c_int, ctypes.c_int)
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _USUAL)


@cache
def glibc_function(name: str, *arguments: Any) -> Any:
    """Look up a function of glibc that returns an int; None with other C libraries."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
    if function is not None:
        function.argtypes, function.restype = list(arguments), ctypes.c_int
    return function
