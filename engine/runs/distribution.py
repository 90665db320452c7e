"""Several processes at one search, started by ``torchrun``: work is dealt by a shared counter, results are merged by id.

Every rank runs the same program and sees the same merged results in the same order, so all take the same decisions and nobody has
to be told; only rank 0 writes. What is dealt are pure functions of their number, so it does not matter who computes one, or
whether two do: the files are the same for any number of ranks.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigurationError, Preempted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store

    from engine.runs.signals import Stop

# A rank with nothing left to do asks for the missing result this often, and after the patience computes it itself.
POLL_SECONDS = 0.005
PATIENCE_SECONDS = 5.0
GOODBYE_SECONDS = 30.0
CONNECT = timedelta(minutes=5)


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a run: ``rank`` of ``world``, and the key-value store between them."""

    rank: int = 0
    world: int = 1
    store: Store | None = None

    @property
    def lead(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def share(self, label: str, value: Any) -> Any:
        """Return rank 0's ``value`` (JSON types, a few megabytes at most) on every rank; ``label`` may be used once."""
        if self.store is None:
            return value
        with _connected():
            if self.lead:
                self.store.set(label, json.dumps(value))
        return json.loads(self._wait(label, None))

    def share_bytes(self, label: str, data: bytes) -> bytes:
        """Return rank 0's ``data`` of any length on every rank, through the process group."""
        if self.store is None:
            return data
        import torch
        from torch import distributed

        size = self.share(f"{label}/bytes", len(data))
        if not size:
            return b""
        buffer = torch.frombuffer(bytearray(data if self.lead else size), dtype=torch.uint8)
        distributed.broadcast(buffer, src=0)
        return buffer.numpy().tobytes()

    def deal(self, label: str, count: int, work: Callable[[int], Any], stop: Stop | None = None) -> Iterator[Any]:
        """Yield ``work(0)`` to ``work(count - 1)`` in this order on every rank, each computed by whichever rank was free.

        ``work(i)`` is a pure function of ``i`` that returns JSON types; ``label`` may be used once in a run. Alone this is a
        plain loop. Otherwise a rank takes the next number from a shared counter whenever the result that it would have to yield
        next is not there, so uneven costs balance. A number whose result stays away for several times the longest work seen is
        computed again by those who wait: so a rank that hangs delays and does not stop the others. ``stop`` is obeyed between two
        works; what came out of order and was not yielded is then lost, at most one work a rank.
        """
        if self.store is None:
            yield from map(work, range(count))
            return
        longest, taken = 0.0, self._take(label)
        for number in range(count):
            key, asked = f"{label}/{number}", time.monotonic()
            while not self._has(key):
                waited = time.monotonic() - asked
                chosen = taken if taken < count else number if waited > max(PATIENCE_SECONDS, 4 * longest) else None
                if chosen is None:
                    time.sleep(min(POLL_SECONDS, 0.1 * waited + 1e-4))
                else:
                    started = time.monotonic()
                    self._put(f"{label}/{chosen}", work(chosen))
                    longest = max(longest, time.monotonic() - started)
                    taken = self._take(label) if chosen == taken else taken
                if stop is not None:
                    stop.check()
            yield json.loads(self._wait(key, stop))

    def part(self, total: int) -> range:
        """The tasks of a meta-batch of ``total`` that are this rank's, by their number in the whole batch."""
        return range(self.rank, total, self.world)

    def goodbye(self) -> None:
        """Let rank 0, which may hold the store, end after the others; a rank that died is not waited for long."""
        if self.store is None:
            return
        with _connected():
            self.store.add("goodbye", 1)
        started = time.monotonic()
        while self.lead and time.monotonic() - started < GOODBYE_SECONDS:
            with _connected():
                if self.store.add("goodbye", 0) == self.world:
                    return
            time.sleep(POLL_SECONDS)

    def _take(self, label: str) -> int:
        assert self.store is not None
        with _connected():
            return self.store.add(f"{label}/next", 1) - 1

    def _has(self, key: str) -> bool:
        assert self.store is not None
        with _connected():
            return self.store.check([key])

    def _put(self, key: str, value: Any) -> None:
        # The first result stands, should two ranks have computed one.
        assert self.store is not None
        with _connected():
            self.store.compare_set(key, "", json.dumps(value))

    def _wait(self, key: str, stop: Stop | None) -> bytes:
        # Polled, because Python handles no signals while the store's own wait blocks.
        assert self.store is not None
        while not self._has(key):
            time.sleep(POLL_SECONDS)
            if stop is not None:
                stop.check()
        with _connected():
            return self.store.get(key)


ALONE = Ranks()


def world_size() -> int:
    """Processes that torchrun started with this one: its ``WORLD_SIZE``, 1 without it."""
    text = os.environ.get("WORLD_SIZE", "1") if "RANK" in os.environ and "MASTER_ADDR" in os.environ else "1"
    if not text.isascii() or not text.isdigit() or text == "0":
        raise ConfigurationError(f"WORLD_SIZE: {text!r} is not a number of processes; start the command with torchrun")
    return int(text)


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The ranks of the group that ``torchrun`` describes in the environment; :data:`ALONE` outside one.

    Joins a process group of gloo, with NCCL for ``device`` ``"cuda"`` (or ``"auto"`` that finds a GPU), where this process takes
    the GPU of its ``LOCAL_RANK``. Leaves it at the end, rank 0 last.
    """
    if world_size() == 1:
        yield ALONE
        return
    import torch
    from torch import distributed

    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        found, rank, world = next(distributed.rendezvous("env://", timeout=CONNECT))
        store = distributed.PrefixStore(f"engine/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        group = distributed.PrefixStore("group", store)
        distributed.init_process_group(backend, store=group, rank=rank, world_size=world, timeout=CONNECT)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"the ranks do not find each other ({reason}); start the command with torchrun") from None
    try:
        ranks = Ranks(rank, world, store)
        yield ranks
        ranks.goodbye()
    finally:
        distributed.destroy_process_group()


def mean_in_order(ranks: Ranks, own: Mapping[int, Sequence[Tensor]], like: Sequence[Tensor], total: int) -> list[Tensor]:
    """Mean over a meta-batch of ``total`` tasks, of which ``own[t]`` holds the tensors of those in ``ranks.part(total)``.

    ``like`` gives the shapes, dtypes and device of one task's tensors (the meta-parameters themselves). Tasks are added in the
    order of their numbers whoever computed them, so the result is the same, bit for bit, for any number of ranks. Costs a
    broadcast of P numbers a task and one buffer of P; missing or foreign tasks are a ``ValueError``.
    """
    if sorted(own) != list(ranks.part(total)):
        raise ValueError(f"own: tasks {sorted(own)} are not those of rank {ranks.rank}, {list(ranks.part(total))}")
    if total < 1:
        raise ValueError(f"total: expected at least one task, got {total}")
    import torch
    from torch import distributed

    sums = [torch.zeros_like(tensor, requires_grad=False) for tensor in like]
    for task in range(total):
        owner = task % ranks.world
        for i, tensor in enumerate(sums):
            term = own[task][i].detach().contiguous() if task in own else torch.empty_like(tensor)
            if ranks.world > 1:
                distributed.broadcast(term, src=owner)
            tensor += term
    return [tensor / total for tensor in sums]


@contextmanager
def _connected() -> Iterator[None]:
    """Say in one line that the group is gone, where the store's own error is a stack of C++ frames."""
    from torch.distributed import DistError

    try:
        yield
    except DistError:
        raise Preempted("the group of ranks has ended; the work is saved, continue with --resume") from None
