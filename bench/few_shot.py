"""Classifiers of many few-shot tasks at once, fitted and asked, against a loop over tasks in scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import Tensor
from torch.nn.functional import normalize

from bench.measure import Case, measure, single_calls
from bench.registry import Settings
from bench.rows import Row
from bench.timing import Call
from engine.evaluation.classifiers import fit
from engine.runs.streams import stream

PEERS = {"logistic": partial(LogisticRegression, max_iter=1000), "svm": partial(LinearSVC, random_state=0)}
BASELINE = "scikit-learn loop"
WAYS, QUERIES, FEATURES = 5, 15, 640


def rows(settings: Settings) -> Iterator[Row]:
    """One row a method."""
    for case in cases(settings):
        yield from measure(case, settings)


def cases(settings: Settings) -> Iterator[Case]:
    """The tasks of the paper's test: 1000 of five classes, 15 queries each, on the 640 features of a ResNet-12."""
    tasks = 8 if settings.scale == "smoke" else 1000
    for name in PEERS:
        for shots in (1, 5):
            yield Case(
                benchmark="few-shot",
                configuration={"classifier": name, "ways": WAYS, "shots": shots, "features": FEATURES, "tasks": tasks},
                build=partial(calls, name, shots),
                samples=tasks,
                warm_samples=2,
                methods=single_calls((BASELINE, "batched", "batched, float64")),
                baselines=(BASELINE,),
                notes={BASELINE: "float32 features, C = 1, scikit-learn's default tolerance"},
                memory=False,
            )


def calls(name: str, shots: int, memory_format: str, tasks: int) -> dict[str, Call]:
    """Everything that is measured on the same tasks; the memory format of images does not matter here."""
    supports, labels, queries = episodes(tasks, shots)
    return {
        BASELINE: partial(loop, name, supports, labels, queries),
        "batched": partial(batched, name, supports, labels, queries),
        "batched, float64": partial(batched, name, supports.double(), labels, queries.double()),
    }


def episodes(tasks: int, shots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rectified, L2-normalised features of noisy classes: supports (T, N, D), labels (T, N), queries (T, Q, D)."""
    generator = stream(0, "features")
    centres = torch.randn(tasks, WAYS, 1, FEATURES, generator=generator)
    noise = torch.randn(tasks, WAYS, shots + QUERIES, FEATURES, generator=generator)
    images = normalize((centres + 2 * noise).relu(), dim=-1)
    labels = torch.arange(WAYS).repeat_interleave(shots).expand(tasks, -1)
    return images[:, :, :shots].flatten(1, 2), labels, images[:, :, shots:].flatten(1, 2)


def batched(name: str, supports: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """Fit all tasks at once and classify their queries, (T, Q)."""
    return fit(name, supports, labels, WAYS, penalty=1.0).predict(queries)


def loop(name: str, supports: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """The same, one task after the other in scikit-learn."""
    columns = zip(supports.numpy(), labels.numpy(), queries.numpy(), strict=True)
    return torch.from_numpy(np.stack([PEERS[name](C=1.0).fit(x, y).predict(q) for x, y, q in columns]))
