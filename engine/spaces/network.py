"""Networks of a genotype: the same cells as the supernet's, without what was not chosen."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from torch import Tensor, nn

from engine.errors import ConfigurationError
from engine.spaces.cells import Cell, Lane, plain_lane
from engine.spaces.genotype import CellGenotype, Genotype
from engine.spaces.macro import MacroNetwork
from engine.spaces.norms import norm_factory
from engine.spaces.space import SPACES, Space
from engine.spaces.stems import AuxiliaryTower

Stem = Literal["plain", "imagenet"]


def build_network(
    genotype: Genotype,
    *,
    channels: int,
    classes: int,
    cells: int,
    channels_in: int = 3,
    norm: str = "batchnorm",
    tail: bool = False,
    pool: int = 1,
    stem: Stem = "plain",
    auxiliary: bool = False,
    space: Space | None = None,
) -> CellNetwork:
    """Build the network that is trained and tested once a search has found its genotype (reference note, section 7).

    Args:
        genotype: any number of operations on any edge; a node is their plain sum, and one that nothing reaches is zero.
        channels: width C of the first cells.
        classes: logits of the linear classifier.
        cells: number of cells; those at one and two thirds of the depth reduce.
        channels_in: channels of the images.
        norm: a name of :data:`engine.spaces.norms.NORMS`; the default is BatchNorm with affine parameters and running statistics.
        tail: True puts a norm and a ReLU before the pooling, as networks have that are scored.
        pool: factor by which the stem's map is max-pooled before the first cell; 1 is published.
        stem: "imagenet" for DARTS's three strided convolutions of width C.
        auxiliary: add DARTS's auxiliary tower behind the cell at two thirds of the depth; see
            :meth:`CellNetwork.training_logits`.
        space: the table that the genotype belongs to; None takes the registered space of the genotype's own name.

    Weights are PyTorch's default initialisation. Raises :class:`ConfigurationError` for an unknown space, operation, edge or
    norm, or a width that the norm cannot divide.
    """
    space = _registered(genotype) if space is None else space
    space.check(genotype)
    return CellNetwork(
        space,
        genotype,
        channels=channels,
        classes=classes,
        cells=cells,
        channels_in=channels_in,
        norm=norm,
        tail=tail,
        pool=pool,
        stem=stem,
        auxiliary=auxiliary,
    )


def _registered(genotype: Genotype) -> Space:
    # By name only: importing what a file names, as get_space() can, would let the file choose code to run.
    if genotype.space not in SPACES:
        raise ConfigurationError(
            f"genotype: its space {genotype.space!r} is not among {', '.join(SPACES)}; register it or give space="
        )
    return SPACES[genotype.space]


def _operations(space: Space, cell: CellGenotype) -> list[list[str]]:
    """What each edge carries, in the space's order."""
    chosen = set(cell.connections)
    return [[name for name in space.operations if (*edge, name) in chosen] for edge in space.edges]


class CellNetwork(MacroNetwork):
    """The discretised network of a genotype; :func:`build_network` makes one and explains the arguments."""

    def __init__(
        self,
        space: Space,
        genotype: Genotype,
        *,
        channels: int,
        classes: int,
        cells: int,
        channels_in: int,
        norm: str,
        tail: bool,
        pool: int = 1,
        stem: Stem = "plain",
        auxiliary: bool = False,
    ) -> None:
        operations = {kind: _operations(space, cell) for kind, cell in genotype.cells}
        super().__init__(
            space,
            operations,
            {kind: cell.concat for kind, cell in genotype.cells},
            cells=cells,
            channels=channels,
            outputs=classes,
            channels_in=channels_in,
            norm=norm,
            stem=True,
            tail=tail,
            pool=pool,
            strided_width=channels if stem == "imagenet" else None,
        )
        self.genotype = genotype
        self.lanes = {kind: plain_lane(names) for kind, names in operations.items()}
        self.tapped = 2 * cells // 3
        cell = cast(Cell, self.cells[self.tapped])
        width = cell.plan.channels * len(cell.concat)
        imagenet = stem == "imagenet"
        self.auxiliary = AuxiliaryTower(width, classes, norm_factory(norm), imagenet=imagenet) if auxiliary else None

    def features(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> the pooled features (B, F) that few-shot tests compare."""
        return self.pooled(x, self.lanes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> logits (B, classes)."""
        return self.classifier(self.features(x))

    def training_logits(
        self, x: Tensor, lanes: Mapping[str, Lane] | Sequence[Lane] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, C_in, H, W) -> logits (B, classes), and those of the auxiliary tower, None without one.

        ``lanes`` are the network's own by default; drop-path gives every cell another.
        """
        lanes = self.lanes if lanes is None else lanes
        if self.auxiliary is None:
            return self.classifier(self.pooled(x, lanes)), None
        tapped: list[Tensor] = []
        features = self.pooled(x, lanes, watch=lambda index, y: tapped.append(y) if index == self.tapped else None)
        return self.classifier(features), self.auxiliary(tapped[0])

    def load(self, path: str | os.PathLike[str]) -> CellNetwork:
        """Take the weights of a safetensors file of this network's state dict, and return the network.

        Names, shapes and kinds of number are compared before any tensor is read; whatever differs, or a file that cannot be
        read, is a :class:`ConfigurationError` that leaves the network as it was. Precision follows the network.
        """
        load_weights(self, path)
        return self


def load_weights(network: nn.Module, path: str | os.PathLike[str], *, others: bool = False) -> None:
    """Take the weights of a safetensors file of any network's state dict; see :meth:`CellNetwork.load`.

    With ``others`` the file may hold further tensors, which are not read.
    """
    from safetensors import SafetensorError, safe_open

    wanted = network.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            if problem := _mismatch(wanted, file, others=others):
                raise ConfigurationError(f"{path}: not the weights of this network: {problem}")
            network.load_state_dict({name: file.get_tensor(name) for name in wanted})
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"{path}: cannot read the weights ({error})") from None


def _mismatch(wanted: Mapping[str, Tensor], file: Any, *, others: bool) -> str | None:
    """The first difference between a state dict and the header of an open safetensors file; ``others`` are no difference."""
    found = set(file.keys())
    for name, tensor in wanted.items():
        if name not in found:
            return f"{name!r} is missing"
        header = file.get_slice(name)
        if tuple(header.get_shape()) != tuple(tensor.shape):
            return f"{name!r} is {tuple(header.get_shape())}, expected {tuple(tensor.shape)}"
        if header.get_dtype().startswith(("F", "BF")) != tensor.is_floating_point():
            return f"{name!r} is of type {header.get_dtype()}, expected {tensor.dtype}"
    unexpected = [] if others else sorted(found - set(wanted))
    return f"{unexpected[0]!r} is not part of it" if unexpected else None
