"""One call for every score: a model, data and the name of a metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast, overload

import torch
from torch import Tensor, nn

from engine.scoring.condition import condition_number
from engine.scoring.kernels import gram, last_linear, ntk, selects
from engine.scoring.meta import MetaKernel, metantk
from engine.scoring.proxies.catalogue import PROXIES
from engine.scoring.proxies.scores import LabelledBatch, scores
from engine.scoring.regions import linear_regions
from engine.scoring.result import Score


class EpisodeBatch(NamedTuple):
    """The images of T few-shot tasks: ``query`` (T*q, ...) and ``support`` (T*s, ...), both task-major. Labels do not count."""

    query: Tensor
    support: Tensor
    tasks: int


@overload
def score(model: nn.Module, data: Any, metric: str = "metantk", **options: Any) -> Score: ...


@overload
def score(model: nn.Module, data: Any, metric: tuple[str, ...] | list[str], **options: Any) -> dict[str, Score]: ...


def score(
    model: nn.Module, data: Any, metric: str | tuple[str, ...] | list[str] = "metantk", **options: Any
) -> Score | dict[str, Score]:
    """Score an untrained network by one metric, or by several that share their passes.

    ========== ========================================== ==========================================================
    metric     data                                       value
    ========== ========================================== ==========================================================
    `metantk`  :class:`EpisodeBatch` or such a tuple      condition number of the MetaNTK, see :func:`metantk_score`
    `ntk`      tensor (N, ...) or a tuple of inputs       condition number of the NTK; options of :func:`engine.ntk`
    `regions`  tensor (B, ...) or a sequence of batches   linear regions; options of :func:`engine.linear_regions`
    ========== ========================================== ==========================================================

    `ntk` and `regions` take the images of a :class:`~engine.scoring.proxies.scores.LabelledBatch` too; a plain tuple is what
    the table says.
    Further metrics (naswot, synflow, ...) are those of :data:`~engine.scoring.proxies.catalogue.PROXIES`, with data and options
    of :func:`~engine.scoring.proxies.scores.scores`.

    Returns a :class:`~engine.scoring.result.Score`: a number and its status; for a tuple or list of the catalogue's names a dict
    of them. Condition numbers are better when small, region counts when large; the catalogue says it of the others. The
    model is used in the mode it is in and comes back as it was. An unknown metric or data of another form is a ``ValueError``.
    """
    if not isinstance(metric, str):
        return scores(model, data, metric, **options)
    if metric in METRICS:
        return METRICS[metric](model, data, **options)
    if metric not in PROXIES:
        raise ValueError(f"metric: unknown {metric!r}; known are {', '.join(dict.fromkeys((*METRICS, *PROXIES)))}")
    return scores(model, data, [metric], **options)[metric]


def metantk_score(
    model: nn.Module,
    data: EpisodeBatch | tuple[Tensor, Tensor, int],
    *,
    kernel: MetaKernel = "maml",
    time: float = math.inf,
    reg: float = 1e-3,
    head: str | None = None,
    chunk: int | None = None,
) -> Score:
    """Condition number of the MetaNTK of the summed outputs (paper 001, Eq. 11 and 14), over all weights that are not norms'.

    ``kernel``, ``time`` and ``reg`` are those of :func:`engine.metantk`, ``chunk`` is that of :func:`engine.ntk`. ``head`` names
    the layer that ANIL adapts, by default the last ``nn.Linear``; other kernels do not need one. NTK and NNGP come from the
    same forward and backward pass.
    """
    query, support, tasks = _episodes(data)
    inner = f"{head or last_linear(model)}.weight" if kernel == "anil" else None
    selected = selects("weights", model)

    def assign(name: str, parameter: nn.Parameter) -> str | None:
        if name == inner:
            return "head"
        return "body" if selected(name, parameter) else None

    parts = gram(model, torch.cat([query, support]), assign, chunk=chunk)
    if not parts:
        raise ValueError(f"model: {type(model).__name__} has no weights to score")
    if inner is not None and "head" not in parts:
        raise ValueError(f"head: {type(model).__name__} has no parameter {inner!r}")
    phi = metantk(
        torch.stack(list(parts.values())).sum(0),
        tasks=tasks,
        query=len(query) // tasks,
        support=len(support) // tasks,
        kernel=kernel,
        nngp=parts.get("head"),
        time=time,
        reg=reg,
    )
    return cast(Score, condition_number(phi))


def _episodes(data: Any) -> EpisodeBatch:
    if not isinstance(data, tuple) or len(data) != 3 or not all(isinstance(part, Tensor) for part in data[:2]):
        raise ValueError("data: the metric 'metantk' takes an EpisodeBatch(query, support, tasks)")
    batch = EpisodeBatch(*data)
    if not isinstance(batch.tasks, int) or batch.tasks < 1 or any(not len(x) or len(x) % batch.tasks for x in batch[:2]):
        raise ValueError(
            f"data: {len(batch.query)} query and {len(batch.support)} support images cannot be divided among {batch.tasks} tasks"
        )
    return batch


def ntk_score(model: nn.Module, data: Tensor | tuple[Any, ...], **options: Any) -> Score:
    """Condition number of the NTK of one batch (TE-NAS); ``options`` are those of :func:`engine.ntk`."""
    return cast(Score, condition_number(ntk(model, _images(data), **options)))


def regions_score(model: nn.Module, data: Tensor | Sequence[Tensor], **options: Any) -> Score:
    """Linear regions that the model shows on the images; ``options`` are those of :func:`engine.linear_regions`."""
    return cast(Score, linear_regions(model, _images(data), **options))


def _images(data: Any) -> Any:
    return data.images if isinstance(data, LabelledBatch) else data


METRICS: dict[str, Callable[..., Score]] = {"metantk": metantk_score, "ntk": ntk_score, "regions": regions_score}
