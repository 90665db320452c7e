"""Fixed auxiliary networks: published sizes, geometry, and derivatives of second order."""

from __future__ import annotations

import pytest
import torch

from engine.errors import ConfigurationError
from engine.learning.bilevel import FlatNetwork
from engine.spaces.resnets import DEPTHS, ResNet, fixed_encoder


@pytest.mark.parametrize(
    ("name", "cifar", "imagenet"),
    [
        ("resnet18", 11_173_962, 11_689_512),
        ("resnet50", 23_520_842, 25_557_032),
        ("resnet101", 42_512_970, 44_549_160),
    ],
)
def test_published_parameter_counts(name: str, cifar: int, imagenet: int) -> None:
    with torch.device("meta"):
        small, large = ResNet(DEPTHS[name], 10), ResNet(DEPTHS[name], 1000, strided=True)
    assert sum(p.numel() for p in small.parameters()) == cifar
    assert sum(p.numel() for p in large.parameters()) == imagenet


@pytest.mark.parametrize(("strided", "size", "last"), [(False, 16, 2), (True, 64, 2)])
def test_geometry(strided: bool, size: int, last: int) -> None:
    network = ResNet(DEPTHS["resnet18"], 3, channels_in=1, width=2, strided=strided)
    x = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    assert network.features(x).shape == (2, 16, last, last)
    assert network.embed(x).shape == (2, 16)


@pytest.mark.parametrize(("name", "width"), [("resnet18", 2), ("resnet50", 2), ("simple-cnn", 3)])
def test_second_derivatives(name: str, width: int) -> None:
    encoder = fixed_encoder(name, torch.Generator().manual_seed(1), outputs=3, channels_in=1, size=16, width=width)
    network = FlatNetwork(encoder.double())
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(8, 1, 16, 16, generator=generator, dtype=torch.float64)
    v = torch.randn(network.start.shape, generator=generator, dtype=torch.float64)

    def gradient(w: torch.Tensor, graph: bool = False) -> torch.Tensor:
        w = w.requires_grad_()
        features, logits = network(w, x, None)
        assert features.shape[0] == 8
        return torch.autograd.grad(logits.logsumexp(1).sum() + features.square().sum(), w, create_graph=graph)[0]

    w = network.start.clone().requires_grad_()
    (exact,) = torch.autograd.grad(gradient(w, graph=True), w, v)
    r = 1e-7
    difference = (gradient(network.start + r * v) - gradient(network.start - r * v)) / (2 * r)
    assert float((exact - difference).norm() / exact.norm()) < 1e-4


def test_weights_come_from_the_generator_alone() -> None:
    one, same, other = (
        FlatNetwork(fixed_encoder("resnet18", torch.Generator().manual_seed(s), outputs=3, channels_in=1, size=8, width=2)).start
        for s in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_unknown_network() -> None:
    with pytest.raises(ConfigurationError, match="resnet34"):
        fixed_encoder("resnet34", torch.Generator(), outputs=3, channels_in=1, size=8)
