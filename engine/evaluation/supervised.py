"""Ordinary classification: the evaluation of the DARTS family (reference note tetlo-darts, sections 6.7 and 7).

Train on some images of every class, take the last checkpoint, and count right answers on other images in inference mode.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from engine.data.augment import normalise
from engine.data.image_set import ImageSet
from engine.evaluation.allocator import keep_freed_memory
from engine.evaluation.fitting import fit
from engine.evaluation.networks import find_genotype
from engine.evaluation.noise import has_units, noise_lanes
from engine.evaluation.samples import load_samples
from engine.evaluation.supervised_options import SupervisedOptions
from engine.evaluation.supervised_summary import summary
from engine.runs.streams import stream
from engine.spaces.network import CellNetwork

if TYPE_CHECKING:
    from engine.runs.run import Run

IMAGES = 256  # of a forward pass
FIRST = 5  # among the highest scores of which the class is looked for


def train(options: SupervisedOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Train one network and test it, going on where the run was stopped; return what goes to result.json.

    A run that is stopped in the test does it again: the checkpoint after the last step holds the trained weights.
    """
    keep_freed_memory()
    loaded = run.load()
    genotype = find_genotype(options.network, run.directory)
    data = load_samples(options).to(options.device)
    fitted = fit(options, data, genotype, loaded, run, stop, progress)
    with progress(1, "testing") as bar:
        taken, first = count_answers(fitted.network, data, options.seed)
        bar.advance()
    found = summary(replace(options, steps=fitted.steps), data, fitted.network, fitted.state, taken, first, run.directory)
    return found if genotype is None else {**found, "genotype": genotype}


def plan(options: SupervisedOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    length = options.budget if options.steps is None else f"{options.steps} steps"
    return [
        ("network", f"{options.network}, {options.cells} cells of {options.channels} channels if it is a genotype"),
        ("training", f"{length} of batches of {options.batch}"),
        ("test", "images of the training classes that were held out"),
    ]


@torch.no_grad()
def count_answers(network: nn.Module, data: ImageSet, seed: int = 0) -> tuple[Tensor, int]:
    """Classify the split ``test``: how often images of class i were taken for class j, int64 (K, K) on the CPU, and how often the
    class was among the five highest scores. ``seed`` draws the noise of cells of S4."""
    network.eval()
    members = data.members("test")
    count, device = len(members.classes), data.images.device
    classes = members.classes.to(device)
    taken, first = torch.zeros(count * count, dtype=torch.int64, device=device), torch.zeros((), dtype=torch.int64, device=device)
    for number, index in enumerate(members.order.to(device).split(IMAGES)):
        images = normalise(data.images[index], data.mean, data.std).contiguous(memory_format=torch.channels_last)
        labels = torch.searchsorted(classes, data.labels[index])
        best = _logits(network, images, seed, number).float().topk(min(FIRST, count), dim=1).indices
        taken += torch.bincount(labels * count + best[:, 0], minlength=count * count)
        first += (best == labels[:, None]).sum()
    return taken.view(count, count).cpu(), int(first)


def _logits(network: nn.Module, images: Tensor, seed: int, batch: int) -> Tensor:
    if not has_units(network):
        return network(images)
    lanes = noise_lanes(cast(CellNetwork, network), images, partial(stream, seed), ("test", batch))
    return cast(CellNetwork, network).training_logits(images, lanes)[0]
