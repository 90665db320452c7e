"""A score is a function that any scheduler can send to another process: by pickle, with the same value."""

from __future__ import annotations

import pickle
import subprocess
import sys
from functools import partial

import torch
from torch import nn

from engine import score

WORKER = "import pickle, sys; job = pickle.load(sys.stdin.buffer); sys.stdout.buffer.write(pickle.dumps(job()))"


def test_a_score_is_the_same_in_another_process() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    batch = torch.randn(6, 1, 6, 6, generator=generator), torch.arange(6) % 3
    job = partial(score, model, batch, ("naswot", "params", "snip"))
    here = pickle.dumps(job)
    answer = subprocess.run([sys.executable, "-c", WORKER], input=here, capture_output=True, check=True)
    assert pickle.loads(answer.stdout) == job()
