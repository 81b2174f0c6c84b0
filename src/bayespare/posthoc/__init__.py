"""Trained networks made smaller: in rounds stopped by measured evidence, or by a ranking."""

from bayespare.posthoc.pruning import prune
from bayespare.posthoc.reduction import reduce
from bayespare.posthoc.rounds import Size, run_rounds, tune, up_to_summit
from bayespare.posthoc.settings import PosthocOptions, PruneOptions, ReduceOptions

__all__ = [
    "PosthocOptions",
    "PruneOptions",
    "ReduceOptions",
    "Size",
    "prune",
    "reduce",
    "run_rounds",
    "tune",
    "up_to_summit",
]
