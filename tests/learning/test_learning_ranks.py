"""Outer gradients in pieces: the same bytes for any number of ranks, and one answer to a request to stop."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.func import functional_call

from engine.errors import Interrupted, Preempted
from engine.learning.masked_mlp import mlp_batch
from engine.learning.outer import Problem, meta_gradient, summed_gradient
from engine.learning.ranks import GroupStop, Reduced, pieces, reduce_pieces
from engine.learning.tasks import Task
from engine.runs.distribution import ALONE, Ranks
from engine.runs.signals import Stop
from engine.runs.streams import stream
from engine.spaces.networks import MLP, initialise

TASKS, SIZE = 5, 2


def reduced(ranks: Ranks, dtype: torch.dtype, size: int = SIZE, asking: int | None = None) -> Reduced:
    """The gradient of five tasks of a small MLP in pieces of ``size``; rank ``asking`` asks for a stop."""
    model = MLP(6, (5,), 3)
    initialise(model, stream(0, "ranks"))
    params = {name: value.detach().to(dtype) for name, value in model.named_parameters()}
    problem = Problem(lambda p, x: functional_call(model, p, (x,)), dict.fromkeys(params, 0.3), 1, tuple(params))
    x = torch.rand(2, TASKS, 6, 6, generator=stream(0, "ranks-tasks"), dtype=dtype)
    labels = (torch.arange(6) % 3).expand(TASKS, 6).contiguous()
    tasks, run, parts = Task(x[0], labels, x[1], labels), mlp_batch(problem, model), pieces(TASKS, size)

    def work(number: int) -> Tensor:
        sums = summed_gradient(run, params, tasks.take(parts[number]))
        flag = sums.losses.new_full((1,), float(ranks.rank == asking))
        return torch.cat([*(g.flatten() for g in sums.gradients.values()), sums.losses, sums.losses, flag])

    count = sum(value.numel() for value in params.values())
    if size == TASKS:
        whole = meta_gradient(run, params, tasks)
        return Reduced(torch.cat([g.flatten() for g in whole.gradients.values()]) * TASKS, whole.losses, False)
    return reduce_pieces(ranks, work, parts, count, x.new_zeros(0))


def work(rank: int, world: int, place: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=world)
    ranks = Ranks(rank, world)
    found = [reduced(ranks, dtype, size) for dtype in (torch.float32, torch.float64) for size in (1, 2)]
    assert reduced(ranks, torch.float32, asking=1).asked
    torch.save([tuple(each) for each in found], f"{place}/{rank}.pt")
    distributed.barrier()
    if rank == 0:
        distributed.destroy_process_group()
    else:
        with pytest.raises(Preempted, match="the group of ranks has ended"):
            reduced(ranks, torch.float32)


def test_any_number_of_ranks_gives_the_same_bytes(tmp_path: Path) -> None:
    """Four ranks with five pieces, and with three, so that one has nothing to do."""
    multiprocessing.spawn(work, (4, str(tmp_path)), nprocs=4)
    expected = [reduced(ALONE, dtype, size) for dtype in (torch.float32, torch.float64) for size in (1, 2)]
    for rank in range(4):
        for found, alone in zip(torch.load(tmp_path / f"{rank}.pt", weights_only=True), expected, strict=True):
            assert torch.equal(found[0], alone.gradient)
            assert torch.equal(found[1], alone.facts)
            assert not found[2]


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_pieces_change_rounding_only(dtype: torch.dtype, close: float) -> None:
    whole, parts = reduced(ALONE, dtype, TASKS), reduced(ALONE, dtype)
    torch.testing.assert_close(parts.gradient, whole.gradient, rtol=0, atol=close * float(whole.gradient.norm()))
    torch.testing.assert_close(parts.facts[1], whole.facts, rtol=close, atol=0)


def test_a_rank_obeys_what_the_group_agreed_on() -> None:
    asked, quiet = Stop(), Stop()
    asked._handle(signal.SIGTERM, None)
    first, second = GroupStop(asked, Ranks(0, 2)), GroupStop(quiet, Ranks(1, 2))
    assert first.own
    assert not first.requested
    first.check()
    for stop in (first, second):
        stop.agree(True)
        stop.agree(False)
        assert stop.requested
    with pytest.raises(Preempted, match="stopped by SIGTERM"):
        first.check()
    with pytest.raises(Preempted, match="another rank was stopped"):
        second.check()


def test_alone_a_stop_is_obeyed_at_once() -> None:
    plain = Stop()
    stop = GroupStop(plain, ALONE)
    stop.check()
    plain._signal = signal.SIGINT
    assert stop.requested
    with pytest.raises(Interrupted):
        stop.check()
