"""Episodes and plain batches by address: what is drawn depends on (seed, purpose, address) alone (design rule 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.data.image_set import ImageSet, Members
from engine.errors import ConfigurationError
from engine.runs.streams import stream


@dataclass(frozen=True, eq=False)
class Episodes:
    """T few-shot tasks as indices into ``ImageSet.images``, on the device of the images.

    ``support_index`` int64 (T, ways*shots) and ``query_index`` int64 (T, ways*queries), class-major inside a task;
    ``support_labels`` and ``query_labels`` of the same shapes, 0 to ways-1; ``classes`` int64 (T, ways), the class ids.
    """

    support_index: Tensor
    query_index: Tensor
    support_labels: Tensor
    query_labels: Tensor
    classes: Tensor


def sample_episodes(
    data: ImageSet,
    split: str,
    *,
    ways: int,
    shots: int,
    queries: int,
    tasks: int,
    seed: int,
    address: tuple[int | str, ...] = (),
) -> Episodes:
    """Draw ``tasks`` episodes from the generator ``stream(seed, "episodes", *address)``.

    Each task takes ``ways`` different classes and ``shots + queries`` different images of each, so support and query
    never share an image. Task t is the same however many tasks are drawn with it. Too few classes, or any class of the
    split with too few images, is a :class:`ConfigurationError` (whether or not the class would have been drawn).
    Cost: one sort of T*K and one of T*ways*L random numbers (K classes, L images in the largest class).
    """
    for name, value, least in (("ways", ways, 1), ("shots", shots, 1), ("queries", queries, 0), ("tasks", tasks, 1)):
        if value < least:
            raise ConfigurationError(f"{name} must be at least {least}, not {value}")
    members = data.members(split)
    _check_enough(data, split, members, ways, shots, queries)

    total, largest = len(members.classes), int(members.counts.max())
    draws = torch.rand(tasks, total + ways * largest, dtype=torch.float64, generator=stream(seed, "episodes", *address))
    chosen = draws[:, :total].argsort(dim=1, stable=True)[:, :ways]
    keys = draws[:, total:].reshape(tasks, ways, largest)
    # Positions beyond the end of a smaller class sort last, so they are never among the first shots + queries.
    absent = torch.arange(largest) >= members.counts[chosen, None]
    places = keys.masked_fill(absent, 2.0).argsort(dim=2, stable=True)[:, :, : shots + queries]
    index = members.order[members.starts[chosen, None] + places].to(data.images.device)

    labels = torch.arange(ways, device=index.device)[None, :, None].expand(tasks, ways, shots + queries)
    return Episodes(
        support_index=index[:, :, :shots].reshape(tasks, -1),
        query_index=index[:, :, shots:].reshape(tasks, -1),
        support_labels=labels[:, :, :shots].reshape(tasks, -1),
        query_labels=labels[:, :, shots:].reshape(tasks, -1),
        classes=members.classes[chosen].to(index.device),
    )


def sample_images(data: ImageSet, split: str, count: int, *, seed: int, address: tuple[int | str, ...] = ()) -> Tensor:
    """Draw ``count`` different images of a split from ``stream(seed, "images", *address)``: int64 (count,) indices.

    More than the split holds is a :class:`ConfigurationError`. Cost: one sort of the split's size.
    """
    order = data.members(split).order
    if not 1 <= count <= len(order):
        raise ConfigurationError(
            f"{count} images asked of split {split!r} of {data.name}, which holds {len(order)}; ask for fewer"
        )
    return order[permutation(len(order), stream(seed, "images", *address))[:count]].to(data.images.device)


def permutation(count: int, generator: torch.Generator) -> Tensor:
    """Return a random permutation of ``count`` as the order of as many uniform numbers.

    ``torch.randperm`` promises no stable algorithm between versions; the plain uniform stream has kept its bytes.
    """
    return torch.rand(count, dtype=torch.float64, generator=generator).argsort(stable=True)


def _check_enough(data: ImageSet, split: str, members: Members, ways: int, shots: int, queries: int) -> None:
    if ways > len(members.classes):
        raise ConfigurationError(
            f"{ways} ways need {ways} classes, but split {split!r} of {data.name} has {len(members.classes)}; lower ways"
        )
    smallest = int(members.counts.argmin())
    count = int(members.counts[smallest])
    if count < shots + queries:
        name = data.class_names[int(members.classes[smallest])]
        raise ConfigurationError(
            f"class {name!r} of split {split!r} of {data.name} has {count} images, but "
            f"{shots} shots + {queries} queries need {shots + queries}; lower them or leave the class out"
        )
