"""The genotypes that the MetaNAS code ships (reference note on MetaNAS, section 3). No torch here.

Published with 96 channels and five cells: 1,160,741 parameters (in-v2, 5-way miniImageNet) and 1,056,116 (og-v2, 20-way
Omniglot). AutoMeta's cell, the baseline of that comparison, has five nodes and is the same in both kinds of cell; one of its
nodes adds two convolutions of one input. Its output is taken to be all nodes, as in the others.
"""

from __future__ import annotations

from engine.spaces.genotype import CellGenotype, Connection, Genotype
from engine.spaces.space import AUTOMETA, METANAS, Space

_NAMES = {
    "avg": "avg_pool_3x3BN",
    "c3": "conv_3x3",
    "c3c3": "conv_3x3_twice",
    "dil": "dil_conv_3x3",
    "fac": "conv_1x5_5x1",
    "max": "max_pool_3x3BN",
    "sep": "sep_conv_3x3",
    "skip": "skip_connect",
}


def _cell(nodes: tuple[str, ...], space: Space) -> CellGenotype:
    """A cell from one text a node: ``"fac0 c31"`` is conv_1x5_5x1 of state 0 and conv_3x3 of state 1."""
    connections = [
        Connection(int(word[-1]), node, _NAMES[word[:-1]])
        for node, words in enumerate(nodes, start=space.inputs)
        for word in words.split()
    ]
    return CellGenotype(tuple(connections), space.output_states)


def _genotype(normal: tuple[str, ...], reduction: tuple[str, ...], space: Space = METANAS) -> Genotype:
    return Genotype(space.name, (("normal", _cell(normal, space)), ("reduction", _cell(reduction, space))))


_AUTOMETA = ("c31 max1", "fac2 max2", "c32 fac3", "c3c33", "fac3 c32")

PUBLISHED: dict[str, Genotype] = {
    "in-v2": _genotype(("fac0 c31", "c30 sep2", "dil1 fac3"), ("sep0 c31", "c30 sep2", "c30 dil1")),
    "og-v2": _genotype(("dil0 sep1", "avg0 sep1", "fac0 c32"), ("skip0 sep1", "c30 dil1", "dil0 fac2")),
    "v1": _genotype(("c30 c31", "fac0 dil2", "fac0 max3"), ("dil0 sep1", "c30 max1", "dil2 fac3")),
    "autometa": _genotype(_AUTOMETA, _AUTOMETA, AUTOMETA),
}
