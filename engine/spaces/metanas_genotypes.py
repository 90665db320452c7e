"""The genotypes that the MetaNAS code ships (reference note on MetaNAS, section 3). No torch here.

Published with 96 channels and five cells: 1,160,741 parameters (in-v2, 5-way miniImageNet) and 1,056,116 (og-v2, 20-way
Omniglot).
"""

from __future__ import annotations

from engine.spaces.genotype import CellGenotype, Connection, Genotype
from engine.spaces.space import METANAS

_NAMES = {
    "avg": "avg_pool_3x3BN",
    "c3": "conv_3x3",
    "dil": "dil_conv_3x3",
    "fac": "conv_1x5_5x1",
    "max": "max_pool_3x3BN",
    "sep": "sep_conv_3x3",
    "skip": "skip_connect",
}


def _cell(*nodes: str) -> CellGenotype:
    """A cell from one text a node: ``"fac0 c31"`` is conv_1x5_5x1 of state 0 and conv_3x3 of state 1."""
    connections = [
        Connection(int(word[-1]), node, _NAMES[word[:-1]])
        for node, words in enumerate(nodes, start=METANAS.inputs)
        for word in words.split()
    ]
    return CellGenotype(tuple(connections), METANAS.output_states)


def _genotype(normal: tuple[str, ...], reduction: tuple[str, ...]) -> Genotype:
    return Genotype(METANAS.name, (("normal", _cell(*normal)), ("reduction", _cell(*reduction))))


PUBLISHED: dict[str, Genotype] = {
    "in-v2": _genotype(("fac0 c31", "c30 sep2", "dil1 fac3"), ("sep0 c31", "c30 sep2", "c30 dil1")),
    "og-v2": _genotype(("dil0 sep1", "avg0 sep1", "fac0 c32"), ("skip0 sep1", "c30 dil1", "dil0 fac2")),
    "v1": _genotype(("c30 c31", "fac0 dil2", "fac0 max3"), ("dil0 sep1", "c30 max1", "dil2 fac3")),
}
