"""``python -m bench.studies.precision``: which arithmetic do condition numbers of tangent kernels need?

Random cells are scored in float64, and with the operands of every convolution and matrix product of the forward pass, the
backward pass and the per-sample gradients as a GPU would take them: float32; TF32 (10 bits of mantissa), emulated by rounding;
bf16 (7 bits); and split TF32, where each operand is the sum of two TF32 numbers and the product of the two small parts is left
out. Sums are float32 in all of them, norms and activations too, and Gram matrices, MetaNTK and eigenvalues float64, as in
:func:`engine.ntk`. Printed for the NTK and the MetaNTK: the relative error of kappa (median, 95th percentile, worst), Spearman's
correlation of the ranking with float64's, and how many pairs of cells it orders otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from engine.cli import run_command
from engine.data import load, normalise, sample_episodes
from engine.kernels.gram import add_gram
from engine.kernels.sample_gradient import ConvGeometry, conv_sample_gradient, linear_sample_gradient
from engine.methods.random_search import draw
from engine.runs.streams import stream
from engine.scoring.condition import condition_number
from engine.scoring.kernels import selects
from engine.scoring.meta import metantk
from engine.scoring.plain import run_on, stand_ins
from engine.scoring.result import Score
from engine.spaces.differentiable import Geometry
from engine.spaces.network import build_network
from engine.spaces.space import FEW_SHOT, NAS_BENCH_201, Space
from engine.spaces.supernet import initialise

ARITHMETICS = ("float32", "split TF32", "TF32", "bf16")
WAYS, TASKS = 5, 2


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    kernel: str
    arithmetic: str
    cells: int
    median_error: float
    error_95: float
    worst_error: float
    spearman: float
    pairs_swapped: float
    not_ok: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and print its table."""
    arguments = _parser().parse_args(argv)
    rows = list(table(measured(arguments)))
    print("kernel   arithmetic   median error  95 %      worst     Spearman  pairs swapped  not ok")
    for row in rows:
        errors = f"{row.median_error:<12.1e}  {row.error_95:<8.1e}  {row.worst_error:<8.1e}"
        print(f"{row.kernel:<7}  {row.arithmetic:<11}  {errors}  {row.spearman:.5f}   {row.pairs_swapped:<13.1e}  {row.not_ok}")
    if arguments.json:
        with arguments.json.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.studies.precision", description=__doc__)
    parser.add_argument("--data", default="digits", help="images of the episodes (default: %(default)s)")
    parser.add_argument("--data-root", default=None, help="folder that holds the data sets")
    parser.add_argument("--json", type=Path, default=None, help="append the rows to this file")
    for name, default in (("networks", 200), ("cells", 3), ("channels", 16), ("size", 8), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    return parser


def measured(arguments: argparse.Namespace) -> dict[tuple[str, str], list[Score]]:
    """Condition numbers by kernel and arithmetic, one a cell; half of the cells are of each space."""
    data = load(arguments.data, arguments.data_root, arguments.size, splits=("train",))
    found: dict[tuple[str, str], list[Score]] = {}
    for number in range(arguments.networks):
        space = (FEW_SHOT, NAS_BENCH_201)[number % 2]
        seed = arguments.seed + number
        network = _network(space, arguments, seed, data.images.shape[1])
        episodes = sample_episodes(data, "train", ways=WAYS, shots=1, queries=1, tasks=TASKS, seed=seed, address=("precision",))
        index = torch.cat([episodes.query_index.flatten(), episodes.support_index.flatten()])
        x = normalise(data.images[index], data.mean, data.std)
        for arithmetic in ("float64", *ARITHMETICS):
            theta = tangent_kernel(network, x, arithmetic)
            phi = metantk(theta, tasks=TASKS, query=WAYS, support=WAYS)
            for kernel, matrix in (("ntk", theta), ("metantk", phi)):
                score = condition_number(matrix)
                assert isinstance(score, Score)
                found.setdefault((kernel, arithmetic), []).append(score)
    return found


def _network(space: Space, arguments: argparse.Namespace, seed: int, channels_in: int) -> nn.Module:
    network = build_network(
        space.genotype(draw(space, seed, space.edges_per_node)),
        channels=arguments.channels,
        classes=WAYS,
        cells=arguments.cells,
        channels_in=channels_in,
        norm="groupnorm16",
        tail=True,
    )
    initialise(network, stream(seed, "precision-weights"))
    return network


def table(found: dict[tuple[str, str], list[Score]]) -> Iterator[Row]:
    """The rows; cells whose float64 score is not ok are left out."""
    for kernel in ("ntk", "metantk"):
        truth = found[kernel, "float64"]
        usable = [i for i, score in enumerate(truth) if score.ok]
        exact = np.array([truth[i].value for i in usable])
        for arithmetic in ARITHMETICS:
            scores = [found[kernel, arithmetic][i] for i in usable]
            values = np.array([score.value if score.ok else np.inf for score in scores])
            errors = np.abs(values - exact) / exact
            yield Row(
                kernel,
                arithmetic,
                len(usable),
                float(np.median(errors)),
                float(np.quantile(errors, 0.95, method="higher")),
                float(errors.max()),
                float(spearmanr(values, exact).statistic),
                float((1 - kendalltau(values, exact).statistic) / 2),
                sum(not score.ok for score in scores),
            )


def tangent_kernel(network: nn.Module, x: Tensor, arithmetic: str) -> Tensor:
    """The NTK of summed outputs over all weights that are not norms', float64 (N, N), in an arithmetic's operands."""
    dtype = torch.float64 if arithmetic == "float64" else torch.float32
    selected = selects("weights", network)
    names = {name for name, p in network.named_parameters() if selected(name, p)}
    stands = {name: p.to(dtype) for name, p in stand_ins(network, set()).items()}
    layers = Layers({id(p): name for name, p in stands.items() if name in names}, arithmetic)

    def body() -> Sequence[Tensor | None]:
        with layers:
            y = network(x.to(dtype))
        return torch.autograd.grad(y.sum(), [y for _, y, _ in layers.seen], allow_unused=True)

    cotangents = run_on(network, stands, body)
    total = torch.zeros(1, len(x), len(x), dtype=torch.float64)
    for (read, _, geometry), g in zip(layers.seen, cotangents, strict=True):
        if g is None:  # nothing reads this layer
            continue
        pairs = products(split(read, arithmetic), split(g, arithmetic))
        add_gram(total, torch.stack([_rows(a, b, geometry) for a, b in pairs]).sum(0).unsqueeze(0))
    return total[0]


def split(x: Tensor, arithmetic: str) -> list[Tensor]:
    """The parts that stand for an operand; their sum is what of it is seen."""
    if arithmetic == "bf16":
        return [x.to(torch.bfloat16).to(x.dtype)]
    if arithmetic == "TF32":
        return [tf32(x)]
    if arithmetic == "split TF32":
        large = tf32(x)
        return [large, tf32(x - large)]
    return [x]


def tf32(x: Tensor) -> Tensor:
    """Float32 rounded to 10 bits of mantissa, to the nearest, ties to even."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def products(left: list[Tensor], right: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The pairs of parts that are multiplied: all but small with small."""
    return [(a, b) for i, a in enumerate(left) for j, b in enumerate(right) if i + j < 2]


class Layers(TorchFunctionMode):
    """Runs convolutions and linear layers in an arithmetic, and keeps (input, output, geometry) of each."""

    def __init__(self, names: dict[int, str], arithmetic: str) -> None:
        super().__init__()
        self.names, self.arithmetic = names, arithmetic
        self.seen: list[tuple[Tensor, Tensor, ConvGeometry | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (torch.conv2d, F.linear) or id(args[1]) not in self.names:
            return func(*args, **(kwargs or {}))
        x, weight, *rest = args
        if func is F.linear:
            y, geometry = Product.apply(x, weight, None, self.arithmetic), None
        else:
            _, stride, padding, dilation, groups = rest
            y = Product.apply(x, weight, Geometry(stride, padding, dilation, groups), self.arithmetic)
            geometry = ConvGeometry(tuple(weight.shape), stride, padding, dilation, groups)
        y = y if y.requires_grad else y.requires_grad_()
        self.seen.append((x.detach(), y, geometry))
        return y


class Product(torch.autograd.Function):
    """A convolution, or a matrix product where the geometry is None, of split operands."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry | None, arithmetic: str) -> Tensor:
        ctx.size, ctx.geometry, ctx.arithmetic = x.shape[2:], geometry, arithmetic
        ctx.save_for_backward(weight)
        pairs = products(split(x, arithmetic), split(weight, arithmetic))
        return torch.stack([a @ k.mT if geometry is None else geometry.forward(a, k) for a, k in pairs]).sum(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (weight,), geometry = ctx.saved_tensors, ctx.geometry
        pairs = products(split(gradients[0], ctx.arithmetic), split(weight, ctx.arithmetic))
        parts = [g @ k if geometry is None else geometry.input_gradient(g.contiguous(), k, ctx.size) for g, k in pairs]
        return torch.stack(parts).sum(0), None, None, None


def _rows(x: Tensor, g: Tensor, geometry: ConvGeometry | None) -> Tensor:
    if geometry is None:
        return linear_sample_gradient(x.unsqueeze(1), g[:, None, None])[:, 0]
    return conv_sample_gradient(x, g.unsqueeze(1), geometry)[:, 0]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
