"""The best Gaussian shrink: the reduced prior's scale that maximises the evidence.

The empirical-Bayes (automatic relevance determination) limit of delta-F: a weight is switched off
when even its best scale is zero. It removes less than the spike test.

Source: card section 2.6; the sparsity rule is Tipping 2001, Faul and Tipping 2002.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bayespare.bayes.evidence.inputs import (
    Number,
    as_floating,
    check_finite,
    check_prior_std,
    check_std,
    wide,
)
from bayespare.errors import BayespareError


class Shrink(NamedTuple):
    """The best reduced prior.

    Attributes:
        reduced_std: Its standard deviation; zero is a spike, so the weight is better removed.
        delta_f: Log evidence gained by it, nats, never negative.
    """

    reduced_std: Tensor
    delta_f: Tensor


def best_shrink(
    mean: Number,
    std: Number,
    prior_std: Number,
    *,
    margin: float = 1e-3,
    widen: bool = False,
    name: str = "posterior",
) -> Shrink:
    """The reduced prior N(0, g^2) of the highest evidence, for each weight by itself.

    Args:
        mean: Posterior mean under a prior of mean zero, any shape.
        std: Posterior standard deviation, broadcast.
        prior_std: Standard deviation of the prior, broadcast.
        margin: The posterior variance is taken as at most ``1 - margin`` of the prior's. A
            variational posterior of a weight that the data ignore is a little wider than its
            prior at times; it then counts as one that they ignore.
        widen: Let g exceed the prior's standard deviation.
        name: The layer, for errors.

    Raises:
        BayespareError: If an input is out of range (as for ``delta_f``).

    Source: card section 2.6, pitfall 15.
    """
    mean = as_floating(mean)
    std, prior_std = as_floating(std, mean), as_floating(prior_std, mean)
    learnt, square, ratio = _statistics(mean, std, prior_std, margin, name)
    relevance = square / learnt
    kept = ((relevance - ratio) / learnt).clamp_min(0.0)
    # Where the best scale is zero, the evidence is that of the spike.
    spike = -0.5 * (ratio.log() + square / ratio)
    value = torch.where(kept > 0, 0.5 * (relevance - 1 - relevance.log()), spike)
    if not widen:
        value = torch.where(kept > 1, 0.0, value)
        kept = kept.clamp_max(1.0)
    return Shrink(prior_std * kept.sqrt(), value)


def best_group_shrink(
    mean: Number,
    std: Number,
    prior_std: Number,
    *,
    margin: float = 1e-3,
    widen: bool = False,
    name: str = "posterior",
) -> Shrink:
    """The reduced prior of the highest evidence when the weights of a group share its scale.

    The evidence as a function of the scale can have several maxima when the posterior variances
    differ: a grid finds the best, Newton's method its top.

    Args:
        mean: Posterior mean under a prior of mean zero, shape ``(..., members)``.
        std: Posterior standard deviation, broadcast.
        prior_std: Standard deviation of the prior, one per group: shape ``(...)`` or a number.
        margin: As in :func:`best_shrink`.
        widen: Let the scale exceed the prior's.
        name: The layer, for errors.

    Returns:
        One scale and one gain per group, float64, shape ``(...)``.

    Raises:
        BayespareError: If an input is out of range (as for ``delta_f``), or a group has no member.

    Source: card section 2.6 (equal variances in closed form, unequal ones by Newton's method).
    """
    mean = wide(mean)
    std, prior_std = wide(std, mean).expand_as(mean), wide(prior_std, mean)
    if mean.dim() == 0 or mean.shape[-1] == 0:
        raise BayespareError(f"{name}: a group of no weights has no scale")
    learnt, square, ratio = _statistics(mean, std, prior_std.unsqueeze(-1), margin, name)

    def gain(kept: Tensor) -> Tensor:
        scale = ratio + kept.unsqueeze(-1) * learnt
        return -0.5 * (scale.log() + square * (1 - kept).unsqueeze(-1) / scale).sum(-1)

    # Above this scale every term falls.
    highest = ((square / learnt - ratio) / learnt).amax(-1).clamp_min(1e-12)
    if not widen:
        highest = highest.clamp_max(1.0)
    lowest = (ratio / learnt).amin(-1).clamp(max=highest) * 1e-6
    best = _top_of_grid(gain, lowest.log(), highest.log())
    for _ in range(30):
        scale = ratio + best.unsqueeze(-1) * learnt
        slope = ((square - learnt * scale) / scale.square()).sum(-1) / 2
        # Derivatives in the logarithm of g^2, where the gain is close to a parabola.
        bend = (learnt * (learnt * scale - 2 * square) / scale**3).sum(-1) / 2
        first, second = best * slope, best * slope + best.square() * bend
        step = torch.where(second < 0, -first / second, first.sign()).clamp(-0.1, 0.1)
        best = torch.minimum(best * step.exp(), highest)
    spike = gain(torch.zeros_like(best))
    value = gain(best)
    off = spike >= value
    reduced_std = prior_std * torch.where(off, 0.0, best.sqrt())
    return Shrink(reduced_std, torch.where(off, spike, value))


def _statistics(
    mean: Tensor, std: Tensor, prior_std: Tensor, margin: float, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``1 - r``, ``mean^2 / s0^2`` and ``r``, with r kept below ``1 - margin``."""
    check_finite(mean, name, "the posterior mean")
    check_std(std, name)
    check_prior_std(prior_std, name)
    if not 0 < margin < 1:
        raise BayespareError(f"{name}: margin={margin} must lie between 0 and 1")
    relative = std / prior_std
    learnt = ((1 - relative) * (1 + relative)).clamp_min(margin)
    ratio = relative.square().clamp_max(1 - margin)
    return learnt, (mean / prior_std).square(), ratio


def _top_of_grid(
    gain: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, points: int = 65
) -> Tensor:
    best, value = high.exp(), gain(high.exp())
    for share in torch.linspace(0.0, 1.0, points).tolist():
        kept = (low + share * (high - low)).exp()
        new = gain(kept)
        best, value = torch.where(new > value, kept, best), torch.maximum(new, value)
    return best
