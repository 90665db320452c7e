"""The options of the compare command. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import ConfigurationError
from engine.evaluation.options import PRESETS as TRAIN_PRESETS
from engine.methods.options import RunOptions, suggestion


@dataclass(frozen=True)
class CompareOptions(RunOptions):
    """Several methods under one protocol: search, train and test with each seed."""

    methods: str = "metantk-nas,random"
    """Search methods, published genotypes (darts-v2) and reference networks (conv4, res5); the first words of the command."""
    seeds: int = 3
    """Runs of each method, with --seed and the following ones."""
    search_preset: str = "default"
    """Preset of the searches."""
    search_size: int | None = None
    """Side of the images that the searches see; none means what the preset says."""
    train_preset: str = "default"
    """Preset of the trainings."""
    budget: str | None = None
    """Length of every training (600s of CPU time, 100epochs); none means what the preset says."""
    tasks: int | None = None
    """Test tasks of each kind; none means what the preset says."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "seeds", "search_size", "tasks")
        if self.train_preset not in TRAIN_PRESETS:
            raise ConfigurationError(
                f"--train-preset: unknown {self.train_preset!r}; {suggestion(self.train_preset, TRAIN_PRESETS)}"
            )
        names = self.method_names
        if not all(names) or len(set(names)) < len(names):
            raise ConfigurationError(f"--methods: {self.methods!r} must name methods, each once")

    @property
    def method_names(self) -> list[str]:
        """``methods`` as a list."""
        return [name.strip() for name in self.methods.split(",")]
