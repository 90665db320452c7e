"""The networks that tables compare with, by name: published genotypes, and reference networks. No torch here."""

from __future__ import annotations

from engine.spaces import darts, metanas_genotypes
from engine.spaces.genotype import Genotype

GENOTYPES: dict[str, Genotype] = {
    **{f"metanas-{name}": genotype for name, genotype in metanas_genotypes.PUBLISHED.items()},
    **darts.PUBLISHED,
}

# What engine.evaluation.networks.REFERENCES builds.
REFERENCE_NAMES = ("conv4", "res5", "res3", "resnet12", "resnet12-rfs", "wrn28-10")

KNOWN = (*REFERENCE_NAMES, *GENOTYPES)
