"""A rank of a torchrun group in test_meta_ranks.py: a search of which rank 1 dies once, or is asked to stop once."""

from __future__ import annotations

import os
import signal
import sys

import torch

from engine.methods.meta_learner import Learner
from engine.search import main


def interrupt_once(number: int, at: int) -> None:
    """Let rank 1 of the first attempt send itself a signal in outer step ``at``."""
    plain = Learner.step

    def mortal(self, tasks, step, *rest):
        if step == at:
            os.kill(os.getpid(), number)
        return plain(self, tasks, step, *rest)

    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        Learner.step = mortal


if __name__ == "__main__":
    name, at, *words = sys.argv[1:]
    torch.set_num_threads(1)
    interrupt_once(getattr(signal, name), int(at))
    sys.exit(main(words))
