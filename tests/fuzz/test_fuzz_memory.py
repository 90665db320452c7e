"""Memory that runs out anywhere in the scoring of a batch: half the candidates are scored, with the numbers they always have.

Sites are operators and the lines of the library that call them; ``--fuzz-inputs 100000`` fails at every one of them.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.methods.metantk_nas import make_pruning
from engine.methods.options import MetaNTKNASOptions, TENASOptions
from engine.methods.scorer import Scorer, load_images
from engine.methods.steps import Batch
from engine.spaces.space import Space, dense_edges

TOY = Space(name="toy", operations=("none", "skip_connect", "conv_3x3", "max_pool_3x3BN"), nodes=1, edges=dense_edges(1))
Site = tuple[str, str, int]


def place() -> tuple[str, int]:
    """The innermost line of the library that is being executed."""
    frame = sys._getframe(2)
    while frame.f_back is not None and "/engine/" not in frame.f_code.co_filename and "/kernels/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


class Allocations(TorchDispatchMode):
    """Notes each site (operator and line of the library) that a computation passes, and fails the first time at one of them."""

    def __init__(self, failing: Site | None = None) -> None:
        super().__init__()
        self.sites: dict[Site, None] = {}
        self.failing = failing

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        site = (str(func), *place())
        self.sites[site] = None
        if site == self.failing:
            self.failing = None
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [MetaNTKNASOptions(), TENASOptions()], ids=lambda options: type(options).__name__)
def test_memory_that_runs_out_at_any_site_halves_the_width_and_changes_no_number(options: Any, fuzz_inputs: int) -> None:
    options = type(options)(cells=2, channels=4, region_images=10, width=4, device="cpu")
    scorer = Scorer(options, TOY, load_images(options))
    pruning = make_pruning(TOY, options)
    state = pruning.start(TOY.alive())
    candidates = pruning.candidates(state)[:4]
    with Allocations():  # under a mode torch takes some operators apart, which moves last bits
        half = scorer.found(state, 0, Batch(0, candidates[:2])).pairs
    scorer.kernel._drawn = None  # what is drawn once is to be drawn again
    with Allocations() as seen:
        whole = scorer.found(state, 0, Batch(0, candidates))
    assert len(seen.sites) > 100
    assert whole.width == 4
    for site in list(seen.sites)[:: 1 + 8 * len(seen.sites) // fuzz_inputs]:
        scorer.width, scorer.kernel._drawn = 4, None
        with Allocations(site) as failing:
            found = scorer.found(state, 0, Batch(0, candidates))
        assert failing.failing is None, site
        assert (found.width, found.pairs) == (2, half), site
