"""The supernet: stem, cells, tail and a linear head; its architecture is the argument ``mixture``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.spaces.cells import Cell, Lane
from engine.spaces.mixture import Mixture
from engine.spaces.norms import norm_factory
from engine.spaces.operations import gated_relu
from engine.spaces.space import Space


class Supernet(nn.Module):
    """All operations of a space on all edges (reference note, section 1).

    Args:
        space: the table of what is searched.
        cells: number of cells; those at one and two thirds of the depth reduce.
        channels: width C of the first cells; doubled by each reduction.
        outputs: logits of the linear head.
        channels_in: channels of the images.
        norm: ``"groupnorm16"`` for scoring (samples stay independent), ``"batchstat"`` for region counts.
        stem: False feeds the image to the first cell (the thin network of region counts).
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
    ) -> None:
        super().__init__()
        self.space = space
        make_norm = norm_factory(norm)
        self.stem = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False) if stem else None
        self.stem_norm = make_norm(channels) if stem else None
        plans = space.layout(cells, channels, stem_channels=channels if stem else channels_in)
        everything = space.alive()
        concat = range(space.inputs, space.states)
        self.cells = nn.ModuleList(
            Cell(space, plan, [_names(space, row) for row in everything[space.kinds.index(plan.kind)]], concat, make_norm)
            for plan in plans
        )
        self.features = plans[-1].channels * space.nodes
        self.tail_norm = make_norm(self.features)
        self.classifier = nn.Linear(self.features, outputs)

    def forward(self, x: Tensor, mixture: Mixture) -> Tensor:
        """(B, C_in, H, W) and a mixture of G architectures with G dividing B -> logits (B, outputs)."""
        groups = mixture.groups
        if x.shape[0] % groups:
            raise ValueError(f"x: a batch of {x.shape[0]} cannot be divided among the {groups} architectures of the mixture")
        lanes = {kind: make_lane(mixture, index, x.shape[0]) for index, kind in enumerate(self.space.kinds)}
        if self.stem is not None and self.stem_norm is not None:
            x = self.stem_norm(self.stem(x), groups)
        s0 = s1 = x
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, lanes[cell.plan.kind])
        tail = gated_relu(self.tail_norm(s1, groups))
        return self.classifier(tail.mean((2, 3)))


def _names(space: Space, row: list[bool]) -> list[str]:
    return [name for name, lives in zip(space.operations, row, strict=True) if lives]


def make_lane(mixture: Mixture, kind: int, batch: int) -> Lane:
    """Cut one cell kind's weights out of a mixture, each as a scalar or as (B, 1, 1, 1) for batched architectures."""
    weights, host, edges = mixture.weights, mixture.alive, mixture.edges
    if edges is not None:
        weights = weights * edges.unsqueeze(-1)
    if weights.dim() == 4:
        weights = weights[:, kind].repeat_interleave(batch // mixture.groups, 0)[:, :, :, None, None, None].movedim(0, 2)
        host = host[:, kind]
    else:
        weights, host = weights[kind], host[kind].unsqueeze(0)
    some, every = host.any(0).tolist(), host.all(0).tolist()
    rows = range(len(some))
    columns = range(len(some[0]))
    weight = [[weights[e, o] if some[e][o] else None for o in columns] for e in rows]
    alive = [[host[:, e, o] if some[e][o] and not every[e][o] else None for o in columns] for e in rows]
    return Lane(weight, alive, mixture.groups)


def initialise(model: nn.Module, generator: torch.Generator, *, kaiming: bool = True) -> None:
    """Draw the weights of all convolutions and linear layers afresh, in place, from one addressed generator.

    Convolutions are Kaiming-normal (fan-in, ReLU gain), as the paper says (section 5); linear heads keep PyTorch's
    U(+-1/sqrt(fan-in)), as the published head does. ``kaiming=False`` gives convolutions that uniform draw too: what the
    published code does in effect (reference note, section 8.1). Biases become zero; norms are untouched. Drawn on the CPU in
    float32 in module order, so every device and precision sees the same weights.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight
            fan_in = weight[0].numel()
            if kaiming and isinstance(module, nn.Conv2d):
                draw = torch.randn(weight.shape, generator=generator) * (2.0 / fan_in) ** 0.5
            else:
                draw = (torch.rand(weight.shape, generator=generator) * 2 - 1) * fan_in**-0.5
            with torch.no_grad():
                weight.copy_(draw)
                if module.bias is not None:
                    module.bias.zero_()
