"""The Laplace log evidence of a network and the prior precisions that raise it.

Source: Immer et al. 2021 (arXiv 2104.04975); Dhahri et al. 2024 (arXiv 2402.15978).
"""

from bayespare.bayes.marginal.laplace import Laplace, Noise, laplace
from bayespare.bayes.marginal.priors import LOG_RANGE, Clamps, Decay, Prior, PriorKind
from bayespare.bayes.marginal.updates import adam_steps, closed_form, learn, mackay

__all__ = [
    "LOG_RANGE",
    "Clamps",
    "Decay",
    "Laplace",
    "Noise",
    "Prior",
    "PriorKind",
    "adam_steps",
    "closed_form",
    "laplace",
    "learn",
    "mackay",
]
