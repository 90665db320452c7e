"""Random numbers by address (design rule 4).

A draw belongs to *what it is for*, not to how many numbers were drawn before it, so a resumed run, a run on two
ranks and an uninterrupted run see the same numbers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def address_seed(seed: int, purpose: str, *indices: int | str) -> int:
    """Return the 63-bit seed of the address ``(seed, purpose, *indices)``.

    The parts are hashed with their lengths, so no two different addresses share an encoding.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, purpose, *indices):
        text = repr(part).encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def stream(seed: int, purpose: str, *indices: int | str) -> torch.Generator:
    """Return a fresh CPU generator for the address ``(seed, purpose, *indices)``.

    Generators live on the CPU whatever the device of the run, so that CPU and GPU runs draw the same numbers; callers
    move what they drew.
    """
    import torch

    return torch.Generator().manual_seed(address_seed(seed, purpose, *indices))
