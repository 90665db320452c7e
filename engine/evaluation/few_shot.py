"""Few-shot tests of a frozen network: features once, then a linear classifier for each of thousands of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from engine.data.augment import normalise
from engine.data.episodes import Episodes
from engine.data.image_set import ImageSet
from engine.evaluation.augment import augment
from engine.evaluation.classifiers import fit
from engine.evaluation.networks import embed
from engine.evaluation.options import FewShotTestOptions
from engine.evaluation.protocol import Protocol
from engine.evaluation.tasks import Kind, draw
from engine.runs.streams import stream

if TYPE_CHECKING:
    from engine.runs.run import Run
    from engine.runs.signals import Stop

IMAGES = 256  # of a forward pass
TASKS = 100  # classified side by side
CONFUSED = 10  # pairs of classes that a result lists
MATRIX = 20  # test classes of which a result has the whole matrix
LEAST = 30  # queries that make a share worth listing


@dataclass(frozen=True, eq=False)
class Features:
    """L2-normalised features of the test images: ``plain`` (M, F), ``views`` (V, M, F) of augmented copies (the plain ones where
    none are asked for), and ``rows`` (images of the set,), the row of each image."""

    plain: Tensor
    views: Tensor
    rows: Tensor

    def supports(self, index: Tensor) -> Tensor:
        """Images (T, N) -> (T, V*N, F), one view of all supports after the other."""
        return self.views[:, self.rows[index]].movedim(0, 1).flatten(1, 2)

    def queries(self, index: Tensor) -> Tensor:
        """Images (T, Q) -> (T, Q, F)."""
        return self.plain[self.rows[index]]


@torch.no_grad()
def extract_features(options: FewShotTestOptions, protocol: Protocol, network: nn.Module) -> Features:
    """Features in inference mode: stored batch-norm statistics, so no information flows between queries.

    Each test image has ``support_views`` augmented copies that stand for it wherever it is a support. (The published script
    draws new copies for each task; drawing them once costs V forward passes an image and not V a support.) ``support_views=1``
    takes the image itself.
    """
    data = protocol.data
    order = data.members(protocol.test).order.to(data.images.device)
    network.eval()
    chunks = order.split(IMAGES)
    plain = _embedded(options, network, (normalise(data.images[chunk], data.mean, data.std) for chunk in chunks))
    views = plain[None]
    if options.support_views > 1:
        views = torch.stack([_embedded(options, network, _view(options, data, chunks, v)) for v in range(options.support_views)])
    rows = torch.full((len(data.images),), -1, device=order.device)
    rows[order] = torch.arange(len(order), device=order.device)
    return Features(plain, views, rows)


def _view(options: FewShotTestOptions, data: ImageSet, chunks: Sequence[Tensor], view: int) -> Iterator[Tensor]:
    """One augmented copy of every image of ``chunks``."""
    for k, chunk in enumerate(chunks):
        yield augment(data, data.images[chunk], options.augmentation, stream(options.seed, "support-view", view, k))


def _embedded(options: FewShotTestOptions, network: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Features of images that are made batch by batch, so that only one batch of them is held; (M, F), of length 1.

    With ``mirror`` an image's features are added to those of its mirror image before they get that length.
    """
    found = []
    for batch in batches:
        features = embed(network, batch.contiguous(memory_format=torch.channels_last)).float()
        if options.mirror:
            features += embed(network, batch.flip(-1).contiguous(memory_format=torch.channels_last)).float()
        found.append(features)
    return normalize(torch.cat(found), dim=1)


def run_tests(
    options: FewShotTestOptions,
    protocol: Protocol,
    network: nn.Module,
    kinds: Sequence[Kind],
    run: Run,
    stop: Stop,
    progress: Any,
    state: dict[str, Any],
    tensors: dict[str, Tensor],
) -> None:
    """Test every kind of task that ``state["tests"]`` does not hold yet and add its result there, saving after each."""
    done: list[dict[str, Any]] = state["tests"]
    if len(done) == len(kinds):
        return
    features = extract_features(options, protocol, network)
    with progress(len(kinds) * options.tasks, "testing", done=len(done) * options.tasks) as bar:
        for kind in kinds[len(done) :]:
            done.append(evaluate(options, protocol, features, kind))
            run.append("metrics.jsonl", {"event": "test", **done[-1]})
            run.save(state, tensors)
            bar.advance(options.tasks, accuracy=done[-1]["accuracies"][0]["mean"])
            stop.check()


def evaluate(options: FewShotTestOptions, protocol: Protocol, features: Features, kind: Kind) -> dict[str, Any]:
    """Accuracy of each classifier over the tasks of a kind, with the 95 % interval over tasks, and the classes confused most.

    The interval is 1.96 standard errors: it covers the draw of the tasks, not that of the training.
    """
    episodes = draw(options, protocol, kind, tasks=options.tasks)
    accuracies = []
    confusion = Confusion(len(protocol.data.class_names), episodes.classes.device)
    for name in options.classifier_names:
        right = []
        for start in range(0, options.tasks, TASKS):
            part = _part(episodes, start, start + TASKS)
            supports = features.supports(part.support_index)
            labels = part.support_labels.repeat(1, len(features.views))
            answers = fit(name, supports, labels, kind.shape.ways, penalty=options.penalty).predict(
                features.queries(part.query_index)
            )
            right.append((answers == part.query_labels).double().mean(1))
            if name == options.classifier_names[0]:
                confusion.add(part, answers)
        share = torch.cat(right)
        interval = 1.96 * float(share.std()) / len(share) ** 0.5 if len(share) > 1 else 0.0
        accuracies.append({"classifier": name, "mean": float(share.mean()), "interval": interval})
    names, classes = protocol.data.class_names, protocol.data.classes(protocol.test)
    found: dict[str, Any] = {
        "kind": kind.name,
        "tasks": options.tasks,
        "accuracies": accuracies,
        "confused": confusion.worst(names),
    }
    if len(classes) <= MATRIX:
        found["confusion"] = {"classes": [names[k] for k in classes], "shares": confusion.among(classes)}
    return found


def _part(episodes: Episodes, start: int, end: int) -> Episodes:
    return Episodes(**{name: tensor[start:end] for name, tensor in vars(episodes).items()})


class Confusion:
    """How often queries of one class were taken for another, among the tasks that held both; K x K counts."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        self.taken = torch.zeros(classes * classes, dtype=torch.float64, device=device)
        self.met = torch.zeros_like(self.taken)

    def add(self, episodes: Episodes, found: Tensor) -> None:
        """Count the answers ``found`` (T, Q)."""
        true = episodes.classes.gather(1, episodes.query_labels)
        answer = episodes.classes.gather(1, found)
        self._count(self.taken, true, answer)
        self._count(self.met, true[:, :, None].expand(-1, -1, episodes.classes.shape[1]), episodes.classes[:, None, :])

    def _count(self, table: Tensor, true: Tensor, other: Tensor) -> None:
        place = (true * self.classes + other).flatten()
        table.index_add_(0, place, torch.ones_like(place, dtype=torch.float64))

    def _shares(self) -> Tensor:
        """(K, K): share of the queries of a class, in tasks that held another too, taken for that; 0 where too few."""
        return torch.where(self.met >= LEAST, self.taken / self.met.clamp(min=1), 0.0).view(self.classes, self.classes)

    def among(self, classes: Sequence[int]) -> list[list[float]]:
        """The shares of some classes, a row for each true one; 0 where fewer than :data:`LEAST` queries could be confused."""
        index = torch.tensor(classes, device=self.taken.device)
        return self._shares()[index][:, index].tolist()

    def worst(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """The pairs of different classes with the highest share of wrong answers, the first of equals in the order of the
        classes.

        Pairs that fewer than :data:`LEAST` queries could have confused are left out.
        """
        share = self._shares().fill_diagonal_(0.0)
        order = share.flatten().argsort(descending=True, stable=True)[:CONFUSED].tolist()
        places = [divmod(place, self.classes) for place in order]
        return [{"class": names[a], "taken for": names[b], "share": float(share[a, b])} for a, b in places if share[a, b] > 0]
