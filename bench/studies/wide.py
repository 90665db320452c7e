"""``python -m bench.studies.wide``: does MAML of wide networks become kernel regression (paper 001, Theorems 1 and 2)?

Networks of growing width, in the parametrisation of the theory (weights of unit variance, layers divided by the root of their
inputs), are trained by MAML, by full gradient descent through all inner steps, on a few regression tasks. Printed of every width,
the mean over seeds:

* ``prediction``: distance of the trained network's outputs, on the training tasks and on tasks that it only adapts to, from
  what :func:`engine.scoring.meta_regression.maml_regression` predicts of the untrained one (Eq. 8 and 12), relative to how far
  training moves them;
* ``kernels``: distance of the kernel by its definition, second-order gradients through the inner steps (Eq. 4), from the
  composite formula (Eq. 10, 11), relative to the latter;
* ``rate``: the largest ratio over the steps of the training loss to the bound of Theorem 1 (Eq. 6), at its learning rate
  eta_0 / l; the theorem says at most 1 from some width on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor, nn

from engine.cli import run_command
from engine.runs.streams import stream
from engine.scoring.kernels import ntk
from engine.scoring.meta import metantk
from engine.scoring.meta_regression import maml_regression, meta_kernel, meta_outputs

FEATURES, QUERY, SUPPORT = 8, 3, 4
INNER_STEPS, INNER_TIME = 10, 0.3
# The outer learning rate in units of 1 / largest eigenvalue: small, since the kernel's prediction is that of gradient flow.
OUTER_RATE = 0.1


@dataclass(frozen=True)
class Row:
    """One width, mean over seeds."""

    width: int
    prediction: float
    unseen_prediction: float
    kernels: float
    rate: float


@dataclass(frozen=True)
class Tasks:
    """Sine regression on the sphere, ``trained`` tasks first: all tasks' queries and supports and their targets, float64."""

    trained: int
    query: Tensor
    support: Tensor
    query_targets: Tensor
    support_targets: Tensor

    @property
    def count(self) -> int:
        """All tasks."""
        return len(self.query) // QUERY


class Network(nn.Module):
    """A multilayer perceptron with one output: tanh layers whose weights are standard normal and scaled where they are used."""

    def __init__(self, width: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [FEATURES, *[width] * layers, 1]
        draws = [torch.randn(b, a, generator=generator, dtype=torch.float64) for a, b in pairwise(sizes)]
        self.weights = nn.ParameterList(draws)

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.weights
        for weight in hidden:
            x = torch.tanh(x @ weight.T / x.shape[-1] ** 0.5)
        return x @ last.T / x.shape[-1] ** 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and print its table."""
    arguments = _parser().parse_args(argv)
    print("width   prediction  unseen tasks  kernels   rate (bound: 1)")
    rows = []
    for width in arguments.widths:
        found = [_measured(arguments, width, seed) for seed in range(arguments.seeds)]
        row = Row(width, *(mean(values) for values in zip(*found, strict=True)))
        rows.append(row)
        print(
            f"{width:<6}  {row.prediction:<10.4f}  {row.unseen_prediction:<12.4f}  {row.kernels:<8.4f}  {row.rate:.4f}",
            flush=True,
        )
    if len(rows) > 1:
        powers = [f"{_power(rows, name):.2f}" for name in ("prediction", "unseen_prediction", "kernels")]
        print("they shrink as width to the power of " + ", ".join(powers))
    if arguments.json:
        with arguments.json.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.studies.wide", description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64, 256, 1024, 4096])
    parser.add_argument("--layers", type=int, default=1, help="hidden layers (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=4, help="networks a width (default: %(default)s)")
    parser.add_argument("--tasks", type=int, default=3, help="training tasks; as many are only adapted to (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="outer steps (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=None, help="append the rows to this file")
    return parser


def make_tasks(trained: int) -> Tasks:
    """The same tasks for every width and seed."""
    generator = stream(0, "wide-tasks")

    def points(count: int) -> Tensor:
        x = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
        return x / x.norm(dim=1, keepdim=True) * FEATURES**0.5

    query, support = points(2 * trained * QUERY), points(2 * trained * SUPPORT)
    directions = torch.randn(2 * trained, FEATURES, generator=generator, dtype=torch.float64)
    targets = [
        torch.cat([torch.sin(x @ d).unsqueeze(1) for x, d in zip(part.chunk(2 * trained), directions, strict=True)])
        for part in (query, support)
    ]
    return Tasks(trained, query, support, *targets)


def _measured(arguments: argparse.Namespace, width: int, seed: int) -> tuple[float, float, float, float]:
    tasks = make_tasks(arguments.tasks)
    network = Network(width, arguments.layers, stream(seed, "wide-network", width))
    rows = tasks.trained * QUERY
    truth = tasks.query_targets[:rows]
    x = torch.cat([tasks.query, tasks.support])
    theta, outputs = ntk(network, x, params="all"), network(x).detach()
    composite = metantk(theta, tasks=tasks.count, query=QUERY, support=SUPPORT, time=INNER_TIME, reg=0.0)
    definition = meta_kernel(
        network,
        tasks.query,
        tasks.support,
        tasks.support_targets,
        tasks=tasks.count,
        rate=INNER_TIME / INNER_STEPS,
        steps=INNER_STEPS,
    )
    eigenvalues = torch.linalg.eigvalsh(definition[:rows, :rows])
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    rate = OUTER_RATE / largest
    before = adapted(network, tasks)(dict(network.named_parameters())).detach()
    after = trained(network, tasks, truth, rate, arguments.steps)[0]
    predicted = maml_regression(
        theta,
        outputs,
        truth,
        tasks.support_targets,
        tasks=tasks.count,
        query=QUERY,
        support=SUPPORT,
        inner_time=INNER_TIME,
        outer_time=rate * arguments.steps,
    )
    seen, unseen = slice(None, rows), slice(rows, None)

    def distance(part: slice) -> float:
        return float((after[part] - predicted[part]).norm() / (predicted[part] - before[part]).norm())

    fastest = 2 / (smallest + largest)
    losses = trained(network, tasks, truth, fastest, arguments.steps)[1]
    bounds = losses[0] * (1 - fastest * smallest / 3) ** (2 * np.arange(len(losses)))
    kernels = float((definition - composite).norm() / composite.norm())
    return distance(seen), distance(unseen), kernels, float((losses / bounds).max())


def adapted(network: Network, tasks: Tasks) -> Callable[[dict[str, Tensor]], Tensor]:
    """The meta-outputs of all tasks as a function of the parameters."""
    return lambda parameters: meta_outputs(
        network,
        parameters,
        tasks.query,
        tasks.support,
        tasks.support_targets,
        tasks=tasks.count,
        rate=INNER_TIME / INNER_STEPS,
        steps=INNER_STEPS,
    )


def trained(network: Network, tasks: Tasks, truth: Tensor, rate: float, steps: int) -> tuple[Tensor, np.ndarray]:
    """The meta-outputs of all tasks after ``steps`` outer steps on the training tasks, and the loss (Eq. 2) before each step."""
    own = tasks.trained * QUERY, tasks.trained * SUPPORT
    training = Tasks(tasks.trained, tasks.query[: own[0]], tasks.support[: own[1]], truth, tasks.support_targets[: own[1]])
    outputs = adapted(network, training)
    parameters = {name: p.detach().requires_grad_() for name, p in network.named_parameters()}
    losses = []
    for _ in range(steps):
        loss = (outputs(parameters) - truth).square().sum() / 2
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        moved = zip(parameters.items(), gradients, strict=True)
        parameters = {name: (p - rate * g).detach().requires_grad_() for (name, p), g in moved}
        losses.append(float(loss.detach()))
    return adapted(network, tasks)(parameters).detach(), np.array(losses)


def _power(rows: Sequence[Row], name: str) -> float:
    return float(np.polyfit(np.log([row.width for row in rows]), np.log([getattr(row, name) for row in rows]), 1)[0])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
