"""Training steps by address, budgets, tasks, features, networks by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.data.image_set import ImageSet
from engine.errors import ConfigurationError
from engine.evaluation.few_shot import Confusion, Features, evaluate, extract_features
from engine.evaluation.fitting import build
from engine.evaluation.networks import REFERENCES, embed, find_genotype, make_network
from engine.evaluation.options import RFSOptions
from engine.evaluation.protocol import Protocol, alphabets_of, by_alphabet, load_protocol
from engine.evaluation.published import GENOTYPES, REFERENCE_NAMES
from engine.evaluation.tasks import draw, kinds_of
from engine.evaluation.training import Trainer, count_steps
from engine.methods.random_search import draw as draw_cell
from engine.runs.streams import stream
from engine.spaces.space import FEW_SHOT

TINY = RFSOptions(network="res5", steps=4, batch=16, tasks=20, queries=5, augmentation="photo")


@pytest.fixture(scope="module")
def digits() -> Protocol:
    return load_protocol(TINY)


def drawings() -> ImageSet:
    """Two background alphabets and two evaluation alphabets of 3 and 6 characters with 4 drawings each; every drawing is
    different."""
    names = [f"{a}/character{k:02d}" for a, n in (("Greek", 3), ("Latin", 3), ("Keble", 3), ("ULOG", 6)) for k in range(n)]
    labels = torch.arange(len(names)).repeat_interleave(4)
    images = torch.zeros(len(labels), 1, 16, 16, dtype=torch.uint8)
    images.view(len(labels), -1)[:, 0] = torch.arange(len(labels))
    splits = {"train": tuple(range(10)), "val": (), "test": tuple(range(10, 15))}
    return ImageSet("omniglot", images, labels, tuple(names), splits, {}, (0.1,), (0.3,))


def trained(protocol: Protocol, options: RFSOptions, until: int) -> Trainer:
    trainer = Trainer(options, protocol.data, build(options, None, protocol.data).train())
    for step in range(until):
        trainer.step(step)
    return trainer


def test_an_interrupted_training_goes_on_with_the_same_bytes(digits: Protocol) -> None:
    whole = trained(digits, TINY, 4).tensors()
    half = {name: tensor.clone() for name, tensor in trained(digits, TINY, 2).tensors().items()}
    resumed = Trainer(TINY, digits.data, build(replace(TINY, seed=9), None, digits.data).train())
    resumed.load(half)
    for step in (2, 3):
        resumed.step(step)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.tensors().items())


def test_an_epoch_takes_every_image_once(digits: Protocol) -> None:
    trainer = Trainer(replace(TINY, augmentation="none", batch=128), digits.data, nn.Linear(1, 1))
    assert trainer.per_epoch == len(digits.data.members("train").order) // 128
    seen = [trainer.batch(step) for step in range(trainer.per_epoch)]
    labels = torch.cat([labels for _, labels in seen])
    assert labels.min() == 0
    assert labels.max() == 23
    images = torch.cat([images for images, _ in seen]).flatten(1)
    assert len(images.unique(dim=0)) > 0.95 * len(images)  # some digits are drawn alike
    assert not torch.equal(trainer.batch(0)[1], trainer.batch(trainer.per_epoch)[1])


def test_budgets(digits: Protocol) -> None:
    network = build(TINY, None, digits.data)
    per_epoch = Trainer(TINY, digits.data, network).per_epoch
    assert count_steps(TINY, digits.data, network) == 4
    assert count_steps(replace(TINY, steps=None, budget="3epochs"), digits.data, network) == 3 * per_epoch
    before = [p.clone() for p in network.parameters()]
    timed = replace(TINY, steps=None, budget="1s")
    assert 3 <= count_steps(timed, digits.data, network) < 2000
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_a_batch_larger_than_the_set(digits: Protocol) -> None:
    with pytest.raises(ConfigurationError, match="--batch 99999"):
        Trainer(replace(TINY, batch=99999), digits.data, nn.Linear(1, 1))


def test_alphabets_are_split_as_lake_did() -> None:
    data = by_alphabet(drawings())
    assert data.class_splits == {"train": tuple(range(6)), "test": tuple(range(6, 15))}
    assert alphabets_of(data, "test") == {"Keble": (6, 7, 8), "ULOG": (9, 10, 11, 12, 13, 14)}
    with pytest.raises(ConfigurationError, match="one kind of alphabet"):
        by_alphabet(replace(drawings(), class_names=tuple(f"Greek/{k}" for k in range(15))))


def test_tasks_within_an_alphabet() -> None:
    data = by_alphabet(drawings())
    protocol = Protocol(data, "test", alphabets_of(data, "test"))
    options = replace(TINY, tests="2w1s,5w2s", queries=1)
    kinds = kinds_of(options, protocol)
    assert [kind.name for kind in kinds] == [
        "2-way 1-shot across alphabets",
        "5-way 2-shot across alphabets",
        "2-way 1-shot within an alphabet",
        "5-way 2-shot within an alphabet",
    ]
    episodes = draw(options, protocol, kinds[3], tasks=60)
    assert set(episodes.classes.flatten().tolist()) == set(range(9, 15))  # only ULOG has five characters
    drawer = episodes.support_index % 4
    assert torch.equal(drawer.view(60, 5, 2), drawer.view(60, 5, 2)[:, :1].expand(-1, 5, -1))
    query = episodes.query_index % 4
    assert (query[:, :1] == query).all()
    assert (query[:, :, None] != drawer.view(60, 5, 2)).all()
    assert torch.equal(data.labels[episodes.support_index], episodes.classes.gather(1, episodes.support_labels))
    assert torch.equal(data.labels[episodes.query_index], episodes.classes.gather(1, episodes.query_labels))
    small = draw(options, protocol, kinds[2], tasks=200)
    sizes = (small.classes < 9).double().mean()
    assert 0.3 < float(sizes) < 0.7
    assert torch.equal(small.classes[:50], draw(options, protocol, kinds[2], tasks=50).classes)


def test_features_are_normalised_and_inductive(digits: Protocol) -> None:
    network = trained(digits, TINY, 4).network
    features = extract_features(TINY, digits, network)
    torch.testing.assert_close(features.plain.norm(dim=1), torch.ones(len(features.plain)))
    image = digits.data.members("test").order[5:6]
    images = (digits.data.images[image].float() / 255 - digits.data.mean[0]) / digits.data.std[0]
    with torch.no_grad():
        alone = nn.functional.normalize(embed(network, images))
    torch.testing.assert_close(features.queries(image[None])[0], alone, atol=1e-5, rtol=0)


def test_support_views_stand_for_supports_only(digits: Protocol) -> None:
    options = replace(TINY, support_views=3)
    network = build(TINY, None, digits.data)
    features = extract_features(options, digits, network)
    assert features.views.shape == (3, *features.plain.shape)
    index = digits.data.members("test").order[:6].view(2, 3)
    supports = features.supports(index)
    assert supports.shape == (2, 9, features.plain.shape[1])
    assert torch.equal(supports[1, 3:6], features.views[1, features.rows[index[1]]])
    assert not torch.equal(features.views[0], features.views[1])


def test_mirrored_features_do_not_tell_an_image_from_its_mirror_image(digits: Protocol) -> None:
    data = digits.data
    flipped = replace(digits, data=replace(data, images=data.images.flip(-1)))
    network = build(TINY, None, data)
    options = replace(TINY, mirror=True)
    both, other = (extract_features(options, protocol, network).plain for protocol in (digits, flipped))
    torch.testing.assert_close(both, other)
    torch.testing.assert_close(both.norm(dim=1), torch.ones(len(both)))
    assert (both - extract_features(TINY, digits, network).plain).abs().max() > 0.01


def test_perfect_features_are_classified_perfectly(digits: Protocol) -> None:
    data = digits.data
    order = data.members("test").order
    plain = nn.functional.one_hot(data.labels[order], 40).float()
    rows = torch.full((len(data.images),), -1)
    rows[order] = torch.arange(len(order))
    found = evaluate(TINY, digits, Features(plain, plain[None], rows), kinds_of(TINY, digits)[0])
    assert [part["mean"] for part in found["accuracies"]] == [1.0, 1.0]
    assert [part["interval"] for part in found["accuracies"]] == [0.0, 0.0]
    assert found["confused"] == []


def test_confusion_counts_what_was_taken_for_what(digits: Protocol) -> None:
    kind = kinds_of(TINY, digits)[0]
    episodes = draw(TINY, digits, kind, tasks=100)
    confusion = Confusion(40, torch.device("cpu"))
    first = episodes.classes.min()
    wrong = (episodes.classes == episodes.classes[0, 0]).long().argmax(1, keepdim=True)
    confusion.add(episodes, torch.where(episodes.query_labels >= 0, wrong, 0))
    worst = confusion.worst(digits.data.class_names)
    assert worst[0]["share"] == 1.0
    assert worst[0]["taken for"] == digits.data.class_names[int(episodes.classes[0, 0])]
    assert first >= 0


def test_every_known_name_is_built() -> None:
    assert set(REFERENCE_NAMES) == set(REFERENCES)


@pytest.mark.parametrize("name", GENOTYPES)
def test_published_genotypes(name: str, tmp_path: Path) -> None:
    genotype = find_genotype(name, tmp_path)
    network = make_network(TINY, genotype, classes=3, channels_in=1, size=16, generator=stream(0, "w")).eval()
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_networks(name: str) -> None:
    with torch.device("meta"):
        network = REFERENCES[name](7, 3, 32)
        images = torch.empty(2, 3, 32, 32)
    assert network(images).shape == (2, 7)
    assert embed(network, images).shape == (2, network.classifier.in_features)


def test_sizes_of_the_small_residual_networks() -> None:
    def body(name: str, channels_in: int) -> int:
        network = REFERENCES[name](5, channels_in, 28)
        return sum(p.numel() for key, p in network.named_parameters() if not key.startswith("classifier"))

    assert body("res5", 1) == 169_648
    assert body("res3", 3) == 689_904


def test_genotypes_by_name(tmp_path: Path) -> None:
    genotype = FEW_SHOT.genotype(draw_cell(FEW_SHOT, 0, 2))
    run = tmp_path / "run"
    run.mkdir()
    (run / "genotype.json").write_text(genotype.to_json())
    empty = tmp_path / "empty"
    empty.mkdir()
    assert find_genotype("conv4", empty) is None
    assert find_genotype(str(run), empty) == genotype
    assert find_genotype(str(run / "genotype.json"), empty) == genotype
    assert find_genotype("gone", run) == genotype
    with pytest.raises(ConfigurationError, match="no genotype"):
        find_genotype(str(empty), empty)
    with pytest.raises(ConfigurationError, match="did you mean 'conv4'"):
        find_genotype("cnov4", empty)


def test_pooling_the_stem_quarters_the_work() -> None:
    from engine.spaces.cost import count_module

    genotype = FEW_SHOT.genotype(draw_cell(FEW_SHOT, 0, 2))

    def flops(pool: int) -> int:
        options = replace(TINY, channels=16, pool=pool)
        with torch.device("cpu"):
            network = make_network(options, genotype, classes=5, channels_in=1, size=16, generator=stream(0, "w"))
        return count_module(network.eval(), torch.zeros(1, 1, 16, 16)).flops

    assert 0.2 < flops(2) / flops(1) < 0.35
