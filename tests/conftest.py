"""Shared fixtures. One thread: two spinning OpenMP threads are many times slower on a busy machine."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """The development data beside the checkout; tests that need it are skipped elsewhere."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the development data is not beside this checkout")
    return SHARED_DATA
