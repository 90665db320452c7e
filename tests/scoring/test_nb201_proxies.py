from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.runs.streams import stream
from engine.scoring.proxies.catalogue import PROXIES
from engine.scoring.proxies.flow import synflow
from engine.scoring.proxies.scores import LabelledBatch, scores
from engine.scoring.proxies.spectra import reductions
from engine.scoring.regions import linear_regions
from engine.scoring.score import EpisodeBatch, score
from engine.spaces.nas_bench_201 import to_genotype
from engine.spaces.network import build_network

KERNELS = tuple(name for name, proxy in PROXIES.items() if proxy.group in ("ntk", "metantk"))
PLAIN = tuple(name for name in PROXIES if name not in KERNELS)


def model(norm: bool = True, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(6)] if norm else []
    layers = [nn.Conv2d(3, 6, 3, padding=1), *middle, nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.AvgPool2d(5), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 3)).to(dtype)


def batch(count: int = 9) -> LabelledBatch:
    generator = torch.Generator().manual_seed(1)
    return LabelledBatch(torch.randn(count, 3, 5, 5, dtype=torch.float64, generator=generator), torch.arange(count) % 3)


def codes(net: nn.Module, x: torch.Tensor) -> np.ndarray:
    seen = []
    hooks = [
        m.register_forward_hook(lambda m, i, o: seen.append(o.flatten(1) > 0)) for m in net.modules() if isinstance(m, nn.ReLU)
    ]
    net(x)
    for hook in hooks:
        hook.remove()
    return torch.cat(seen, 1).numpy()


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def test_patterns_are_those_of_hooks():
    net, x = model(), batch().images
    found = scores(net, x, ("naswot", "swap", "regions"))
    c = codes(net, x).astype(float)
    kernel = c @ c.T + (1 - c) @ (1 - c).T
    assert found["naswot"].value == pytest.approx(np.linalg.slogdet(kernel)[1], rel=1e-12)
    assert found["swap"].value == len(np.unique(c.T, axis=0))
    assert found["regions"].value == len(np.unique(c, axis=0)) == linear_regions(net, x).value
    twice = scores(net, torch.cat([x, x[:2]]), ("naswot", "regions"))
    assert twice["regions"].value == len(np.unique(c, axis=0))
    assert twice["naswot"].status == "singular"


def test_swap_looks_at_sixteen_images():
    net, (x, _) = model(norm=False), batch(40)
    assert scores(net, x, ["swap"])["swap"] == scores(net, x[:16], ["swap"])["swap"]


def test_shared_rectifiers_count_for_each_reader():
    cell = (3, 2, 4, 1, 3, 2)  # node 0 is rectified for two operations, node 1 for one, node 2 for one
    net = build_network(to_genotype(cell), channels=4, classes=3, cells=1, tail=True).double()
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    seen = {}
    inner = net.cells[0]
    state = net.stem_norm(net.stem(x))
    seen[0] = state > 0
    node = [state, inner.edges[0]["nor_conv_3x3"](F.relu(state))]
    node.append(inner.edges[1]["nor_conv_1x1"](F.relu(state)) + F.avg_pool2d(node[1], 3, 1, 1, count_include_pad=False))
    last = node[0] + inner.edges[4]["nor_conv_3x3"](F.relu(node[1])) + inner.edges[5]["nor_conv_1x1"](F.relu(node[2]))
    parts = [node[0], node[0], node[1], node[2], net.tail_norm(last)]
    c = torch.cat([(part > 0).flatten(1) for part in parts], 1).numpy().astype(float)
    assert scores(net, x, ["naswot"])["naswot"].value == pytest.approx(
        np.linalg.slogdet(c @ c.T + (1 - c) @ (1 - c).T)[1], rel=1e-12
    )


def test_gradients_are_those_of_autograd():
    net, (x, y) = model(), batch()
    found = scores(net, LabelledBatch(x, y), ("grad_norm", "snip", "fisher", "grasp"))
    parameters = weights(net)
    outputs = []
    hooks = [m.register_forward_hook(lambda m, i, o: outputs.append(o)) for m in net if isinstance(m, nn.Conv2d | nn.Linear)]
    loss = F.cross_entropy(net(x), y)
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(loss, [*parameters, *outputs], create_graph=True)
    own, above = gradients[: len(parameters)], gradients[len(parameters) :]
    assert found["grad_norm"].value == pytest.approx(sum(float(g.detach().norm()) for g in own), rel=1e-10)
    assert found["snip"].value == pytest.approx(
        sum(float((w * g).detach().abs().sum()) for w, g in zip(parameters, own, strict=True))
    )
    expected = 0.0
    for a, g in zip(outputs, above, strict=True):
        product = (a * g).detach().reshape(len(x), a.shape[1], -1).sum(2)
        expected += float((product**2).mean(0).sum() / 2)
    assert found["fisher"].value == pytest.approx(expected, rel=1e-10)
    # the product with the Hessian by finite differences along the gradient
    step, moved = 1e-6, []
    for sign in (1, -1):
        other = copy.deepcopy(net)
        with torch.no_grad():
            for w, g in zip(weights(other), own, strict=True):
                w += sign * step * g
        moved.append(torch.autograd.grad(F.cross_entropy(other(x), y), weights(other)))
    curved = [(a - b) / (2 * step) for a, b in zip(*moved, strict=True)]
    expected = -sum(float((w * h).detach().sum()) for w, h in zip(parameters, curved, strict=True))
    assert found["grasp"].value == pytest.approx(expected, rel=1e-5)


def test_jacobians_are_those_of_single_images():
    net, (x, y) = model(norm=False), batch()
    rows = []
    for image in x:
        leaf = image[None].clone().requires_grad_()
        rows.append(torch.autograd.grad(net(leaf).sum(), leaf)[0].flatten().numpy())
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(rows))
    found = scores(net, LabelledBatch(x, y), ("jacov", "epe_nas"))
    assert found["jacov"].value == pytest.approx(-np.sum(np.log(eigenvalues + 1e-5) + 1 / (eigenvalues + 1e-5)), rel=1e-6)
    expected = 0.0
    for label in range(3):
        mine = [row for row, own in zip(rows, y.tolist(), strict=True) if own == label]
        expected += abs(np.log(np.abs(np.corrcoef(mine)) + 1e-5).sum())
    assert found["epe_nas"].value == pytest.approx(expected, rel=1e-8)


def test_synflow_without_norms():
    net, (x, _) = model(), batch()
    plain = nn.Sequential(*(m for m in copy.deepcopy(net) if not isinstance(m, nn.BatchNorm2d)))
    with torch.no_grad():
        for m in plain:
            if isinstance(m, nn.Conv2d | nn.Linear):
                m.weight.abs_()
                m.bias.zero_()
    gradients = torch.autograd.grad(plain(torch.ones_like(x[:1])).sum(), weights(plain))
    expected = sum(float((w * g).detach().sum()) for w, g in zip(weights(plain), gradients, strict=True))
    assert scores(net, x, ["synflow"])["synflow"].value == pytest.approx(math.log(expected), rel=1e-12)


@pytest.mark.parametrize(("scale", "layers"), [(1e3, 5), (1e20, 20)])
def test_synflow_of_a_chain_has_a_closed_form_where_it_overflows_too(scale, layers):
    net = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(layers)))
    with torch.no_grad():
        for layer in net:
            layer.weight.fill_(-scale)
    found = synflow(net, torch.ones(1, 1))
    assert found.status == "ok"
    assert found.value == pytest.approx(layers * math.log(scale) + math.log(layers), rel=1e-6)


def test_zen_of_one_convolution():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    x = torch.zeros(6, 3, 5, 5, dtype=torch.float64)
    generator = stream(7, "zen")
    weight = torch.randn(4, 3, 1, 1, generator=generator).double()
    torch.randn(2, 4, generator=generator)
    image, change = (torch.randn(x.shape, generator=generator).double() for _ in range(2))
    first, second = F.conv2d(image, weight), F.conv2d(image + 0.01 * change, weight)
    # the last map is the pooled one, before it is flattened
    pooled = [F.batch_norm(y, None, None, training=True).mean((2, 3)) for y in (first, second)]
    moved = (pooled[0] - pooled[1]).abs().sum(1).mean()
    expected = math.log(float(moved)) + 0.5 * math.log(float(first.var((0, 2, 3), correction=0).mean()))
    found = scores(net.double(), x, ["zen"], seed=7)["zen"]
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert scores(net, x, ["zen"], seed=8)["zen"] != found


def test_sizes():
    found = scores(model(), batch().images, ("params", "flops", "depth"))
    assert found["params"].value == sum(p.numel() for p in model().parameters())
    assert found["flops"].value == 2 * (25 * 6 * 27 + 25 * 6 * 4 + 12)
    assert found["depth"].value == 3


def test_kernels_are_those_of_the_single_calls():
    net, (x, _) = model(norm=False), batch(12)
    episodes = EpisodeBatch(x[:6], x[6:], 2)
    found = scores(net, episodes, KERNELS)
    assert found["ntk"].value == pytest.approx(score(net, x, "ntk").value, rel=1e-9)
    for name, kind, reg in (("metantk", "maml", 1e-3), ("metantk_strong_ridge", "maml", 100.0), ("metantk_anil", "anil", 1e-3)):
        assert found[name].value == pytest.approx(score(net, episodes, "metantk", kernel=kind, reg=reg).value, rel=1e-9)


def test_reductions_of_known_spectra():
    found = reductions(torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)), "ntk")
    assert {name: value.value for name, value in found.items()} == pytest.approx(
        {
            "ntk": 4.0,
            "ntk_logdet": math.log(8),
            "ntk_min_eigenvalue": 1.0,
            "ntk_effective_rank": math.exp(-sum(p * math.log(p) for p in (1 / 7, 2 / 7, 4 / 7))),
        }
    )
    assert {s.status for s in reductions(torch.zeros(3, 3, dtype=torch.float64), "ntk").values()} == {"singular"}
    assert {s.status for s in reductions(torch.full((3, 3), torch.nan, dtype=torch.float64), "ntk").values()} == {"nonfinite"}


def test_one_by_one_is_all_at_once():
    net, data = model(), batch()
    together = scores(net, data, PLAIN)
    assert tuple(together) == PLAIN
    for name in PLAIN:
        alone = score(net, data.images if name == "regions" else data, name)
        assert alone.value == pytest.approx(together[name].value, rel=1e-9), name
    assert score(net, data, list(PLAIN)) == together
    assert all(found.ok for found in together.values())


def test_forward_passes_are_shared():
    net, data = model(), batch()
    images: list[int] = []
    net.register_forward_pre_hook(lambda m, args: images.append(len(args[0])))
    scores(net, data, PLAIN)
    # patterns, gradients and Jacobian together; one image of ones; two of noise; two images for the sizes
    assert images == [9, 1, 9, 9, 2]


def test_the_model_comes_back_as_it_was():
    net, data = model(), batch()
    net[0].weight.requires_grad_(False)
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    scores(net, data, PLAIN)
    scores(net, EpisodeBatch(data.images[:3], data.images[3:6], 1), KERNELS)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not net[0].weight.requires_grad
    assert torch.equal(torch.get_rng_state(), random)


def test_what_is_not_finite_says_so():
    net, data = model(), batch()
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = torch.nan
    found = scores(net, data, PLAIN)
    assert {name: s.status for name, s in found.items() if s.ok} == {"zen": "ok", "params": "ok", "flops": "ok", "depth": "ok"}
    assert {s.status for name, s in found.items() if not s.ok} == {"nonfinite"}


@pytest.mark.parametrize(
    ("data", "metrics", "message"),
    [
        (batch().images, ("snip",), "give a LabelledBatch"),
        (batch().images, ("epe_nas",), "give a LabelledBatch"),
        (LabelledBatch(batch().images, torch.arange(9)), ("snip",), "labels from 0 to 2"),
        (batch(), ("metantk",), "take an EpisodeBatch"),
        (batch(), ("snap",), "unknown 'snap'; known are naswot, "),
        (batch(), "snip", "expected a tuple or list of names"),
        ([1, 2], ("snip",), "expected images"),
    ],
)
def test_what_is_missing_is_named(data, metrics, message):
    with pytest.raises(ValueError, match=message):
        scores(model(), data, metrics)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x).flatten(1).relu())


class Nameless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(75, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).float().relu() @ self.matrix


class Force(nn.Module):
    """Answers with the gradient of an energy."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(x).relu().sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("name", ["jacov", "epe_nas", "synflow", "zen"])
def test_what_changes_images_asks_for_real_numbers(name):
    words = torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match=f"{name} changes the images"):
        scores(Words(), LabelledBatch(words, labels), (name,))
    assert scores(Words(), LabelledBatch(words, labels), ("snip",))["snip"].ok


@pytest.mark.parametrize("name", ["snip", "fisher", "grasp", "synflow", "ntk_logdet"])
def test_a_model_without_weights_is_named(name):
    with pytest.raises(ValueError, match=f"{name} looks at weights.*Nameless has none"):
        scores(Nameless(), LabelledBatch(batch().images.float(), batch().labels), (name,))


def test_labels_are_integers_of_any_size():
    images, labels = batch()
    wanted = scores(model(), LabelledBatch(images, labels), ("snip",))
    for dtype in (torch.int32, torch.uint8):
        assert scores(model(), LabelledBatch(images, labels.to(dtype)), ("snip",)) == wanted
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(ValueError, match="integer labels from 0 to 2"):
            scores(model(), LabelledBatch(images, labels.to(dtype)), ("snip",))


def test_no_images_and_outputs_without_gradients_are_named():
    images, labels = batch()
    with pytest.raises(ValueError, match="at least one image"):
        scores(model(), images[:0], ("naswot",))
    whole = nn.Sequential(model(), nn.Threshold(0.0, 0.0))
    whole.register_forward_hook(lambda m, i, y: y > 0)
    with pytest.raises(ValueError, match=r"outputs are torch\.bool"):
        scores(whole, LabelledBatch(images, labels), ("snip",))


def test_sizes_of_a_model_that_takes_gradients():
    found = scores(Force(), torch.ones(2, 6), ("params", "flops"))
    assert found["params"].value == 35
    assert found["flops"].value == 2 * 2 * 6 * 5, "one product forward, one backward"
