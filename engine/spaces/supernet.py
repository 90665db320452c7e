"""The supernet: stem, cells, tail and a linear head; its architecture is the argument ``mixture``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.spaces.cells import Cell, Lane, Term
from engine.spaces.macro import MacroNetwork
from engine.spaces.mixture import Mixture, full
from engine.spaces.space import Space


class Supernet(MacroNetwork):
    """All operations of a space on all edges (reference note, section 1).

    Args:
        space: the table of what is searched.
        cells: number of cells; those at one and two thirds of the depth reduce.
        channels: width C of the first cells; doubled by each reduction.
        outputs: logits of the linear head.
        channels_in: channels of the images.
        norm: ``"groupnorm16"`` for scoring (samples stay independent), ``"batchstat"`` for region counts.
        stem: False feeds the image to the first cell (the thin network of region counts).
        tail: False leaves out the norm and ReLU before the pooling.
        stem_norm: the stem's norm where it is not ``norm``.
        strided_width: width of ImageNet's stem, which takes the place of the plain one.
        cell: builds a cell; takes what :class:`~engine.spaces.cells.Cell` takes.
    """

    def __init__(
        self,
        space: Space,
        *,
        cells: int,
        channels: int,
        outputs: int,
        channels_in: int = 3,
        norm: str = "groupnorm16",
        stem: bool = True,
        tail: bool = True,
        stem_norm: str | None = None,
        strided_width: int | None = None,
        cell: Callable[..., Cell] = Cell,
    ) -> None:
        everything = zip(space.kinds, space.alive(), strict=True)
        super().__init__(
            space,
            {kind: [_names(space, row) for row in rows] for kind, rows in everything},
            dict.fromkeys(space.kinds, space.output_states),
            cells=cells,
            channels=channels,
            outputs=outputs,
            channels_in=channels_in,
            norm=norm,
            stem=stem,
            tail=tail,
            stem_norm=stem_norm,
            strided_width=strided_width,
            cell=cell,
        )
        self.features = self.classifier.in_features
        none = torch.tensor([name == "none" for name in space.operations], device="cpu")
        self._absent = ~(full(space) | none)

    def forward(self, x: Tensor, mixture: Mixture) -> Tensor:
        """(B, C_in, H, W) and a mixture of G architectures with G dividing B -> logits (B, outputs)."""
        return self.classifier(self.embed(x, mixture))

    def embed(self, x: Tensor, mixture: Mixture) -> Tensor:
        """What the classifier reads: images and a mixture as in :meth:`forward` -> pooled features (B, F)."""
        groups = mixture.groups
        self._check(x, mixture)
        lanes = {kind: make_lane(mixture, self.space, index, x.shape[0]) for index, kind in enumerate(self.space.kinds)}
        return self.pooled(x, lanes, groups)

    def _check(self, x: Tensor, mixture: Mixture) -> None:
        if x.shape[0] % mixture.groups:
            raise ValueError(f"x: a batch of {x.shape[0]} cannot be divided among {mixture.groups} architectures")
        if mixture.alive.shape[-3:] != self._absent.shape:
            shapes = tuple(mixture.alive.shape[-3:]), tuple(self._absent.shape)
            raise ValueError(f"mixture: (kinds, edges, operations) is {shapes[0]}, the space {self.space.name!r} has {shapes[1]}")
        if bool((mixture.alive & self._absent).any()):
            raise ValueError(f"mixture: an operation is alive on an edge that does not carry it in the space {self.space.name!r}")


def _names(space: Space, row: list[bool]) -> list[str]:
    return [name for name, lives in zip(space.operations, row, strict=True) if lives and name != "none"]


def make_lane(mixture: Mixture, space: Space, kind: int, batch: int) -> Lane:
    """Cut one cell kind's weights out of a mixture, each as a scalar or as (B, 1, 1, 1) for batched architectures.

    "none" is never computed: where it is alive it takes its share of the weight and adds nothing.
    """
    weights, host = mixture.weights, mixture.alive
    if mixture.edges is not None:
        weights = weights * mixture.edges.unsqueeze(-1)
    if weights.dim() == 4:
        rows = weights[:, kind].repeat_interleave(batch // mixture.groups, 0)
        weights, host = rows.movedim(0, 2)[..., None, None, None], host[:, kind]
    else:
        weights, host = weights[kind], host[kind].unsqueeze(0)
    some, every = host.any(0).tolist(), host.all(0).tolist()
    edges = [
        {
            name: Term(weights[e, o], None if every[e][o] else host[:, e, o])
            for o, name in enumerate(space.operations)
            if some[e][o] and name != "none"
        }
        for e in range(len(space.edges))
    ]
    return Lane(edges, mixture.groups)


def initialise(model: nn.Module, generator: torch.Generator, *, kaiming: bool = True) -> None:
    """Draw the weights of all convolutions and linear layers afresh, in place, from one addressed generator.

    Convolutions are Kaiming-normal (fan-in, ReLU gain), as the paper says (section 5); linear heads keep PyTorch's
    U(+-1/sqrt(fan-in)), as the published head does. ``kaiming=False`` gives convolutions that uniform draw too: what the
    published code does in effect (reference note, section 8.1). Biases become zero. All other parameters, norms among them,
    are untouched: an operation of your own must not draw such parameters at random. Drawn on the CPU in float32 in module order,
    so every device and precision sees the same weights.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            weight = module.weight
            fan_in = weight[0].numel()
            if kaiming and not isinstance(module, nn.Linear):
                draw = torch.randn(weight.shape, generator=generator) * (2.0 / fan_in) ** 0.5
            else:
                draw = (torch.rand(weight.shape, generator=generator) * 2 - 1) * fan_in**-0.5
            with torch.no_grad():
                weight.copy_(draw)
                if module.bias is not None:
                    module.bias.zero_()
