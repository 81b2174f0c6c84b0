"""Posterior inclusion probabilities of nodes and features: recovery, sets, importance."""

from bayespare.bayes.inclusion.hyper import Rate, prior_variance, rate_mode, rate_posterior
from bayespare.bayes.inclusion.importance import drop, energy, gated_moments, relative
from bayespare.bayes.inclusion.polish import polish
from bayespare.bayes.inclusion.recovery import (
    break_even,
    gain_log_odds,
    gaussian_kl,
    mean_responsibility,
    mixture_penalty,
    node_kl,
    point_log_odds,
    prior_log_odds,
    profiled_gain,
    profiled_penalty,
    reduced_log_odds,
    ridge,
    spike_log_odds,
)
from bayespare.bayes.inclusion.select import (
    correlated_groups,
    discovery_set,
    group_log_odds,
    median_set,
    path_inclusion,
)
from bayespare.bayes.inclusion.truth import Recovery, recovery

__all__ = [
    "Rate",
    "Recovery",
    "break_even",
    "correlated_groups",
    "discovery_set",
    "drop",
    "energy",
    "gain_log_odds",
    "gated_moments",
    "gaussian_kl",
    "group_log_odds",
    "mean_responsibility",
    "median_set",
    "mixture_penalty",
    "node_kl",
    "path_inclusion",
    "point_log_odds",
    "polish",
    "prior_log_odds",
    "prior_variance",
    "profiled_gain",
    "profiled_penalty",
    "rate_mode",
    "rate_posterior",
    "recovery",
    "reduced_log_odds",
    "relative",
    "ridge",
    "spike_log_odds",
]
