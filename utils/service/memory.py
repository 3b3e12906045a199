"""Memory that the process holds without using it goes back to the system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


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
