"""Change of log evidence when several correlated weights are removed together.

A full Gaussian posterior, in float64. The weights that stay move to the conditional mean: exactly
where a refit of the smaller model would put them if the posterior is exact.

Source: Friston and Penny 2011 (card sections 2.2 and 2.7).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bayespare.bayes.evidence.inputs import (
    Number,
    check_finite,
    check_prior_std,
    check_temperature,
    cholesky,
    half_squared_norm,
    log_determinant,
    rows_of,
    wide,
)
from bayespare.errors import BayespareError


class Reduction(NamedTuple):
    """What narrowing a Gaussian prior does.

    Attributes:
        delta_f: Log evidence of the reduced model minus that of the full one, nats, scalar.
        mean: Reduced posterior mean, shape ``(n,)``.
        precision: Reduced posterior precision, shape ``(n, n)``.
    """

    delta_f: Tensor
    mean: Tensor
    precision: Tensor


class Survivors(NamedTuple):
    """The posterior of the weights that stay, given that the others are zero.

    Attributes:
        mean: Shape ``(rest,)``, in the order they had.
        covariance: Shape ``(rest, rest)``.
    """

    mean: Tensor
    covariance: Tensor


def reduce_gaussian(
    mean: Tensor,
    precision: Tensor,
    prior_mean: Tensor,
    prior_precision: Tensor,
    reduced_mean: Tensor,
    reduced_precision: Tensor,
    *,
    name: str = "posterior",
) -> Reduction:
    """Narrow one Gaussian prior to another, both with any mean and precision matrix.

    Args:
        mean: Posterior mean, shape ``(n,)``.
        precision: Posterior precision, shape ``(n, n)``.
        prior_mean: Mean of the prior that the posterior was fitted with.
        prior_precision: Its precision.
        reduced_mean: Mean of the reduced prior.
        reduced_precision: Its precision; for an exact spike use :func:`joint_delta_f`.
        name: The layer, for errors.

    Raises:
        BayespareError: If a precision is not positive definite, the reduced posterior's included.

    Source: card section 2.2.
    """
    mean = wide(mean)
    precision, prior_precision, reduced_precision = (
        wide(value, mean) for value in (precision, prior_precision, reduced_precision)
    )
    # Measured from the prior mean, whose own term is then zero.
    start = wide(prior_mean, mean)
    check_finite(mean, name, "the posterior mean")
    moved, target = mean - start, wide(reduced_mean, mean) - start
    full = cholesky(precision, name, "the posterior precision")
    prior = cholesky(prior_precision, name, "the prior precision")
    reduced = cholesky(reduced_precision, name, "the reduced prior's precision")
    new_precision = precision + reduced_precision - prior_precision
    new = cholesky(new_precision, name, "the reduced posterior's precision")
    pull = precision @ moved + reduced_precision @ target
    new_mean = torch.cholesky_solve(pull.unsqueeze(-1), new).squeeze(-1)
    logs = log_determinant(full) + log_determinant(reduced)
    logs = logs - log_determinant(new) - log_determinant(prior)
    # The quadratic forms, about the new mean: differences of like size do not cancel.
    away, shift = moved - new_mean, target - new_mean
    quadratic = (
        away @ precision @ away
        + shift @ reduced_precision @ shift
        - new_mean @ prior_precision @ new_mean
    )
    return Reduction(0.5 * (logs - quadratic), start + new_mean, new_precision)


def spike_delta_f(
    mean: Tensor, covariance: Tensor, prior_std: Number, *, name: str = "posterior"
) -> Tensor:
    """Change of log evidence when all of a set of weights are removed together.

    Args:
        mean: Posterior mean of the set, shape ``(..., n)``: many sets at once.
        covariance: Their marginal posterior covariance, shape ``(..., n, n)``: a block of the
            covariance, not the inverse of a block of the precision.
        prior_std: Standard deviation of the independent priors of mean zero, broadcast.
        name: The layer, for errors.

    Returns:
        Nats, float64, shape ``(...)``.

    Raises:
        BayespareError: If the covariance is not positive definite or the prior not proper.

    Source: card section 2.7.
    """
    mean = wide(mean)
    covariance = wide(covariance, mean)
    prior_std = wide(prior_std, mean)
    check_finite(mean, name, "the posterior mean")
    check_prior_std(prior_std, name)
    factor = cholesky(covariance, name, "the posterior covariance")
    prior = prior_std.log().expand_as(mean).sum(-1)
    return prior - 0.5 * log_determinant(factor) - half_squared_norm(factor, mean)


def joint_delta_f(
    mean: Tensor,
    covariance: Tensor,
    subset: Tensor | list[int],
    prior_std: Number,
    *,
    name: str = "posterior",
) -> Tensor:
    """Change of log evidence, in nats, when a subset of correlated weights is removed together.

    The sum of the weights' own delta-F is not this where they are correlated: each of two copies
    of a feature can be redundant and both together vital.

    Args:
        mean: Posterior mean of all weights, shape ``(n,)``.
        covariance: Their posterior covariance, shape ``(n, n)``.
        subset: Boolean mask or indices of the weights to remove.
        prior_std: Standard deviation of the independent priors of mean zero, broadcast to ``(n,)``.
        name: The layer, for errors.

    Raises:
        BayespareError: If the subset is empty or out of range, or as :func:`spike_delta_f`.

    Source: card section 2.7.
    """
    mean = wide(mean)
    chosen, _ = rows_of(subset, mean.shape[0], name)
    prior_std = wide(prior_std, mean).expand_as(mean)[chosen]
    block = wide(covariance, mean)[chosen][:, chosen]
    return spike_delta_f(mean[chosen], block, prior_std, name=name)


def survivors(
    mean: Tensor, covariance: Tensor, subset: Tensor | list[int], *, name: str = "posterior"
) -> Survivors:
    """Move the weights that stay to their posterior given that the subset is zero.

    Args:
        mean: Posterior mean of all weights, shape ``(n,)``.
        covariance: Their posterior covariance, shape ``(n, n)``.
        subset: Boolean mask or indices of the weights that are removed.
        name: The layer, for errors.

    Raises:
        BayespareError: If the subset is empty or out of range, or its covariance not positive
            definite.

    Source: card section 2.7; with one weight at a time the Optimal Brain Surgeon update.
    """
    mean = wide(mean)
    covariance = wide(covariance, mean)
    chosen, rest = rows_of(subset, mean.shape[0], name)
    factor = cholesky(covariance[chosen][:, chosen], name, "the posterior covariance")
    cross = covariance[chosen][:, rest]
    solved = torch.cholesky_solve(cross, factor)
    return Survivors(
        mean=mean[rest] - solved.mT @ mean[chosen],
        covariance=covariance[rest][:, rest] - cross.mT @ solved,
    )


def tempered_gaussian(
    mean: Tensor,
    precision: Tensor,
    prior_precision: Tensor,
    temperature: float,
    *,
    name: str = "posterior",
) -> tuple[Tensor, Tensor]:
    """The posterior when the likelihood is raised to the power ``1 / temperature``.

    Args:
        mean: Posterior mean under a prior of mean zero, shape ``(n,)``.
        precision: Posterior precision, shape ``(n, n)``.
        prior_precision: Precision of the prior, shape ``(n, n)``.
        temperature: T > 0; below one the data count more than once.
        name: The layer, for errors.

    Returns:
        Mean and precision.

    Raises:
        BayespareError: If a temperature is not positive or the result not positive definite.

    Source: card section 9.4.
    """
    check_temperature(temperature)
    mean = wide(mean)
    precision, prior_precision = wide(precision, mean), wide(prior_precision, mean)
    check_finite(mean, name, "the posterior mean")
    new = (precision - prior_precision) / temperature + prior_precision
    factor = cholesky(new, name, f"the posterior precision at temperature {temperature:g}")
    pull = (precision @ mean / temperature).unsqueeze(-1)
    return torch.cholesky_solve(pull, factor).squeeze(-1), new


def check_shape(values: Tensor, shape: tuple[int, ...], name: str, what: str) -> None:
    """Raise if a tensor does not have the shape its neighbours ask for."""
    if tuple(values.shape) != shape:
        raise BayespareError(f"{name}: {what} has shape {tuple(values.shape)}, not {shape}")
