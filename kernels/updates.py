"""Parameter updates on flat buffers: a network's P parameters side by side, (P,), or those of T tasks, (T, P).

    SGD       g += lambda theta;  v = mu v + g;  theta -= alpha v                        (torch.optim.SGD without dampening)
    Adam      g += lambda theta (AdamW: theta -= alpha lambda theta);  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
              theta -= alpha (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps)             (Kingma and Ba; Loshchilov and Hutter)
    Reptile   phi += alpha (mean_t theta_t - phi)                                        (Nichol, Achiam and Schulman, batched)

Names ending in ``_`` update in place in one pass (one launch on a GPU with Triton, whatever the number of tasks) and are not
differentiated; the others return new tensors and are differentiable under torch.func, for inner loops. alpha is a float or a
tensor that broadcasts to theta: one rate for all (0-dim: a schedule that a CUDA graph can replay), one a parameter (P,), one a
task (T, 1). No synchronisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

Rate = float | Tensor
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class AdamRule:
    """Which Adam: (b1, b2), each at least 0 and below 1; eps; lambda; and whether its decay is ``decoupled`` (AdamW)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers of at least 0 and below 1, got {self.betas}")
        if self.eps < 0:
            raise ValueError(f"eps: expected at least 0, got {self.eps}")

    def corrections(self, step: int | Tensor) -> tuple[Rate, Rate]:
        """(scale, floor): the corrected step is rate scale m / (sqrt(v) + floor), scale = sqrt(1 - b2^k) / (1 - b1^k).

        In float64: 1 - b2^1 would lose four digits in float32.
        """
        count = step.double() if isinstance(step, Tensor) else step
        root = (1 - self.betas[1] ** count) ** 0.5
        return root / (1 - self.betas[0] ** count), self.eps * root


DEFAULT_ADAM = AdamRule()


def sgd(
    parameters: Tensor,
    gradient: Tensor,
    velocity: Tensor | None = None,
    *,
    rate: Rate,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """One SGD step as a differentiable function: (theta, v) after it; without a ``velocity``, no momentum and v is None."""
    _check_momentum(velocity, momentum)
    if weight_decay:
        gradient = gradient + weight_decay * parameters
    if velocity is not None:
        velocity = gradient = momentum * velocity + gradient
    return parameters - rate * gradient, velocity


def adam(
    parameters: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    step: int,
    *,
    rate: Rate,
    rule: AdamRule = DEFAULT_ADAM,
) -> tuple[Tensor, Tensor, Tensor]:
    """One Adam step as a differentiable function: (theta, m, v) after step number ``step``, counted from 1.

    The root's derivative is taken as 0 where v is 0: there g was always 0 (a masked or frozen weight), and m / eps carries the
    step's derivative, whereas infinity times zero would make the whole meta-gradient NaN.
    """
    if rule.decoupled:
        parameters = parameters * (1 - rate * rule.weight_decay)
    elif rule.weight_decay:
        gradient = gradient + rule.weight_decay * parameters
    b1, b2 = rule.betas
    first = b1 * first + (1 - b1) * gradient
    second = b2 * second + (1 - b2) * gradient * gradient
    still = second == 0
    root = (second + still.to(second.dtype)).sqrt() * ~still
    scale, floor = rule.corrections(step)
    return parameters - rate * scale * first / (root + floor), first, second


def reptile(meta: Tensor, adapted: Tensor, rate: Rate) -> Tensor:
    """phi after a Reptile step as a differentiable function of ``meta`` (P,) and ``adapted`` (T, P)."""
    return meta + rate * (adapted.mean(0) - meta)


@torch.no_grad()
def sgd_(
    parameters: Tensor,
    gradient: Tensor,
    velocity: Tensor | None = None,
    *,
    rate: Rate,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> None:
    """Update ``parameters`` and ``velocity`` (zeros before the first step; None: no momentum) in place.

    All are contiguous, (P,) or (T, P), of one dtype and device; ``gradient`` is left alone. Reads 3 and writes 2 values a
    parameter, without momentum 2 and 1.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, rank, shape, layout, device or range, before anything is written.
    """
    _check_momentum(velocity, momentum)
    states = {} if velocity is None else {"velocity": velocity}
    check_buffers(parameters, gradient, states, rate)
    if on_triton(parameters):
        from engine.kernels.triton_updates import launch_sgd

        launch_sgd(parameters, gradient, velocity, rate, momentum, weight_decay)
    elif isinstance(rate, Tensor):
        if weight_decay:
            gradient = gradient.add(parameters, alpha=weight_decay)
        step = gradient if velocity is None else velocity.mul_(momentum).add_(gradient)
        parameters.addcmul_(step, rate.expand_as(parameters), value=-1)
    elif parameters.numel():
        torch.ops.aten._fused_sgd_(
            _rows(parameters),
            _rows(gradient),
            [] if velocity is None else _rows(velocity),
            weight_decay=weight_decay,
            momentum=momentum,
            lr=rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )
    # Neither our kernels nor torch's fused ones tell autograd that they wrote.
    torch.autograd.graph.increment_version([parameters, *states.values()])


@torch.no_grad()
def adam_(
    parameters: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    step: int | Tensor,
    *,
    rate: Rate,
    rule: AdamRule = DEFAULT_ADAM,
) -> None:
    """Update ``parameters`` and the moments ``first`` and ``second`` (zeros before the first step) in place.

    All are contiguous, (P,) or (T, P), of one dtype and device; ``gradient`` is left alone. ``step`` counts from 1; a 0-dim
    tensor lets a CUDA graph count. ``decoupled`` makes AdamW of Adam. Reads 4 and writes 3 values a parameter.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, rank, shape, layout, device or range, before anything is written.
    """
    check_buffers(parameters, gradient, {"first": first, "second": second}, rate)
    _check_step(step, parameters)
    if on_triton(parameters):
        from engine.kernels.triton_updates import launch_adam

        launch_adam(parameters, gradient, first, second, step, rate, rule)
    elif isinstance(rate, Tensor) or parameters.device.type != "cpu":
        _adam_chain(parameters, gradient, first, second, step, rate, rule)
    elif parameters.numel():
        fused = torch.ops.aten._fused_adamw_ if rule.decoupled else torch.ops.aten._fused_adam_
        rows = _rows(parameters)
        fused(
            rows,
            _rows(gradient),
            _rows(first),
            _rows(second),
            [],
            [torch.as_tensor(step, dtype=torch.float32)] * len(rows),
            lr=rate,
            beta1=rule.betas[0],
            beta2=rule.betas[1],
            weight_decay=rule.weight_decay,
            eps=rule.eps,
            amsgrad=False,
            maximize=False,
        )
    torch.autograd.graph.increment_version([parameters, first, second])


def _rows(buffer: Tensor) -> list[Tensor]:
    """(P,) as one row, (T, P) as T.

    The last numbers of a buffer round otherwise than those before them: the bits of a task's row would depend on the other rows.
    """
    return [buffer] if buffer.dim() == 1 else list(buffer.unbind())


@torch.no_grad()
def reptile_(meta: Tensor, adapted: Tensor, rate: Rate) -> None:
    """Move ``meta`` (P,) towards the mean of ``adapted`` (T, P), T >= 1, in place; ``rate`` is a float, 0-dim or (P,).

    Reads T + 1 and writes 1 value a parameter.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, rank, shape, layout or device, before anything is written.
    """
    if adapted.ndim != 2 or not len(adapted) or adapted.shape[1:] != meta.shape:
        raise ValueError(f"adapted: expected (T, P) with meta's P, T >= 1, got {tuple(adapted.shape)}, meta {tuple(meta.shape)}")
    check_buffers(meta, adapted[0], {"adapted": adapted}, rate)
    if on_triton(meta):
        from engine.kernels.triton_updates import launch_reptile

        launch_reptile(meta, adapted, rate)
        torch.autograd.graph.increment_version(meta)
    else:
        meta.lerp_(adapted.mean(0), rate.expand_as(meta) if isinstance(rate, Tensor) else rate)


def _adam_chain(
    parameters: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int | Tensor, rate: Rate, rule: AdamRule
) -> None:
    """:func:`adam_` operation by operation, for rates that differ between parameters or tasks."""
    b1, b2 = rule.betas
    if rule.decoupled:
        parameters.mul_(1 - rate * rule.weight_decay)
    elif rule.weight_decay:
        gradient = gradient.add(parameters, alpha=rule.weight_decay)
    first.mul_(b1).add_(gradient, alpha=1 - b1)
    second.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
    scale, floor = rule.corrections(step)
    parameters.sub_((first / second.sqrt().add_(floor)).mul_(rate * scale))


def on_triton(tensor: Tensor) -> bool:
    """Whether the kernels of :mod:`engine.kernels.triton_updates` take ``tensor``."""
    return tensor.is_cuda and tensor.dtype != torch.float64 and find_spec("triton") is not None


def _check_momentum(velocity: Tensor | None, momentum: float) -> None:
    if velocity is None and momentum:
        raise ValueError(f"velocity: expected a tensor, since momentum is {momentum}, got None")


def _check_step(step: int | Tensor, parameters: Tensor) -> None:
    if isinstance(step, Tensor) and (step.ndim or step.device != parameters.device):
        raise ValueError(f"step: expected 0-dim on {parameters.device}, got {tuple(step.shape)} on {step.device}")
    if not isinstance(step, Tensor) and step < 1:
        raise ValueError(f"step: expected at least 1, got {step}")


def check_buffers(parameters: Tensor, gradient: Tensor, states: dict[str, Tensor], rate: Rate) -> None:
    """Raise a TypeError or ValueError that names the first argument which an update in place cannot take."""
    for name, tensor in {"parameters": parameters, "gradient": gradient, **states}.items():
        if tensor.dtype not in DTYPES or tensor.dtype != parameters.dtype:
            wanted = ", ".join(str(d) for d in DTYPES) if name == "parameters" else f"{parameters.dtype} as parameters are"
            raise TypeError(f"{name}: expected {wanted}, got {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.device != parameters.device:
            raise ValueError(f"{name}: expected on {parameters.device}, got {tuple(tensor.shape)} on {tensor.device}")
        if tensor.layout != torch.strided or not tensor.is_contiguous() or tensor.ndim not in (1, 2):
            raise ValueError(f"{name}: expected contiguous (P,) or (T, P), got {tuple(tensor.shape)}, strides {tensor.stride()}")
        if name != "adapted" and tensor.shape != parameters.shape:
            raise ValueError(f"{name}: expected {tuple(parameters.shape)} as parameters are, got {tuple(tensor.shape)}")
    if isinstance(rate, Tensor):
        if not rate.is_floating_point() or rate.device != parameters.device:
            raise TypeError(f"rate: expected floating on {parameters.device}, got {rate.dtype} on {rate.device}")
        shape = (1,) * (parameters.ndim - rate.ndim) + tuple(rate.shape)
        if len(shape) != parameters.ndim or any(a not in (1, b) for a, b in zip(shape, parameters.shape, strict=True)):
            raise ValueError(f"rate: expected a shape that broadcasts to {tuple(parameters.shape)}, got {tuple(rate.shape)}")
