"""Few-shot classifiers of many tasks at once: logistic regression, linear SVM, nearest centroid, cosine.

All of them are linear in the features, so each returns a :class:`LinearClassifier`. Shapes: T tasks, N supports, D features, K
ways. Computation is in the precision of the features; give float64 for coefficients that agree with scikit-learn's to 1e-4 and
better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from engine.errors import ConfigurationError
from engine.evaluation.newton import minimise

# Gradient norms, relative to the first one. The penalty makes the objective 1-strongly convex, so the weights are as near the
# minimum.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


@dataclass(frozen=True)
class LinearClassifier:
    """Scores ``x . coefficients_k + intercept_k``; ``coefficients`` (T, K, D), ``intercept`` (T, K)."""

    coefficients: Tensor
    intercept: Tensor

    def scores(self, queries: Tensor) -> Tensor:
        """Queries (T, Q, D) -> (T, Q, K)."""
        return torch.baddbmm(self.intercept[:, None], queries, self.coefficients.mT)

    def predict(self, queries: Tensor) -> Tensor:
        """Queries (T, Q, D) -> the class of the highest score, int64 (T, Q); the first of equals."""
        return self.scores(queries).argmax(-1)


@dataclass(frozen=True)
class _Softmax:
    """C times the cross-entropy of softmax(F) to one-hot targets (T, K, N)."""

    targets: Tensor
    penalty: float

    def value(self, logits: Tensor) -> Tensor:
        return self.penalty * (logits.logsumexp(1) - (logits * self.targets).sum(1)).sum(-1)

    def gradient(self, logits: Tensor) -> Tensor:
        return self.penalty * (logits.softmax(1) - self.targets)

    def curvature(self, logits: Tensor) -> Callable[[Tensor], Tensor]:
        probability = logits.softmax(1)
        scaled = self.penalty * probability

        def product(direction: Tensor) -> Tensor:
            return scaled * (direction - (probability * direction).sum(1, keepdim=True))

        return product


@dataclass(frozen=True)
class _SquaredHinge:
    """C times the squared hinge loss of each class against the rest, ``sum max(0, 1 - s F)^2`` with signs s (T, K, N)."""

    signs: Tensor
    penalty: float

    def value(self, logits: Tensor) -> Tensor:
        return self.penalty * (1 - self.signs * logits).clamp(min=0).square().sum((1, 2))

    def gradient(self, logits: Tensor) -> Tensor:
        return -2 * self.penalty * self.signs * (1 - self.signs * logits).clamp(min=0)

    def curvature(self, logits: Tensor) -> Callable[[Tensor], Tensor]:
        scaled = 2 * self.penalty * (self.signs * logits < 1).to(logits.dtype)
        return lambda direction: scaled * direction


def logistic_regression(supports: Tensor, labels: Tensor, ways: int, *, penalty: float = 1.0) -> LinearClassifier:
    """Multinomial logistic regression with an L2 penalty: scikit-learn's ``LogisticRegression(C=penalty)`` for every task.

    Minimises ``1/2 |W|^2 + C sum_n crossentropy(W x_n + b, y_n)``; the intercepts are not penalised and sum to zero. ``supports``
    (T, N, D), ``labels`` int64 (T, N) in 0 .. ways-1.
    """
    targets = _one_hot(supports, labels, ways)
    gram = torch.bmm(supports, supports.mT)
    a, b = minimise(gram, _Softmax(targets, penalty), ways, bias=True, tolerance=TOLERANCE[supports.dtype])
    return LinearClassifier(torch.bmm(a, supports), b - b.mean(-1, keepdim=True))


def linear_svm(supports: Tensor, labels: Tensor, ways: int, *, penalty: float = 1.0) -> LinearClassifier:
    """One-vs-rest linear SVM of squared hinge loss: scikit-learn's ``LinearSVC(C=penalty)`` for every task.

    Minimises ``1/2 (|w_k|^2 + b_k^2) + C sum_n max(0, 1 - s_nk (w_k x_n + b_k))^2`` for each class k, s = +1 for its own
    samples and -1 for the others; as there, the intercept is penalised. Arguments as in :func:`logistic_regression`.
    """
    signs = 2 * _one_hot(supports, labels, ways) - 1
    gram = torch.bmm(supports, supports.mT) + 1  # the intercept is the weight of a feature that is always 1
    a, _ = minimise(gram, _SquaredHinge(signs, penalty), ways, bias=False, tolerance=TOLERANCE[supports.dtype])
    return LinearClassifier(torch.bmm(a, supports), a.sum(-1))


def nearest_centroid(supports: Tensor, labels: Tensor, ways: int) -> LinearClassifier:
    """The class whose mean support m_k is nearest: the highest ``x . m_k - |m_k|^2 / 2``."""
    centroids = _centroids(supports, labels, ways)
    return LinearClassifier(centroids, -centroids.square().sum(-1) / 2)


def cosine_classifier(supports: Tensor, labels: Tensor, ways: int) -> LinearClassifier:
    """The class whose mean support has the smallest angle with the query."""
    centroids = normalize(_centroids(supports, labels, ways), dim=-1)
    return LinearClassifier(centroids, centroids.new_zeros(centroids.shape[:2]))


def _centroids(supports: Tensor, labels: Tensor, ways: int) -> Tensor:
    targets = _one_hot(supports, labels, ways)
    return torch.bmm(targets, supports) / targets.sum(-1, keepdim=True)


def _one_hot(supports: Tensor, labels: Tensor, ways: int) -> Tensor:
    """(T, K, N) in the precision of the supports; what cannot be classified is a :class:`ConfigurationError`."""
    if supports.dim() != 3 or labels.shape != supports.shape[:2] or supports.dtype not in TOLERANCE:
        raise ConfigurationError(
            f"supports must be float (T, N, D) and labels (T, N), got {supports.dtype} {tuple(supports.shape)} and "
            f"{tuple(labels.shape)}"
        )
    targets = one_hot(labels, ways).mT.to(supports.dtype).contiguous()
    if not bool((targets.sum(-1) > 0).all()):
        raise ConfigurationError(f"every task needs a support of each of its {ways} classes")
    return targets


def fit(name: str, supports: Tensor, labels: Tensor, ways: int, *, penalty: float) -> LinearClassifier:
    """Fit the classifier ``name`` of :data:`engine.evaluation.options.CLASSIFIERS`; only the first two know a penalty."""
    if name == "logistic":
        return logistic_regression(supports, labels, ways, penalty=penalty)
    if name == "svm":
        return linear_svm(supports, labels, ways, penalty=penalty)
    plain: dict[str, Callable[[Tensor, Tensor, int], LinearClassifier]] = {
        "centroid": nearest_centroid,
        "cosine": cosine_classifier,
    }
    return plain[name](supports, labels, ways)
