"""Tasks of an outer step dealt to the ranks of a process group, and one answer for all of them.

The tasks are cut into pieces of a fixed size. Piece p belongs to rank p mod world, and every rank adds the pieces in the order of
their numbers: so gradients have the same bytes for any number of ranks, one included, as long as the pieces are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from engine.errors import Preempted
from engine.runs.distribution import Ranks
from engine.runs.signals import Stop


def pieces(total: int, size: int) -> list[slice]:
    """Tasks 0 to ``total`` - 1 in pieces of ``size``, the last one smaller where it has to be."""
    return [slice(first, min(first + size, total)) for first in range(0, total, size)]


def in_order(ranks: Ranks, work: Callable[[int], Tensor], sizes: Sequence[int], like: Tensor) -> Iterator[Tensor]:
    """Yield ``work(0)``, ``work(1)``, ... on every rank, flat and of these ``sizes``, each computed by the rank it belongs to.

    Alone a piece is computed when its turn comes, so memory may be reused for the next one; otherwise a rank computes all its
    pieces before the first broadcast. ``like`` gives dtype and device. A group that lost a rank is
    :class:`~engine.errors.Preempted`.
    """
    if ranks.world == 1:
        yield from map(work, range(len(sizes)))
        return
    own = {number: work(number) for number in ranks.part(len(sizes))}
    for number, size in enumerate(sizes):
        piece = own[number] if number in own else like.new_empty(size)
        try:
            distributed.broadcast(piece, src=number % ranks.world)
        except RuntimeError:  # gloo and NCCL say it in stacks of C++ frames
            raise Preempted("the group of ranks has ended; the work is saved, continue with --resume") from None
        yield piece


class GroupStop(Stop):
    """A request to stop that all ranks obey at the same step: a rank tells :attr:`own`, and obeys what :meth:`agree` was told.

    Alone it is the plain :class:`~engine.runs.signals.Stop`.
    """

    def __init__(self, stop: Stop, ranks: Ranks) -> None:
        super().__init__()
        self._stop, self._alone, self._agreed = stop, ranks.world == 1, False

    @property
    def own(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._stop.requested

    def agree(self, asked: bool) -> None:
        """Take note of whether some rank was asked."""
        self._agreed = self._agreed or asked

    @property
    def requested(self) -> bool:
        """Whether to stop now."""
        return self._stop.requested if self._alone else self._agreed

    def check(self) -> None:
        """Raise what :meth:`engine.runs.signals.Stop.check` raises, if it is time to."""
        if self.requested:
            self._stop.check()
            raise Preempted("another rank was stopped; the work is saved, continue with --resume")


class Reduced(NamedTuple):
    """The sum of all pieces: outer gradient (P,), shares of right answers and losses (2, T), and whether a rank asks to stop."""

    gradient: Tensor
    facts: Tensor
    asked: bool


def reduce_pieces(ranks: Ranks, work: Callable[[int], Tensor], parts: Sequence[slice], parameters: int, like: Tensor) -> Reduced:
    """Add the pieces in order.

    ``work(p)`` is piece p of c tasks, flat: the ``parameters`` numbers of its gradient's sum, c shares of right answers, c
    losses, and a flag that is not zero where its rank asks for a stop. The gradient may lie in the memory of a piece. Costs a
    broadcast of each piece, and where ranks share the work the flag synchronises with the device.
    """
    sizes = [parameters + 2 * (part.stop - part.start) + 1 for part in parts]
    total, facts, flags = like.new_zeros(0), [], []
    for number, piece in enumerate(in_order(ranks, work, sizes, like)):
        if number:
            total.add_(piece[:parameters])
        else:
            total = piece[:parameters] if len(parts) == 1 else piece[:parameters].clone()
        facts.append(piece[parameters:-1].view(2, -1).clone())
        flags.append(piece[-1:].clone())
    asked = ranks.world > 1 and bool(torch.cat(flags).any())
    return Reduced(total, torch.cat(facts, dim=1), asked)
