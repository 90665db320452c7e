"""How the C library hands memory back, which a training loop on the CPU should not make it do."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let glibc keep what this process frees instead of returning it to the system, and say whether it will.

    Activations are otherwise mapped, cleared page by page and unmapped in every step, which costs up to a third of the CPU time.
    For a process that trains, called once by its command; the process then keeps its peak memory until it ends. False where the C
    library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * 2**20))
    return mallopt is not None and all(mallopt(name, value) for name, value in settings)
