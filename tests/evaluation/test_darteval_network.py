"""DARTS's evaluation networks: published counts, ImageNet's stem, the auxiliary tower."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.errors import ConfigurationError
from engine.runs.streams import stream
from engine.spaces.darts import PUBLISHED
from engine.spaces.network import build_network
from engine.spaces.norms import norm_factory
from engine.spaces.operations import FactorizedReduce
from engine.spaces.stems import AuxiliaryTower, StridedStem
from engine.spaces.supernet import initialise

# Reference note tetlo-darts, section 7: 20 cells, C = 36, 10 classes.
CIFAR = {
    "darts-v1": 3_169_414,
    "darts-v2": 3_349_342,
    "pdarts": 3_433_798,
    "prdarts": 3_444_814,
    "pcdarts-cifar": 3_634_678,
    "pcdarts-imagenet": 3_721_510,
}
TOWER = 476_426

# Millions of parameters as the papers print them: 14 cells, C = 48, 1000 classes.
IMAGENET = {"darts-v2": 4.7, "pdarts": 4.9, "pcdarts-cifar": 5.3, "pcdarts-imagenet": 5.3}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_cifar_networks_have_the_published_parameters(name: str) -> None:
    with torch.device("meta"):
        plain, with_tower = (
            build_network(PUBLISHED[name], channels=36, classes=10, cells=20, auxiliary=wanted) for wanted in (False, True)
        )
    assert parameters(plain) == CIFAR[name]
    assert parameters(with_tower) == CIFAR[name] + TOWER


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_networks_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        network = build_network(PUBLISHED[name], channels=48, classes=1000, cells=14, stem="imagenet")
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert round(parameters(network) / 1e6, 1) == IMAGENET[name]


def test_the_strided_stem_feeds_two_resolutions() -> None:
    stem = StridedStem(3, 8, norm_factory("batchnorm"))
    rectified, last = (y.detach() for y in stem(torch.randn(2, 3, 64, 64, generator=stream(0, "x"))))
    assert rectified.shape == (2, 8, 16, 16)
    assert float(rectified.min()) == 0.0
    assert last.shape == (2, 8, 8, 8)
    assert float(last.min()) < 0
    network = build_network(PUBLISHED["darts-v2"], channels=4, classes=3, cells=3, stem="imagenet")
    assert isinstance(network.cells[0].preprocess0, FactorizedReduce)
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_the_tower_reads_the_last_reduction_cell_and_leaves_the_logits_alone() -> None:
    images = torch.randn(4, 3, 32, 32, generator=stream(0, "x"))
    network = build_network(PUBLISHED["darts-v1"], channels=4, classes=5, cells=6, auxiliary=True)
    initialise(network, stream(0, "w"))
    network.eval()
    logits, auxiliary = network.training_logits(images)
    torch.testing.assert_close(logits, network(images))
    assert auxiliary is not None
    assert auxiliary.shape == (4, 5)
    auxiliary.sum().backward()
    reached = {name.split(".")[1] for name, p in network.named_parameters() if p.grad is not None and name.startswith("cells")}
    assert reached == {"0", "1", "2", "3", "4"}
    assert network.classifier.weight.grad is None
    plain = build_network(PUBLISHED["darts-v1"], channels=4, classes=5, cells=6)
    assert plain.training_logits(images)[1] is None


def test_towers_as_published() -> None:
    norm = norm_factory("batchnorm")
    with torch.no_grad():
        for imagenet, side in ((False, 8), (True, 7)):
            tower = AuxiliaryTower(6, 4, norm, imagenet=imagenet).eval()
            names = [type(part).__name__ for part in tower.children()]
            assert names == ["Conv2d", "BatchNorm", "Conv2d", *([] if imagenet else ["BatchNorm"]), "Linear"]
            x = torch.randn(2, 6, side, side, generator=stream(0, "x"))
            layers = [nn.ReLU(), nn.AvgPool2d(5, 2 if imagenet else 3), tower.conv1, tower.norm1, nn.ReLU(), tower.conv2]
            layers += [nn.ReLU()] if imagenet else [tower.norm2, nn.ReLU()]
            published = nn.Sequential(*layers, nn.Flatten(), tower.classifier)
            torch.testing.assert_close(tower(x), published(x))
            assert tower(torch.randn(2, 6, side + 9, side + 9)).shape == (2, 4)
            with pytest.raises(ConfigurationError, match=f"at least {side} pixels, got {side - 1}"):
                tower(x[:, :, 1:, 1:])
