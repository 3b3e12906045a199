"""Memory that the process holds without using it goes back to the system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

_ARENA_MAX, _MMAP_THRESHOLD = -8, -3  # of glibc's mallopt
LARGE = 2**20  # bytes from which a block is mapped by itself


def hold_level() -> bool:
    """Let the system have every large block as soon as it is free; tell whether the C library can.

    The process then holds what it uses and no more. The price is that the system clears the same memory again and
    again, which takes a quarter of the time.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if set_option is None:
        return False
    set_option.argtypes, set_option.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return bool(set_option(_MMAP_THRESHOLD, LARGE)) and bool(set_option(_ARENA_MAX, 2))


@cache
def _trim() -> Any:
    """Return glibc's `malloc_trim`, None with other C libraries."""
    if not sys.platform.startswith("linux"):
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim


def give_back() -> bool:
    """Return free memory to the system; tell whether there was any (False as well where the C library cannot).

    Outputs of layers come in another size with every shape and number of images. Between them glibc's heaps keep holes
    that hardly anything fits into, and a service under load would grow by hundreds of MB in the first minutes.
    """
    trim = _trim()
    return trim is not None and bool(trim(0))
