"""The proxies by name: what each needs, costs and comes from. No torch here.

Costs are in forward passes of the batch; a backward pass to activations or to weights counts one forward each. Proxies of one
``group`` come from the same passes, and the groups ``patterns``, ``gradients`` and ``jacobian`` share one forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Group = Literal["patterns", "gradients", "jacobian", "flow", "zen", "size", "ntk", "metantk"]
Best = Literal["largest", "smallest"]


@dataclass(frozen=True)
class Proxy:
    """One row: its group, its cost alone, where it comes from, which end is good, and whether it looks at labels."""

    group: Group
    cost: str
    source: str
    best: Best = "largest"
    labels: bool = False


_NASWOT = (
    "Mellor et al., Neural Architecture Search without Training (ICML 2021), log-determinant of the sum of both Hamming kernels"
)
_SWAP = "Peng et al., SWAP-NAS (ICLR 2024), distinct patterns of single neurons over the first 16 images"
_ZERO_COST = "in the form of Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS (ICLR 2021)"
_JACOV = "Mellor et al., first version (2020): spectrum of the correlations between input gradients"
_EPE = "Lopes et al., EPE-NAS (2021): correlations between input gradients within each class"
_TE_NAS = "Chen et al., TE-NAS (ICLR 2021)"
_LOSS = "3: forward, backward to activations and weights"
_CURVED = "about 9: as the others with the graph, and a backward pass through both"
_INPUT = "2: forward, backward to the images"

PROXIES: dict[str, Proxy] = {
    "naswot": Proxy("patterns", "1: forward", _NASWOT),
    "swap": Proxy("patterns", "1: forward", _SWAP),
    "regions": Proxy("patterns", "1: forward", f"{_TE_NAS}, distinct patterns of single images; of the network itself"),
    "grad_norm": Proxy("gradients", _LOSS, f"sum of the layers' gradient norms, {_ZERO_COST}", labels=True),
    "snip": Proxy("gradients", _LOSS, f"Lee et al., SNIP (ICLR 2019), {_ZERO_COST}", labels=True),
    "fisher": Proxy("gradients", _LOSS, f"Turner et al., BlockSwap (ICLR 2020), {_ZERO_COST}", labels=True),
    "grasp": Proxy("gradients", _CURVED, f"Wang et al., GraSP (ICLR 2020), {_ZERO_COST}", labels=True),
    "jacov": Proxy("jacobian", _INPUT, _JACOV),
    "epe_nas": Proxy("jacobian", _INPUT, _EPE, labels=True),
    "synflow": Proxy("flow", "3 of one image in float64", f"Tanaka et al., SynFlow (NeurIPS 2020), {_ZERO_COST}; its logarithm"),
    "zen": Proxy("zen", "2 of noise", "Lin et al., Zen-NAS (ICCV 2021), one draw"),
    "params": Proxy("size", "1 of two images", "number of parameters"),
    "flops": Proxy("size", "1 of two images", "two for each multiply-add of convolutions and matrix products, an image"),
    "depth": Proxy("size", "1 of two images", "most convolutions and matrix products on a path from the images to the outputs"),
}

_KERNEL = "2 and the Gram matrix: forward, backward to activations"
_META = "MetaNTK-NAS (paper 001), Eq. 10, 11 and 14"

# MetaNTKs by name: the inner loop that is modelled, and the ridge on its support kernel. The published ridges, 1e-3 and 1e-5, are
# so far below its eigenvalues (10 to 10^4) that they give the same numbers; the strong one is not.
META_KERNELS: dict[str, tuple[Literal["maml", "anil"], float]] = {
    "metantk": ("maml", 1e-3),
    "metantk_strong_ridge": ("maml", 100.0),
    "metantk_anil": ("anil", 1e-3),
}

# Of a kernel's eigenvalues: name, meaning, good end.
REDUCTIONS: tuple[tuple[str, str, Best], ...] = (
    ("", "condition number", "smallest"),
    ("_logdet", "log-determinant", "largest"),
    ("_min_eigenvalue", "smallest eigenvalue", "largest"),
    ("_effective_rank", "exponential of the entropy of the normalised eigenvalues (Roy and Vetterli 2007)", "largest"),
)


def _kernel_proxies() -> Iterator[tuple[str, Proxy]]:
    for suffix, meaning, best in REDUCTIONS:
        yield f"ntk{suffix}", Proxy("ntk", _KERNEL, f"{_TE_NAS}: {meaning} of the NTK of summed outputs", best)
        for name, (kernel, reg) in META_KERNELS.items():
            setting = f"{meaning} of the MetaNTK, {kernel.upper()}, regularisation {reg:g}"
            yield f"{name}{suffix}", Proxy("metantk", _KERNEL, f"{_META}: {setting}", best)


PROXIES |= dict(_kernel_proxies())
