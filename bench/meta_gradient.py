"""One outer gradient of an MLP, exact second order: the written-out batch of tasks, against a lean loop and plain vmap(grad).

The lean loop takes each task by itself with ``torch.autograd.grad(create_graph=True)``, masks built once an outer step and
nothing logged; ``vmap(grad)`` is the same functional model under ``torch.func``. Weights, masks of density 0.65 and data are
random. The note of the written-out row says how fast the products of double differentiation would have to be computed to take as
long, beside the speed of a large matrix product, and what tasks cost: a fixed part and a part per task.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, cross_entropy, linear

from bench.measure import Case, measure, single_calls
from bench.registry import Settings
from bench.rows import Row
from bench.timing import Call
from engine.learning.inner import Params
from engine.learning.masked_mlp import mlp_batch
from engine.learning.masking import MaskedNetwork, mask_parameters, score_name
from engine.learning.outer import Problem, looped, meta_gradient, vmapped
from engine.learning.tasks import Task
from engine.runs.streams import stream
from engine.spaces.networks import COLOUR_WIDTHS, MLP, MLP_EPS, OMNIGLOT_WIDTHS, initialise

BASELINE = "loop of autograd.grad"
OWN = "written out"
METHODS = (BASELINE, OWN, "vmap(grad)", "loop of torch.func.grad")
WAYS, SHOTS, RATE, DENSITY = 5, 5, 0.4, 0.65
NETWORKS = {"omniglot 5-mlp": (784, OMNIGLOT_WIDTHS), "colour 5-mlp": (3072, COLOUR_WIDTHS[5]), "small": (16, (8, 8))}


def rows(settings: Settings) -> Iterator[Row]:
    """One row a method for both networks, MAML and Meta-ticket, 4 tasks; the own row's note has GFLOP/s and the cost of tasks."""
    smoke = settings.scale == "smoke"
    for network in ("small",) if smoke else ("omniglot 5-mlp", "colour 5-mlp"):
        for method in ("maml", "meta-ticket"):
            setup = partial(calls, network, method)
            for row in measure(_case(network, method, setup, 2 if smoke else 4), settings):
                if row.method == OWN:
                    said = _note(network, method, row.cpu_s.median, smoke)
                    row = replace(row, note=f"{said}; {row.note}".removesuffix("; "))
                yield row


def _case(network: str, method: str, build: partial[dict[str, Call]], tasks: int) -> Case:
    return Case(
        benchmark="meta-gradient",
        configuration={"network": network, "method": method, "ways": WAYS, "shots": SHOTS, "tasks": tasks, "steps": 1},
        build=build,
        samples=tasks,
        warm_samples=1,
        methods=single_calls(METHODS),
        baselines=(BASELINE,),
    )


@dataclass(frozen=True)
class Setting:
    """A network with random parameters and masks, and what is learned of it."""

    module: MLP
    params: Params
    problem: Problem
    ticket: MaskedNetwork | None


def setting(network: str, method: str) -> Setting:
    """The 5-MLP with MAML's or Meta-ticket's problem of one inner step."""
    inputs, widths = NETWORKS[network]
    module = MLP(inputs, widths, WAYS)
    initialise(module, stream(0, "bench"))
    params = {name: value.detach() for name, value in module.named_parameters()}
    rates = dict.fromkeys(params, RATE)
    if method == "maml":
        problem = Problem(lambda p, x: torch.func.functional_call(module, p, (x,)), rates, 1, tuple(params))
        return Setting(module, params, problem, None)
    ticket, params = mask_parameters(module, params, lambda n: n.endswith("linear.weight"), seed=0, sparsity=1 - DENSITY)
    return Setting(module, params, Problem(ticket.predict, rates, 1, ticket.scores), ticket)


def tasks_of(inputs: int, tasks: int) -> Task:
    """Random images and balanced labels."""
    x = torch.rand(2, tasks, WAYS * SHOTS, inputs, generator=stream(0, "bench-tasks"))
    labels = (torch.arange(WAYS * SHOTS) % WAYS).expand(tasks, -1).contiguous()
    return Task(x[0], labels, x[1], labels)


def calls(network: str, method: str, memory_format: str, tasks: int) -> dict[str, Call]:
    """Every method on the same parameters and tasks; a memory format means nothing to an MLP."""
    if memory_format != "contiguous":
        return {}
    made, batch = setting(network, method), tasks_of(NETWORKS[network][0], tasks)
    ways = {
        OWN: mlp_batch(made.problem, made.module, made.ticket),
        "vmap(grad)": vmapped(made.problem),
        "loop of torch.func.grad": looped(made.problem),
    }
    found: dict[str, Call] = {name: partial(meta_gradient, way, made.params, batch) for name, way in ways.items()}
    return {BASELINE: partial(lean_loop, made, batch), **found}


def lean_loop(made: Setting, batch: Task) -> dict[str, Tensor]:
    """The outer gradient as a lean program would compute it: a task at a time, double automatic differentiation.

    Biases in front of BatchNorm are left out, since they change nothing.
    """
    names = [name for name in made.params if not name.endswith(("_score", "linear.bias"))]
    masks = {} if made.ticket is None else {n: m.float() for n, m in made.ticket.masks(made.params).items()}
    found: dict[str, Tensor] = {}
    for t in range(len(batch.support_y)):
        phi = {name: made.params[name].detach().requires_grad_() for name in names}
        outer = {score_name(n): m.clone().requires_grad_() for n, m in masks.items()} or phi
        task = batch.take(t)
        loss = cross_entropy(_forward(_masked(phi, outer), task.support_x), task.support_y)
        inner = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        moved = {name: value - RATE * g for (name, value), g in zip(phi.items(), inner, strict=True)}
        query = cross_entropy(_forward(_masked(moved, outer), task.query_x), task.query_y)
        for name, g in zip(outer, torch.autograd.grad(query, list(outer.values())), strict=True):
            found[name] = found[name].add_(g) if name in found else g
    return {name: g / len(batch.support_y) for name, g in found.items()}


def _masked(phi: Params, masks: Params) -> Params:
    return {name: value * masks[score_name(name)] if score_name(name) in masks else value for name, value in phi.items()}


def _forward(params: Params, x: Tensor) -> Tensor:
    layer = 0
    while (prefix := f"features.{layer}.") + "linear.weight" in params:
        x = linear(x, params[prefix + "linear.weight"])
        gain, shift = params[prefix + "normalize.weight"], params[prefix + "normalize.bias"]
        x, layer = batch_norm(x, None, None, gain, shift, training=True, eps=MLP_EPS).relu(), layer + 1
    return linear(x, params["classifier.weight"], params["classifier.bias"])


def products(network: str, tasks: int) -> float:
    """Floating-point operations of the products that double differentiation needs: 12 a hidden weight and sample of a support,
    6 in the first layer, which has no gradient with respect to its input."""
    inputs, widths = NETWORKS[network]
    sizes = [*widths, WAYS]
    later = sum(a * b for a, b in pairwise(sizes))
    return 2.0 * tasks * WAYS * SHOTS * (6 * inputs * widths[0] + 12 * later)


def _note(network: str, method: str, seconds: float, smoke: bool) -> str:
    tasks = 2 if smoke else 4
    speed, ceiling = products(network, tasks) / seconds / 1e9, _ceiling(64 if smoke else 1024)
    few, many = (_seconds(network, method, count) for count in (tasks, 4 * tasks))
    each = (many - few) / (3 * tasks)
    return (
        f"{speed:.0f} GFLOP/s of double differentiation's products, a product of matrices of 1024 reaches {ceiling:.0f}; "
        f"{1e3 * each:.2f} ms a task and {1e3 * (few - tasks * each):.2f} ms fixed"
    )


def _ceiling(size: int) -> float:
    a = torch.rand(size, size, generator=stream(0, "ceiling"))
    return 2e-9 * size**3 / _cpu_seconds(lambda: a @ a)


def _seconds(network: str, method: str, tasks: int) -> float:
    return _cpu_seconds(calls(network, method, "contiguous", tasks)[OWN])


def _cpu_seconds(call: Call) -> float:
    """The least CPU time of five calls after a first one."""
    call()
    spent = []
    for _ in range(5):
        started = time.process_time()
        call()
        spent.append(time.process_time() - started)
    return max(min(spent), 1e-9)
