"""Scores of a pruning step's candidates: what is drawn for whom, and the two networks that are asked."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

from engine.data import ImageSet, load, normalise, region_patches, sample_episodes, sample_images, support_transform
from engine.errors import ConfigurationError
from engine.methods.options import BatchOptions, CellOptions, EpisodeOptions, PruningOptions, RegionOptions
from engine.methods.pruning import Candidate, State
from engine.methods.steps import Batch, Found, Scores
from engine.runs.memory import out_of_memory
from engine.runs.stopwatch import Stopwatch
from engine.runs.streams import stream
from engine.scoring.ablations import Address, KernelPair, KernelScorer, RegionScorer, Slopes
from engine.scoring.meta import metantk
from engine.scoring.result import Score
from engine.spaces.mixture import without
from engine.spaces.space import Space

Pair = tuple[Scores | None, Scores | None]
SPLIT = "train"
_REMEDY = "lower --channels, --size, --tasks or --region-images, or use a machine with more"


class Scorer:
    """Scores batches of ablations and the supernet beside them.

    ``width`` is halved when the machine runs out of memory. Images are drawn by the address of a step and repeat (faithful: of a
    candidate too), so it does not matter how candidates were cut into batches.
    """

    def __init__(self, options: PruningOptions, space: Space, data: ImageSet) -> None:
        assert options.width is not None
        self.options, self.space, self.width, self.watch = options, space, options.width, Stopwatch()
        self.data = data.to(options.device)
        kaiming = not options.faithful
        self.kernel: KernelScorer | None = None
        self.regions: RegionScorer | None = None
        if isinstance(options, EpisodeOptions | BatchOptions):
            outputs = options.ways if isinstance(options, EpisodeOptions) else len(self.data.classes(SPLIT))
            self.kernel = KernelScorer(
                space,
                cells=options.cells,
                channels=options.channels,
                outputs=outputs,
                channels_in=self.data.images.shape[1],
                seed=options.seed,
                condition=self._condition,
                kaiming=kaiming,
                published=options.faithful,
                dtype=torch.float64 if options.dtype == "float64" else torch.float32,
                device=options.device,
            )
        if isinstance(options, RegionOptions):
            self.regions = RegionScorer(space, seed=options.seed, kaiming=kaiming, device=options.device)

    def check(self) -> None:
        """Draw once what every repeat draws, so that data that cannot give it is refused before the work begins."""
        if self.kernel is not None:
            self._images((0, 0))
        if self.regions is not None:
            self._patches((0, 0))

    def found(self, state: State, step: int, batch: Batch) -> Found:
        """Score one batch: a pure function of its arguments, but for the width.

        Running out of memory halves :attr:`width` and scores fewer of the batch's candidates; with one candidate a forward
        pass it is a :class:`~engine.errors.ConfigurationError`.
        """
        while True:
            try:
                return Found(self.width, self._pairs(state, step, batch.repeat, batch.candidates[: self.width]))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
            if self.width == 1:
                raise ConfigurationError(f"memory does not hold one candidate; {_REMEDY}")
            self.width = max(1, self.width // 2)
            gc.collect()
            if self.options.device == "cuda":
                torch.cuda.empty_cache()

    def _pairs(self, state: State, step: int, repeat: int, candidates: list[Candidate]) -> list[Pair]:
        if self.options.faithful:
            return [self._unpaired(state, step, repeat, candidate) for candidate in candidates]
        draws: Address = (step, repeat)
        origin = torch.tensor(state.alive)
        if not candidates:
            return [(self.scores(origin.unsqueeze(0), draws, draws, draws, draws)[0], None)]
        return [(None, scores) for scores in self.scores(without(origin, list(candidates)), draws, draws, draws, draws)]

    def _unpaired(self, state: State, step: int, repeat: int, candidate: Candidate) -> Pair:
        """The published pairing: own images for every candidate, different heads, thin weights that repeats share; in the edge
        stage the kernel's supernet is still the one that the stage began with, the thin network's is not (reference note, 8.10).
        """
        own: Address = (step, *candidate)
        images: Address = (*own, repeat)
        alive, origin = torch.tensor(state.alive), torch.tensor(state.origin)
        heads: tuple[Address, Address] = ((*images, "supernet"), (*images, "ablated"))
        (supernet,) = self.scores(alive.unsqueeze(0), (step,), heads[0], images, own, kernel_alive=origin.unsqueeze(0))
        (ablated,) = self.scores(without(alive, [candidate]), (step,), heads[1], images, own)
        return supernet, ablated

    def scores(
        self, alive: Tensor, weights: Address, head: Address, images: Address, thin: Address, kernel_alive: Tensor | None = None
    ) -> list[dict[str, Score]]:
        """Every score of the architectures ``alive`` (G, T, E, O) with draws of these addresses."""
        found: list[dict[str, Score]] = [{} for _ in alive]
        if self.kernel is not None:
            conditions = self.conditions(alive if kernel_alive is None else kernel_alive, weights, head, images)
            for scores, value in zip(found, conditions, strict=True):
                scores["condition"] = value
        if self.regions is not None:
            for scores, value in zip(found, self.counts(alive, thin, images), strict=True):
                scores["regions"] = value
        return found

    def conditions(self, alive: Tensor, weights: Address, head: Address, images: Address) -> list[Score]:
        """The kernels' condition numbers alone."""
        assert self.kernel is not None
        with self.watch.phase("data"):
            batch = self._images(images)
        with self.watch.phase("kernel"):
            self.kernel.draw(weights, head)
            pair = self.kernel.kernels(alive, batch)
        with self.watch.phase("eigen"):
            return self.kernel.scores(pair)

    def counts(self, alive: Tensor, thin: Address, images: Address) -> list[Score]:
        """The linear regions alone."""
        assert self.regions is not None
        with self.watch.phase("data"):
            patches = self._patches(images)
        with self.watch.phase("regions"):
            self.regions.draw(thin)
            return self.regions.scores(alive, patches)

    def slopes(self, alive: Tensor, draws: Address) -> Slopes:
        """The supernet's condition number and its derivatives by all operation weights, with common draws of this address.

        Running out of memory is a :class:`~engine.errors.ConfigurationError`.
        """
        assert self.kernel is not None
        with self.watch.phase("data"):
            batch = self._images(draws)
        with self.watch.phase("slopes"):
            self.kernel.draw(draws, draws)
            try:
                return self.kernel.slopes(alive, batch)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
        raise ConfigurationError(f"memory does not hold a second-order pass; {_REMEDY}")

    def region_slopes(self, alive: Tensor, draws: Address) -> Slopes:
        """The supernet's linear regions and the derivatives of their smooth surrogate, with common draws of this address."""
        assert self.regions is not None
        with self.watch.phase("data"):
            patches = self._patches(draws)
        with self.watch.phase("slopes"):
            self.regions.draw(draws)
            return self.regions.slopes(alive, patches)

    def _images(self, address: Address) -> Tensor:
        """Images of one kernel: queries of all tasks, then supports of all tasks (augmented as TE-NAS does), or a plain batch."""
        options, data = self.options, self.data
        if isinstance(options, EpisodeOptions):
            episodes = sample_episodes(
                data,
                SPLIT,
                ways=options.ways,
                shots=options.shots,
                queries=options.queries,
                tasks=options.tasks,
                seed=options.seed,
                address=address,
            )
            support = self._augmented(data.images[episodes.support_index.flatten()], address)
            raw = torch.cat([data.images[episodes.query_index.flatten()], support])
        else:
            assert isinstance(options, BatchOptions)
            raw = self._augmented(
                data.images[sample_images(data, SPLIT, options.batch, seed=options.seed, address=address)], address
            )
        return normalise(raw, data.mean, data.std)

    def _augmented(self, images: Tensor, address: Address) -> Tensor:
        # The published padding is 4 of 32 pixels.
        return support_transform(images, stream(self.options.seed, "augment", *address), padding=images.shape[-1] // 8)

    def _patches(self, address: Address) -> list[Tensor]:
        options = self.options
        assert isinstance(options, RegionOptions)
        return [
            region_patches(self.data, SPLIT, options.region_images, seed=options.seed, address=(*address, b))
            for b in range(options.region_batches)
        ]

    def _condition(self, pair: KernelPair) -> Tensor:
        """The kernels whose condition numbers count: the MetaNTK (Eq. 10, 11) or the NTK itself."""
        options = self.options
        if not isinstance(options, EpisodeOptions):
            return pair.theta
        return metantk(
            pair.theta,
            tasks=options.tasks,
            query=options.ways * options.queries,
            support=options.ways * options.shots,
            kernel=options.kernel,
            nngp=pair.nngp if options.kernel == "anil" else None,
            time=options.time,
            reg=options.reg,
        )


def load_images(options: CellOptions) -> ImageSet:
    """The training classes of the data set that the options name, square and at the resolution that they ask for."""
    data = load(options.data, options.data_root, options.size, splits=(SPLIT,))
    height, width = data.images.shape[-2:]
    size = options.resolution(max(height, width))
    return data if (height, width) == (size, size) else data.resized(size)
