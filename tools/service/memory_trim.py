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
    set_option = _of_libc("mallopt", ctypes.c_int, ctypes.c_int)
    if set_option is None:
        return False
    return bool(set_option(_MMAP_THRESHOLD, LARGE)) and bool(set_option(_ARENA_MAX, 2))


@cache
def _of_libc(name: str, *arguments: Any) -> Any:
    """Return a function of glibc's that gives an int, None with other C libraries."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
    if function is not None:
        function.argtypes, function.restype = list(arguments), ctypes.c_int
    return function


def give_back() -> bool:
    """Return free memory to the system; tell whether there was any (False as well where the C library cannot).

    Outputs of layers come in another size with every shape and number of images. Between them glibc's heaps keep holes
    that hardly anything fits into, and a service under load would grow by hundreds of MB in the first minutes.
    """
    trim = _of_libc("malloc_trim", ctypes.c_size_t)
    return trim is not None and bool(trim(0))
