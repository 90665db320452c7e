from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.episodes import Episodes, permutation, sample_episodes, sample_images
from engine.data.image_set import ImageSet
from engine.data.loading import load
from engine.errors import ConfigurationError
from engine.runs.streams import stream


def draw(data: ImageSet, split: str = "train", **change: object) -> Episodes:
    options: dict = {"ways": 3, "shots": 2, "queries": 1, "tasks": 4, "seed": 0, **change}
    return sample_episodes(data, split, **options)


def same(a: Episodes, b: Episodes) -> bool:
    return torch.equal(a.support_index, b.support_index) and torch.equal(a.query_index, b.query_index)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(4, 9), min_size=3, max_size=7),
    ways=st.integers(1, 3),
    shots=st.integers(1, 2),
    queries=st.integers(0, 2),
    tasks=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_episodes_are_well_formed(counts: list[int], ways: int, shots: int, queries: int, tasks: int, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[permutation(len(labels), stream(seed, "test"))]
    images = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    names = tuple(map(str, range(len(counts))))
    data = ImageSet("made", images, labels, names, {"train": tuple(range(len(counts)))}, {}, (0.0,), (1.0,))
    drawn = sample_episodes(data, "train", ways=ways, shots=shots, queries=queries, tasks=tasks, seed=seed)
    assert drawn.support_index.shape == drawn.support_labels.shape == (tasks, ways * shots)
    assert drawn.query_index.shape == drawn.query_labels.shape == (tasks, ways * queries)
    assert drawn.support_index.dtype == drawn.query_labels.dtype == torch.int64
    for task in range(tasks):
        index = torch.cat([drawn.support_index[task], drawn.query_index[task]])
        local = torch.cat([drawn.support_labels[task], drawn.query_labels[task]])
        assert len(index.unique()) == len(index)
        assert len(drawn.classes[task].unique()) == ways
        assert torch.equal(data.labels[index], drawn.classes[task][local])
    assert drawn.support_labels[0].tolist() == [way for way in range(ways) for _ in range(shots)]


def test_episodes_depend_on_the_address_alone(make_set) -> None:
    data = make_set([6] * 8)
    assert same(draw(data, address=(3, "a")), draw(data, address=(3, "a")))
    for change in ({"seed": 1}, {"address": (4, "a")}, {"address": (3, "b")}):
        assert not same(draw(data, address=(3, "a")), draw(data, **{"address": (3, "a"), **change}))


def test_a_task_is_the_same_however_many_are_drawn(make_set) -> None:
    data = make_set([6, 9, 7, 5])
    many, few = draw(data, tasks=7), draw(data, tasks=3)
    assert torch.equal(many.support_index[:3], few.support_index)
    assert torch.equal(many.query_index[:3], few.query_index)


def test_episodes_leave_the_global_generator_alone(make_set) -> None:
    before = torch.get_rng_state()
    draw(make_set([4] * 4))
    assert torch.equal(before, torch.get_rng_state())


def test_every_class_and_image_is_drawn_about_equally_often(make_set) -> None:
    data = make_set([4, 8, 6])
    drawn = draw(data, ways=1, shots=1, queries=0, tasks=6000)
    classes = torch.bincount(drawn.classes.flatten(), minlength=3) / 6000
    assert torch.allclose(classes, torch.full((3,), 1 / 3), atol=0.03)
    images = torch.bincount(drawn.support_index.flatten(), minlength=18) / 6000
    expected = torch.repeat_interleave(torch.tensor([1 / 12, 1 / 24, 1 / 18]), torch.tensor([4, 8, 6]))
    assert torch.allclose(images, expected, atol=0.015)


def test_episodes_of_a_sample_split_stay_in_it(make_set) -> None:
    data = make_set([6, 6], {"train": (0, 1), "val": (0, 1)})
    data = replace(data, sample_splits={"train": torch.arange(0, 12, 2), "val": torch.arange(1, 12, 2)})
    drawn = draw(data, "val", ways=2, shots=1, queries=2, tasks=20)
    assert (torch.cat([drawn.support_index, drawn.query_index], 1) % 2 == 1).all()


def test_too_many_ways(make_set) -> None:
    with pytest.raises(ConfigurationError, match="5 ways need 5 classes, but split 'train' of made has 4"):
        draw(make_set([4] * 4), ways=5)


def test_a_class_with_too_few_images_is_named_with_its_count(make_set) -> None:
    data = make_set([5, 5, 2, 5], {"train": (0, 1, 2, 3)})
    with pytest.raises(
        ConfigurationError, match=r"class 'c2' of split 'train' of made has 2 images, but 2 shots \+ 1 queries need 3"
    ):
        draw(data, ways=2)


@pytest.mark.parametrize("change", [{"ways": 0}, {"shots": 0}, {"queries": -1}, {"tasks": 0}])
def test_impossible_numbers_are_refused(make_set, change: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(change))} must be at least"):
        draw(make_set([4] * 4), **change)


def test_sample_images_draws_without_replacement(make_set) -> None:
    data = make_set([5, 5, 5], {"train": (0, 2), "val": (1,)})
    index = sample_images(data, "train", 10, seed=0, address=(1,))
    assert sorted(index.tolist()) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert torch.equal(index, sample_images(data, "train", 10, seed=0, address=(1,)))
    assert not torch.equal(index, sample_images(data, "train", 10, seed=0, address=(2,)))
    with pytest.raises(ConfigurationError, match="11 images asked of split 'train' of made, which holds 10"):
        sample_images(data, "train", 11, seed=0)
    with pytest.raises(ConfigurationError, match="0 images asked"):
        sample_images(data, "train", 0, seed=0)


def test_episodes_of_real_digits_have_fixed_bytes() -> None:
    few = {"ways": 5, "shots": 1, "queries": 1, "tasks": 1}
    drawn = draw(load("digits", splits=("train",)), **few)
    assert same(drawn, draw(load("digits"), **few))
    assert drawn.support_index.tolist() == [[2882, 3209, 3382, 2590, 1864]]
    assert drawn.query_index.tolist() == [[2990, 3194, 3279, 2573, 1801]]
