"""The kinds of few-shot tasks that a network is tested on, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.data.episodes import Episodes, sample_episodes
from engine.errors import ConfigurationError
from engine.evaluation.options import FewShotTestOptions, TaskShape
from engine.evaluation.protocol import Protocol
from engine.runs.streams import stream


@dataclass(frozen=True)
class Kind:
    """Tasks of one shape. ``where`` is empty, or for Omniglot "across alphabets" or "within an alphabet"."""

    shape: TaskShape
    where: str = ""

    @property
    def name(self) -> str:
        """Such as ``20-way 1-shot across alphabets``."""
        return f"{self.shape.name} {self.where}".rstrip()


def kinds_of(options: FewShotTestOptions, protocol: Protocol) -> list[Kind]:
    """Every kind that the options ask for; within an alphabet only where one has enough characters.

    Data that cannot give such tasks is a :class:`ConfigurationError`, so that no training is lost on it.
    """
    if not protocol.alphabets:
        kinds = [Kind(shape) for shape in options.task_shapes]
    else:
        largest = max(map(len, protocol.alphabets.values()))
        kinds = [Kind(shape, "across alphabets") for shape in options.task_shapes]
        kinds += [Kind(shape, "within an alphabet") for shape in options.task_shapes if shape.ways <= largest]
    for kind in kinds:
        draw(options, protocol, kind, tasks=1)
    return kinds


def draw(options: FewShotTestOptions, protocol: Protocol, kind: Kind, *, tasks: int) -> Episodes:
    """The first ``tasks`` test tasks of a kind, by the address of their name: the same for every network."""
    ways, shots, seed = kind.shape.ways, kind.shape.shots, options.seed
    if kind.where == "within an alphabet":
        return within_alphabet(protocol, ways=ways, shots=shots, tasks=tasks, seed=seed)
    address = ("test", kind.name)
    return sample_episodes(
        protocol.data, protocol.test, ways=ways, shots=shots, queries=options.queries, tasks=tasks, seed=seed, address=address
    )


def within_alphabet(protocol: Protocol, *, ways: int, shots: int, tasks: int, seed: int) -> Episodes:
    """Draw tasks of the official Omniglot design: characters of one alphabet, ``shots`` drawers' supports, one other drawer's
    queries.

    Each task takes an alphabet with at least ``ways`` characters, ``ways`` of these and ``shots + 1`` drawers, all uniformly,
    from
    ``stream(seed, "within-alphabet", ways, shots)``; one query a class. Drawings of a character must be in the order of their
    drawers, as Omniglot's files are.
    """
    members = protocol.data.members(protocol.test)
    drawers = int(members.counts.min())
    if shots + 1 > drawers:
        raise ConfigurationError(f"{shots} shots and a query need {shots + 1} drawers a character, but there are {drawers}")
    able = [torch.tensor(ids) for ids in protocol.alphabets.values() if len(ids) >= ways]
    largest = max(map(len, able))
    draws = torch.rand(tasks, 1 + largest + drawers, dtype=torch.float64, generator=stream(seed, "within-alphabet", ways, shots))
    alphabet = (draws[:, 0] * len(able)).long()
    table = torch.stack([torch.nn.functional.pad(ids, (0, largest - len(ids)), value=-1) for ids in able])[alphabet]
    chosen = draws[:, 1 : 1 + largest].masked_fill(table < 0, 2.0).argsort(dim=1, stable=True)[:, :ways]
    classes = table.gather(1, chosen)
    picked = draws[:, 1 + largest :].argsort(dim=1, stable=True)[:, : shots + 1]
    first = members.starts[torch.searchsorted(members.classes, classes)]
    index = members.order[first[:, :, None] + picked[:, None, :]].to(protocol.data.images.device)
    labels = torch.arange(ways, device=index.device)[None, :, None].expand(tasks, ways, shots + 1)
    return Episodes(
        support_index=index[:, :, :shots].reshape(tasks, -1),
        query_index=index[:, :, shots:].reshape(tasks, -1),
        support_labels=labels[:, :, :shots].reshape(tasks, -1),
        query_labels=labels[:, :, shots:].reshape(tasks, -1),
        classes=classes.to(index.device),
    )
