"""What a network is before it computes anything: parameters, multiply-adds, depth."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.scoring.plain import flat_outputs, run_on, stand_ins
from engine.scoring.proxies.values import scored
from engine.scoring.result import Score

_LAYERS = ("ConvolutionBackward", "AddmmBackward", "MmBackward", "LinearBackward")


def sizes(model: nn.Module, images: Tensor) -> dict[str, Score]:
    """``params``, ``flops`` (of one image) and ``depth``, from one forward pass of at most two images.

    What is computed counts for ``flops`` even where the outputs do not depend on it; ``depth`` follows only what they depend on.
    """
    x = images[:2]
    stands = stand_ins(model, {name for name, _ in model.named_parameters()})

    def body() -> tuple[int, int]:
        with _Flops() as counter:
            y = flat_outputs(model(x), len(x))
        return counter.total // len(x), _depth(y.grad_fn)

    flops, depth = run_on(model, stands, body)
    parameters = sum(p.numel() for p in model.parameters())
    return {name: scored(name, float(value)) for name, value in (("params", parameters), ("flops", flops), ("depth", depth))}


class _Flops(TorchDispatchMode):
    """Counts by torch's own formulas. Torch's counter follows modules too, which fails where a model takes gradients itself."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        result = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _depth(root: Any) -> int:
    """Most layers on a path down from a node of the graph."""
    depths: dict[Any, int] = {}
    stack = [root] if root is not None else []
    while stack:
        node = stack[-1]
        below = [following for following, _ in node.next_functions if following is not None]
        missing = [following for following in below if following not in depths]
        if missing:
            stack += missing
            continue
        stack.pop()
        layer = node.name().startswith(_LAYERS)
        depths[node] = layer + max((depths[following] for following in below), default=0)
    return depths.get(root, 0)
