"""Classifiers of many tasks at once agree with scikit-learn's, one task at a time."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import Tensor
from torch.nn.functional import normalize

from engine.errors import ConfigurationError, NumericalError
from engine.evaluation import newton
from engine.evaluation.classifiers import cosine_classifier, fit, linear_svm, logistic_regression, nearest_centroid

TASKS, QUERIES = 4, 10


def episodes(ways: int, shots: int, features: int, seed: int = 0, *, unit: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Supports, labels and queries of noisy classes, in float64."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(TASKS, ways, 1, features, generator=generator, dtype=torch.float64)
    noise = torch.randn(TASKS, ways, shots + QUERIES, features, generator=generator, dtype=torch.float64)
    images = (centres + 1.5 * noise).relu()
    images = normalize(images, dim=-1) if unit else images
    labels = torch.arange(ways).repeat_interleave(shots).expand(TASKS, -1)
    return images[:, :, :shots].flatten(1, 2), labels, images[:, :, shots:].flatten(1, 2)


def peer(name: str, supports: Tensor, labels: Tensor, penalty: float) -> LogisticRegression | LinearSVC:
    if name == "logistic":
        model = LogisticRegression(C=penalty, tol=1e-10, max_iter=20_000)
    else:
        model = LinearSVC(C=penalty, tol=1e-7, max_iter=50_000, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn asks for fewer iterations than this accuracy needs
        return model.fit(supports.numpy(), labels.numpy())


@pytest.mark.parametrize("name", ["logistic", "svm"])
@pytest.mark.parametrize(("ways", "shots", "features"), [(5, 5, 64), (5, 1, 640), (20, 1, 16), (3, 4, 2)])
@pytest.mark.parametrize("penalty", [1.0, 0.1])
def test_coefficients_and_predictions_of_scikit_learn(name: str, ways: int, shots: int, features: int, penalty: float) -> None:
    supports, labels, queries = episodes(ways, shots, features)
    found = fit(name, supports, labels, ways, penalty=penalty)
    scores, predicted = found.scores(queries), found.predict(queries)
    for task in range(TASKS):
        model = peer(name, supports[task], labels[task], penalty)
        np.testing.assert_allclose(found.coefficients[task].numpy(), model.coef_, atol=1e-4)
        np.testing.assert_allclose(found.intercept[task].numpy(), model.intercept_, atol=1e-4)
        best = scores[task].topk(2).values
        clear = (best[:, 0] - best[:, 1] > 1e-3).numpy()
        assert clear.mean() > 0.8
        assert (predicted[task].numpy() == model.predict(queries[task].numpy()))[clear].all()


@pytest.mark.parametrize("name", ["logistic", "svm"])
def test_float32_is_near_float64(name: str) -> None:
    supports, labels, queries = episodes(5, 5, 64)
    double = fit(name, supports, labels, 5, penalty=1.0)
    single = fit(name, supports.float(), labels, 5, penalty=1.0)
    assert single.coefficients.dtype == torch.float32
    torch.testing.assert_close(single.coefficients.double(), double.coefficients, atol=2e-3, rtol=0)
    assert (single.predict(queries.float()) == double.predict(queries)).double().mean() > 0.99


@pytest.mark.parametrize("name", ["logistic", "svm", "centroid", "cosine"])
def test_a_task_does_not_depend_on_its_neighbours(name: str) -> None:
    supports, labels, _ = episodes(4, 3, 12)
    together = fit(name, supports, labels, 4, penalty=1.0)
    alone = fit(name, supports[2:3], labels[2:3], 4, penalty=1.0)
    torch.testing.assert_close(together.coefficients[2:3], alone.coefficients, atol=1e-6, rtol=0)


def test_unequal_features_still_converge() -> None:
    supports, labels, _ = episodes(5, 5, 32, unit=False)
    found = logistic_regression(30 * supports, labels, 5, penalty=10.0)
    model = peer("logistic", 30 * supports[0], labels[0], 10.0)
    assert (found.predict(30 * supports)[0].numpy() == model.predict(30 * supports[0].numpy())).all()


def test_repeated_supports_make_a_singular_gram_matrix() -> None:
    supports, labels, _ = episodes(5, 1, 20)
    for classifier in (logistic_regression, linear_svm):
        thrice = classifier(supports.repeat(1, 3, 1), labels.repeat(1, 3), 5)
        heavier = classifier(supports, labels, 5, penalty=3.0)
        torch.testing.assert_close(thrice.coefficients, heavier.coefficients, atol=1e-4, rtol=0)


def test_nearest_centroid_is_the_nearest() -> None:
    supports, labels, queries = episodes(5, 3, 8, unit=False)
    centres = torch.stack([supports[:, labels[0] == k].mean(1) for k in range(5)], 1)
    found = nearest_centroid(supports, labels, 5).predict(queries)
    assert torch.equal(found, torch.cdist(queries, centres).argmin(-1))


def test_cosine_takes_the_smallest_angle() -> None:
    supports, labels, queries = episodes(5, 3, 8, unit=False)
    centres = torch.stack([supports[:, labels[0] == k].mean(1) for k in range(5)], 1)
    angles = torch.cosine_similarity(queries[:, :, None], centres[:, None], dim=-1)
    assert torch.equal(cosine_classifier(supports, labels, 5).predict(queries), angles.argmax(-1))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 9), st.integers(0, 100), st.sampled_from([0.01, 1.0, 50.0]))
def test_the_gradient_vanishes_at_the_minimum(ways: int, shots: int, features: int, seed: int, penalty: float) -> None:
    supports, labels, _ = episodes(ways, shots, features, seed)
    found = logistic_regression(supports, labels, ways, penalty=penalty)
    weights, intercept = found.coefficients.requires_grad_(), found.intercept.requires_grad_()
    logits = supports @ weights.mT + intercept[:, None]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    (weights.square().sum() / 2 + penalty * loss).backward()
    assert weights.grad is not None
    assert intercept.grad is not None
    assert float(weights.grad.abs().max()) < 1e-4 * max(1.0, penalty)
    assert float(intercept.grad.abs().max()) < 1e-4 * max(1.0, penalty)


def test_inputs_that_cannot_be_classified() -> None:
    supports, labels, _ = episodes(3, 2, 4)
    with pytest.raises(ConfigurationError, match="a support of each of its 4 classes"):
        logistic_regression(supports, labels, 4)
    with pytest.raises(ConfigurationError, match="float"):
        nearest_centroid(supports.long(), labels, 3)
    with pytest.raises(ConfigurationError, match="labels"):
        linear_svm(supports, labels[:, 1:], 3)


def test_no_convergence_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    supports, labels, _ = episodes(3, 2, 4)
    monkeypatch.setattr(newton, "MAX_NEWTON", 1)
    with pytest.raises(NumericalError, match="not converged"):
        logistic_regression(supports, labels, 3)
