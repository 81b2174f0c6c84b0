"""Change of log evidence when the prior of one weight is narrowed: the elementwise formulas.

All results are in nats, ``delta_f = log evidence of the reduced model - log evidence of the full
one``: positive means that the weight is better removed. With posterior N(mu, s^2), prior
N(0, s0^2), reduced prior N(0, g^2), ``r = s^2 / s0^2`` and ``delta = 1 - g^2 / s0^2``:

    D = (1 - delta) + delta r,      delta_f = -1/2 log D - 1/2 (mu^2 / s0^2) delta / D

Source: Friston and Penny 2011; Friston, Parr and Zeidman 2018 (card sections 2.3 to 2.5, 9.2, 9.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bayespare.bayes.evidence.inputs import (
    Number,
    as_floating,
    check_curvature,
    check_finite,
    check_prior_precision,
    check_prior_std,
    check_reduced_std,
    check_std,
    check_temperature,
)
from bayespare.errors import BayespareError

# Temporaries of a piece stay in the cache: fresh memory costs more than the arithmetic.
_PIECE = 32768


def delta_f(
    mean: Number,
    std: Number,
    prior_std: Number,
    reduced_std: Number = 0.0,
    *,
    prior_mean: Number = 0.0,
    reduced_mean: Number = 0.0,
    out: Tensor | None = None,
    name: str = "posterior",
) -> Tensor:
    """Change of log evidence, in nats, when the prior of each weight is narrowed.

    Positive: the weight is better removed (``reduced_std=0``) or shrunk. The stable form, in one
    pass over memory; differentiable in all arguments. Where a widened prior would make the
    posterior improper the result is minus infinity.

    Args:
        mean: Posterior mean, any shape.
        std: Posterior standard deviation, broadcast against the others.
        prior_std: Standard deviation of the prior that the posterior was fitted with.
        reduced_std: Standard deviation of the reduced prior; 0 is a spike at ``reduced_mean``.
        prior_mean: Mean of the prior (one for the gain of a normalisation).
        reduced_mean: Mean of the reduced prior.
        out: Where to write; fresh memory without it.
        name: The layer, for errors.

    Returns:
        Nats, of the broadcast shape. Half precision is computed and returned in float32.

    Raises:
        BayespareError: If a posterior standard deviation is zero, negative or not finite, a mean
            is not finite, a prior standard deviation is zero or infinite (the evidence gained
            would be infinite too), or a reduced one is negative.

    Source: card sections 2.4 and 2.5; with means 2.2 for one weight.
    """
    values = _checked(mean, std, prior_std, reduced_std, prior_mean, reduced_mean, name)
    if all(_is_zero(value) for value in values[4:]):
        if _is_zero(values[3]):
            return _in_pieces(_spike, values[:3], out)
        return _in_pieces(_narrowed, values[:4], out)
    return _in_pieces(_general, values, out)


def curvature_delta_f(
    mean: Number,
    curvature: Number,
    prior_precision: Number,
    *,
    ess: float = 1.0,
    out: Tensor | None = None,
    name: str = "posterior",
) -> Tensor:
    """Change of log evidence, in nats, when a weight of posterior precision ess (h + d) is removed.

    For a Laplace posterior: ``curvature`` summed over the data and ``ess=1``. For a variational
    optimiser: ``curvature`` and ``prior_precision`` (its weight decay) per example, and ``ess``
    the number of examples, divided by the temperature if there is one.

    Args:
        mean: Posterior mean, any shape.
        curvature: h >= 0, broadcast against the mean.
        prior_precision: d > 0, broadcast.
        ess: Effective sample size, the factor of both.
        out: Where to write; fresh memory without it.
        name: The layer, for errors.

    Returns:
        ``1/2 log(1 + h / d) - 1/2 ess (h + d) mean^2``, nats.

    Raises:
        BayespareError: If a curvature is negative, a prior precision zero (the evidence gained
            would be infinite), or an input not finite.

    Source: card sections 9.2 and 9.3.
    """
    mean = as_floating(mean)
    curvature, prior_precision = as_floating(curvature, mean), as_floating(prior_precision, mean)
    check_finite(mean, name, "the posterior mean")
    check_curvature(curvature, name)
    check_prior_precision(prior_precision, name)
    check_ess(ess, name)

    def formula(mean: Tensor, curvature: Tensor, prior_precision: Tensor) -> Tensor:
        log_ratio = torch.log1p(curvature / prior_precision)
        pull = (curvature + prior_precision) * mean
        return torch.addcmul(log_ratio, pull, mean, value=-ess).mul_(0.5)

    return _in_pieces(formula, (mean, curvature, prior_precision), out)


def quadratic_cost(
    mean: Number, std: Number, *, out: Tensor | None = None, name: str = "posterior"
) -> Tensor:
    """``1/2 (mean / std)^2``, nats: the part of delta-F that says what a removal costs.

    delta-F says whether a weight goes; under a budget weights go in the order of this cost
    (ordering by delta-F takes the best-determined weights first). With a Laplace posterior it is
    the OPD score of arXiv 2402.15978.

    Args:
        mean: Posterior mean, any shape.
        std: Posterior standard deviation, broadcast.
        out: Where to write; fresh memory without it.
        name: The layer, for errors.

    Raises:
        BayespareError: If a standard deviation is not positive or an input not finite.
    """
    mean = as_floating(mean)
    std = as_floating(std, mean)
    check_finite(mean, name, "the posterior mean")
    check_std(std, name)
    return _in_pieces(lambda mean, std: 0.5 * (mean / std).square(), (mean, std), out)


def reduced_posterior(
    mean: Number,
    std: Number,
    prior_std: Number,
    reduced_std: Number,
    *,
    prior_mean: Number = 0.0,
    reduced_mean: Number = 0.0,
    name: str = "posterior",
) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation under the reduced prior, without a refit.

    Args:
        mean: Posterior mean, any shape.
        std: Posterior standard deviation, broadcast against the others.
        prior_std: Standard deviation of the prior that the posterior was fitted with.
        reduced_std: Standard deviation of the reduced prior; 0 gives the spike itself.
        prior_mean: Mean of the prior.
        reduced_mean: Mean of the reduced prior.
        name: The layer, for errors.

    Raises:
        BayespareError: As :func:`delta_f`, and if a reduced posterior is improper.

    Source: card section 2.4.
    """
    mean, std, prior_std, reduced_std, prior_mean, reduced_mean = _checked(
        mean, std, prior_std, reduced_std, prior_mean, reduced_mean, name
    )
    ratios = Ratios.of(std, prior_std, reduced_std)
    scale = ratios.scale
    if bool((scale <= 0).any()):
        raise BayespareError(
            f"{name}: with a prior wider than the old one the posterior is improper where it was "
            "wider than its prior; use a reduced_std of at most prior_std"
        )
    moved = ratios.kept * (mean - prior_mean) + ratios.posterior * (reduced_mean - prior_mean)
    return prior_mean + moved / scale, std * (ratios.kept / scale).sqrt()


def tempered(
    mean: Number,
    std: Number,
    prior_std: Number,
    temperature: float,
    *,
    name: str = "posterior",
) -> tuple[Tensor, Tensor]:
    """The posterior when the likelihood is raised to the power ``1 / temperature``.

    Exact for Gaussian likelihoods of independent weights; delta-F of the result compares tempered
    models.

    Args:
        mean: Posterior mean under a prior of mean zero, any shape.
        std: Posterior standard deviation, broadcast.
        prior_std: Standard deviation of the prior, broadcast.
        temperature: T > 0; below one the data count more than once.
        name: The layer, for errors.

    Returns:
        Mean and standard deviation.

    Raises:
        BayespareError: If an input is out of range, or the result improper (a posterior wider
            than its prior, made colder).

    Source: card section 9.4.
    """
    check_temperature(temperature)
    mean = as_floating(mean)
    std, prior_std = as_floating(std, mean), as_floating(prior_std, mean)
    check_finite(mean, name, "the posterior mean")
    check_std(std, name)
    check_prior_std(prior_std, name)
    ratio = (std / prior_std).square()
    scale = (1 - ratio) + ratio * temperature
    if bool((scale <= 0).any()):
        raise BayespareError(
            f"{name}: at temperature {temperature:g} the posterior is improper where it was wider "
            "than its prior; clip its standard deviation to the prior's"
        )
    return mean / scale, std * (temperature / scale).sqrt()


def check_ess(ess: float, name: str) -> None:
    """Raise if an effective sample size is not finite and positive."""
    if not 0 < ess < math.inf:
        raise BayespareError(f"{name}: ess={ess} is not positive; it is the number of examples")


def _checked(
    mean: Number,
    std: Number,
    prior_std: Number,
    reduced_std: Number,
    prior_mean: Number,
    reduced_mean: Number,
    name: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same as tensors, or an error that names what is wrong."""
    mean = as_floating(mean)
    std, prior_std = as_floating(std, mean), as_floating(prior_std, mean)
    reduced_std = as_floating(reduced_std, mean)
    prior_mean, reduced_mean = as_floating(prior_mean, mean), as_floating(reduced_mean, mean)
    check_finite(mean, name, "the posterior mean")
    check_std(std, name)
    check_prior_std(prior_std, name)
    check_reduced_std(reduced_std, name)
    check_finite(prior_mean, name, "the prior mean")
    check_finite(reduced_mean, name, "the reduced prior's mean")
    return mean, std, prior_std, reduced_std, prior_mean, reduced_mean


def _is_zero(value: Tensor) -> bool:
    return value.numel() == 1 and not value.requires_grad and float(value) == 0.0


def _spike(mean: Tensor, std: Tensor, prior_std: Tensor) -> Tensor:
    """Savage-Dickey: log of posterior over prior density at zero."""
    score = mean / std
    return torch.addcmul(torch.log(prior_std / std), score, score, value=-0.5)


class Ratios(NamedTuple):
    """Ratios of variances, all without cancellation.

    Attributes:
        posterior: r = s^2 / s0^2.
        learnt: 1 - r.
        kept: g^2 / s0^2, which is 1 - delta.
        removed: delta.
    """

    posterior: Tensor
    learnt: Tensor
    kept: Tensor
    removed: Tensor

    @classmethod
    def of(cls, std: Tensor, prior_std: Tensor, reduced_std: Tensor) -> Ratios:
        """From the standard deviations of posterior, prior and reduced prior."""
        relative, shrunk = std / prior_std, reduced_std / prior_std
        return cls(
            posterior=relative.square(),
            learnt=(1 - relative) * (1 + relative),
            kept=shrunk.square(),
            removed=(1 - shrunk) * (1 + shrunk),
        )

    @property
    def scale(self) -> Tensor:
        """D; not positive where the reduced posterior is improper."""
        return self.kept + self.removed * self.posterior


def _narrowed(mean: Tensor, std: Tensor, prior_std: Tensor, reduced_std: Tensor) -> Tensor:
    """Both priors of mean zero."""
    ratios = Ratios.of(std, prior_std, reduced_std)
    return _assembled(ratios, ratios.removed * (mean / prior_std).square())


def _general(
    mean: Tensor,
    std: Tensor,
    prior_std: Tensor,
    reduced_std: Tensor,
    prior_mean: Tensor,
    reduced_mean: Tensor,
) -> Tensor:
    ratios = Ratios.of(std, prior_std, reduced_std)
    # All distances in prior standard deviations.
    from_reduced = (mean - reduced_mean) / prior_std
    from_prior = (mean - prior_mean) / prior_std
    shift = (reduced_mean - prior_mean) / prior_std
    return _assembled(
        ratios,
        ratios.removed * from_reduced.square()
        - ratios.kept * shift * (from_prior + from_reduced)
        - ratios.posterior * shift.square(),
    )


def _assembled(ratios: Ratios, quadratic: Tensor) -> Tensor:
    """``-1/2 (log D + quadratic / D)``; minus infinity where D is not positive."""
    scale, less = ratios.scale, ratios.removed * ratios.learnt
    improper = None
    if scale.numel() and float(scale.detach().amin()) <= 0:
        improper = scale <= 0
        scale = torch.where(improper, 1.0, scale)
    # Whether D or 1 - D is the accurate one depends on which of them is small.
    near = torch.log1p(-less.clamp(-0.5, 0.5))
    log_scale = torch.where(less.abs() < 0.5, near, torch.log(scale))
    value = torch.addcdiv(log_scale, quadratic, scale).mul_(-0.5)
    return value if improper is None else torch.where(improper, -math.inf, value)


def _in_pieces(
    formula: Callable[..., Tensor], values: Sequence[Tensor], out: Tensor | None
) -> Tensor:
    """Evaluate an elementwise formula piece by piece, so that its temporaries stay in the cache."""
    shape: torch.Size = torch.broadcast_shapes(*(v.shape for v in values))  # type: ignore[no-untyped-call]
    if out is not None and out.shape != shape:
        raise BayespareError(f"out has shape {tuple(out.shape)}, the result {tuple(shape)}")
    graph = torch.is_grad_enabled() and any(value.requires_grad for value in values)
    if graph or math.prod(shape) <= _PIECE or any(v.device.type != "cpu" for v in values):
        result = formula(*values)
        return result if out is None else out.copy_(result)
    if out is None:
        out = _like_result(formula, values, shape)
    flat = out.is_contiguous() and all(
        value.numel() == 1 or (value.shape == shape and value.is_contiguous()) for value in values
    )
    target = out.view(-1) if flat else out
    parts = [
        value.reshape(()) if value.numel() == 1 else value.view(-1) if flat else value.expand(shape)
        for value in values
    ]
    step = max(1, _PIECE * target.shape[0] // target.numel())
    for start in range(0, target.shape[0], step):
        rows = slice(start, start + step)
        target[rows] = formula(*(part[rows] if part.dim() else part for part in parts))
    return out


def _like_result(
    formula: Callable[..., Tensor], values: Sequence[Tensor], shape: torch.Size
) -> Tensor:
    """Memory for the result: its dtype, and the layout of the first value of its shape."""
    dtype = formula(*(value.new_ones((1,) * min(value.dim(), 1)) for value in values)).dtype
    for value in values:
        if value.shape == shape:
            return torch.empty_like(value, dtype=dtype)
    return values[0].new_empty(shape, dtype=dtype)
