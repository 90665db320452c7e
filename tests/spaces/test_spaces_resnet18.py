"""The first layers of ResNet-18 before another network, and where their weights come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import ConfigurationError
from engine.runs.streams import stream
from engine.spaces.network import load_weights
from engine.spaces.resnet18 import FirstLayers, ResNet18Extractor
from engine.spaces.supernet import initialise


def test_keeps_the_shape_and_has_the_published_size() -> None:
    extractor = ResNet18Extractor(1)
    assert sum(p.numel() for p in extractor.parameters()) == 686_351  # reference note on MetaNAS, section 5
    for channels, height, width in ((1, 8, 8), (3, 5, 7)):
        with torch.device("meta"):
            assert ResNet18Extractor(channels)(torch.empty(2, channels, height, width)).shape == (2, channels, height, width)


def test_reads_every_part_of_the_image() -> None:
    extractor = ResNet18Extractor(1)
    initialise(extractor, stream(0, "weights"))
    x = torch.rand(2, 1, 4, 4, generator=stream(0, "x"), requires_grad=True)
    (gradient,) = torch.autograd.grad(extractor(x).square().sum(), x)
    assert float(gradient.abs().min()) > 0


def state() -> dict[str, torch.Tensor]:
    """A state as torchvision's would be, with layers that are not needed."""
    layers = FirstLayers()
    initialise(layers, stream(1, "weights"))
    names = ("layer1.0.bn1.running_mean", "layer3.0.conv1.weight", "fc.bias")
    return {**layers.state_dict(), **{name: torch.zeros(3) for name in names}}


def test_takes_the_first_layers_of_a_whole_network(tmp_path: Path) -> None:
    given = state()
    assert {"conv1.weight", "bn1.bias", "layer1.1.conv2.weight", "layer2.0.downsample.1.weight"} <= set(given)
    save_file(given, tmp_path / "resnet18.safetensors")
    extractor = ResNet18Extractor(1)
    load_weights(extractor.layers, tmp_path / "resnet18.safetensors", others=True)
    assert all(torch.equal(value, given[name]) for name, value in extractor.layers.state_dict().items())


@pytest.mark.parametrize("others", [True, False])
def test_refuses_another_network(tmp_path: Path, others: bool) -> None:
    given = state()
    if others:
        given["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    save_file(given, tmp_path / "a.safetensors")
    message = r"conv1.weight' is \(64, 3, 3, 3\), expected \(64, 3, 7, 7\)" if others else "fc.bias' is not part of it"
    with pytest.raises(ConfigurationError, match=message):
        load_weights(FirstLayers(), tmp_path / "a.safetensors", others=others)
