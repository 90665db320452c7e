"""What running out of memory looks like."""

from __future__ import annotations


def out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch or Python say that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, MemoryError):
        return True
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
