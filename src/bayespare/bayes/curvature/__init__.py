"""Curvature of a network's likelihood: exact diagonals and Kronecker factors, by parameter name."""

from bayespare.bayes.curvature.blocks import Curvature, KroneckerFactors, all_reduce
from bayespare.bayes.curvature.memory import Estimate
from bayespare.bayes.curvature.passes import curvature, estimate, wired
from bayespare.bayes.curvature.wiring import Wiring

__all__ = [
    "Curvature",
    "Estimate",
    "KroneckerFactors",
    "Wiring",
    "all_reduce",
    "curvature",
    "estimate",
    "wired",
]
