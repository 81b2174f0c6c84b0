"""Closed-form KL divergences of the scales of group-lasso and regularised group-horseshoe slabs.

All results are in nats. Log-normal factors are given by the mean and standard deviation of the
logarithm. Source: arXiv 2308.09104, derivations and test vectors in card sections 4 and 10.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def lasso_scale_kl(
    group_size: Tensor | float,
    log_mean: Tensor,
    log_std: Tensor,
    rate_log_mean: Tensor,
    rate_log_std: Tensor,
) -> Tensor:
    """KL of a squared group-lasso scale, q = LogNormal, p = Gamma((m+1)/2, rate varsigma^2/2).

    Args:
        group_size: m, the number of weights that share the scale.
        log_mean: Mean of log tau^2, per unit.
        log_std: Standard deviation of log tau^2, per unit.
        rate_log_mean: Mean of log varsigma^2 under its own log-normal posterior.
        rate_log_std: Standard deviation of log varsigma^2.

    Returns:
        KL per unit (card 4c).
    """
    shape = (torch.as_tensor(group_size, dtype=log_mean.dtype, device=log_mean.device) + 1) / 2
    rate = (rate_log_mean + rate_log_std.square() / 2).exp()
    expected_square = (log_mean + log_std.square() / 2).exp()
    return (
        shape * (math.log(2) - rate_log_mean - log_mean)
        + torch.lgamma(shape)
        + 0.5 * rate * expected_square
        - log_std.log()
        - _HALF_LOG_2PI
        - 0.5
    )


def lasso_rate_kl(
    log_mean: Tensor, log_std: Tensor, shape: float = 4.0, rate: float = 2.0
) -> Tensor:
    """KL of the network-wide group-lasso rate varsigma^2, q = LogNormal, p = Gamma (card 4d)."""
    expected = (log_mean + log_std.square() / 2).exp()
    return (
        -shape * math.log(rate)
        + math.lgamma(shape)
        - shape * log_mean
        + rate * expected
        - log_std.log()
        - _HALF_LOG_2PI
        - 0.5
    )


def half_gamma_kl(log_mean: Tensor, log_std: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """KL of LogNormal from Gamma(1/2, scale): the numerator of a half-Cauchy scale (card 4e).

    ``scale`` is the square of the half-Cauchy's own scale.
    """
    scale = torch.as_tensor(scale, dtype=log_mean.dtype, device=log_mean.device)
    return (
        (log_mean + log_std.square() / 2).exp() / scale
        + 0.5 * scale.log()
        - 0.5 * (log_mean + 2 * log_std.log() + 1 + math.log(2))
    )


def half_inverse_gamma_kl(log_mean: Tensor, log_std: Tensor) -> Tensor:
    """KL of LogNormal from InverseGamma(1/2, 1): the other half of a half-Cauchy (card 4f)."""
    return (log_std.square() / 2 - log_mean).exp() - 0.5 * (
        -log_mean + 2 * log_std.log() + 1 + math.log(2)
    )


def inverse_gamma_kl(log_mean: Tensor, log_std: Tensor, shape: float, scale: float) -> Tensor:
    """KL of LogNormal from InverseGamma(shape, scale): a learnt horseshoe slab c^2 (card 4i)."""
    return (
        -shape * math.log(scale)
        + math.lgamma(shape)
        + shape * log_mean
        - log_std.log()
        - _HALF_LOG_2PI
        - 0.5
        + scale * (log_std.square() / 2 - log_mean).exp()
    )


@functools.cache
def _hermite(points: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    return nodes, weights / math.sqrt(2 * math.pi)


def normal_expectation_nodes(like: Tensor, points: int = 32) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes and weights for E[f(Z)], Z ~ N(0, 1), in the dtype of ``like``."""
    nodes, weights = _hermite(points)
    return like.new_tensor(nodes), like.new_tensor(weights)


def expected_log_regulariser(
    log_mean: Tensor, log_std: Tensor, slab_square: Tensor, points: int = 32
) -> Tensor:
    """E[log(c^2 + t^2)] for log t ~ N(log_mean, log_std^2), by Gauss-Hermite quadrature.

    Args:
        log_mean: Mean of the log scale, per unit.
        log_std: Standard deviation of the log scale, per unit.
        slab_square: c^2, broadcast against the units.
        points: Quadrature points.
    """
    nodes, weights = normal_expectation_nodes(log_mean, points)
    log_square = 2 * (log_mean.unsqueeze(-1) + log_std.unsqueeze(-1) * nodes)
    log_slab = torch.as_tensor(slab_square, dtype=log_mean.dtype, device=log_mean.device).log()
    return (torch.logaddexp(log_slab.unsqueeze(-1), log_square) * weights).sum(-1)


def expected_regularised_scale(
    log_mean: Tensor, log_std: Tensor, slab_square: Tensor, points: int = 32
) -> Tensor:
    """E[t c / sqrt(c^2 + t^2)] for log t ~ N(log_mean, log_std^2), by quadrature."""
    nodes, weights = normal_expectation_nodes(log_mean, points)
    log_scale = log_mean.unsqueeze(-1) + log_std.unsqueeze(-1) * nodes
    log_slab = torch.as_tensor(slab_square, dtype=log_mean.dtype, device=log_mean.device).log()
    log_slab = log_slab.unsqueeze(-1)
    log_value = log_scale + log_slab / 2 - torch.logaddexp(log_slab, 2 * log_scale) / 2
    return (log_value.exp() * weights).sum(-1)
