"""Trained networks made smaller: in rounds stopped by measured evidence, or by a ranking."""

from bayespare.posthoc.pruning import prune
from bayespare.posthoc.reduction import reduce
from bayespare.posthoc.rounds import Rounds, tune
from bayespare.posthoc.settings import PosthocOptions, PruneOptions, ReduceOptions
from bayespare.posthoc.sizes import Size, up_to_summit

__all__ = [
    "PosthocOptions",
    "PruneOptions",
    "ReduceOptions",
    "Rounds",
    "Size",
    "prune",
    "reduce",
    "tune",
    "up_to_summit",
]
