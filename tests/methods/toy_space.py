"""A space small enough to search in a second: three operations, two nodes. Named on the command line as toy_space:TOY."""

from engine.spaces.space import Space, dense_edges

TOY = Space(name="toy", operations=("none", "skip_connect", "conv_3x3", "max_pool_3x3BN"), nodes=2, edges=dense_edges(2))
