"""Log posterior odds of a node, recovered from a Gaussian fit of its weights.

A node owns a group of ``K`` weights, the last dimension of every tensor here. Its prior is a slab
``N(0, slab_std^2)`` with probability ``pi`` and a spike otherwise: a point mass at zero (``D``) or
``N(0, spike_std^2)`` (``G``). The formulas are a reconstruction in the spirit of Saha, Liu and
Liang, arXiv 2411.00273, whose body could not be read: card sections 2 and 2.1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from bayespare.errors import BayespareError


def prior_log_odds(prior: Tensor | float) -> Tensor:
    """Log-odds of a prior inclusion probability, nats; infinite at 0 and 1.

    Raises:
        BayespareError: If a probability is outside [0, 1].
    """
    prior = torch.as_tensor(prior, dtype=torch.float64) if isinstance(prior, float) else prior
    if not bool(((prior >= 0) & (prior <= 1)).all()):
        raise BayespareError(f"prior inclusion {prior.tolist()}: must lie between 0 and 1")
    return torch.logit(prior)


def _scales(
    std: Tensor, slab_std: Tensor | float, spike_std: Tensor | float | None = None
) -> tuple[Tensor, Tensor]:
    """Slab and spike variances as tensors like ``std``, checked."""
    slab = torch.as_tensor(slab_std, dtype=std.dtype, device=std.device)
    spike = torch.as_tensor(
        0.0 if spike_std is None else spike_std, dtype=std.dtype, device=std.device
    )
    if not bool((std > 0).all() and (slab > 0).all()):
        raise BayespareError("inclusion: every standard deviation must be more than 0")
    if not bool(((spike >= 0) & (spike <= slab)).all()):
        raise BayespareError("inclusion: the spike must be narrower than the slab, 0 or more")
    return slab.square(), spike.square()


def gaussian_kl(mean: Tensor, std: Tensor, prior_std: Tensor | float) -> Tensor:
    """KL of ``N(mean, std^2)`` from ``N(0, prior_std^2)``, nats, per weight.

    Args:
        mean: Any shape.
        std: Of the same shape.
        prior_std: Broadcast against ``mean``.

    Raises:
        BayespareError: If a standard deviation is not positive.
    """
    variance, _ = _scales(std, prior_std)
    share = std.square() / variance
    return 0.5 * (mean.square() / variance + share - 1 - share.log())


def point_log_odds(
    weight: Tensor, prior: Tensor, slab_std: Tensor | float, spike_std: Tensor | float
) -> Tensor:
    """F0: log-odds of the slab against a Gaussian spike at a point estimate, nats, per node.

    Args:
        weight: Point estimate, shape ``(..., K)``.
        prior: Prior log-odds, nats, broadcast against ``(...)``.
        slab_std: Of the slab.
        spike_std: Of the spike, positive.
    """
    slab, spike = _scales(torch.as_tensor(slab_std, dtype=weight.dtype), slab_std, spike_std)
    terms = (spike / slab).log() + weight.square() * (1 / spike - 1 / slab)
    return prior + 0.5 * terms.sum(-1)


def spike_log_odds(
    mean: Tensor,
    std: Tensor,
    prior: Tensor,
    slab_std: Tensor | float,
    spike_std: Tensor | float,
) -> Tensor:
    """F1: log-odds that maximise the bound of a Gaussian fit under a Gaussian spike, nats.

    ``prior + KL(q || spike) - KL(q || slab)``. It saturates as ``K`` grows, and a wide ``q``
    counts as slab (card section 3.2).

    Args:
        mean: Posterior means, shape ``(..., K)``.
        std: Posterior standard deviations, of the same shape.
        prior: Prior log-odds, nats, broadcast against ``(...)``.
        slab_std: Of the slab.
        spike_std: Of the spike, positive.
    """
    slab, spike = _scales(std, slab_std, spike_std)
    square = mean.square() + std.square()
    return prior + 0.5 * ((spike / slab).log() + square * (1 / spike - 1 / slab)).sum(-1)


def reduced_log_odds(
    mean: Tensor,
    std: Tensor,
    prior: Tensor,
    slab_std: Tensor | float,
    spike_std: Tensor | float = 0.0,
) -> Tensor:
    """F3, and F2 at ``spike_std=0``: log-odds after a fit under the slab alone, nats, per node.

    The slab is exchanged for the spike in closed form (Bayesian model reduction); with a point
    mass it is the Savage-Dickey ratio, ``prior + 1/2 sum(log(std^2 / slab^2) + mean^2 / std^2)``.

    Args:
        mean: Posterior means, shape ``(..., K)``.
        std: Posterior standard deviations, of the same shape; ones that are too small (mean
            field, correlated inputs) give odds that are too sure.
        prior: Prior log-odds, nats, broadcast against ``(...)``.
        slab_std: Of the slab the fit was made under.
        spike_std: Of the spike.
    """
    slab, spike = _scales(std, slab_std, spike_std)
    variance = std.square()
    # 1 / (posterior variance under the spike), times the spike's: stays finite at a point mass.
    share = 1 - spike / slab
    width = spike / variance + share
    terms = (variance / slab).log() + width.log() + mean.square() * share / (variance * width)
    return prior + 0.5 * terms.sum(-1)


def mean_responsibility(
    mean: Tensor,
    std: Tensor,
    prior: Tensor,
    slab_std: Tensor | float,
    spike_std: Tensor | float,
    noise: Tensor,
) -> Tensor:
    """F4: the slab's responsibility averaged over the posterior; a probability per node.

    Args:
        mean: Posterior means, shape ``(..., K)``.
        std: Posterior standard deviations, of the same shape.
        prior: Prior log-odds, nats, broadcast against ``(...)``.
        slab_std: Of the slab.
        spike_std: Of the spike, positive.
        noise: Standard normal draws, shape ``(S, ..., K)``.
    """
    drawn = mean + std * noise
    return point_log_odds(drawn, prior, slab_std, spike_std).sigmoid().mean(0)


def gain_log_odds(gain: Tensor, slab_kl: Tensor, prior: Tensor) -> Tensor:
    """F5: log-odds that maximise the evidence bound of a gated node, nats.

    Args:
        gain: Expected log-likelihood of all data with the node, minus that without it, nats.
        slab_kl: KL of the node's weights from the slab, summed over its weights, nats.
        prior: Prior log-odds, nats.
    """
    return prior + gain - slab_kl


def node_kl(log_odds: Tensor, slab_kl: Tensor, prior: Tensor) -> Tensor:
    """What a gated node adds to the negative evidence bound, nats.

    ``KL(Bernoulli || prior) + inclusion * slab_kl``: weights of a closed node are at their prior
    and cost nothing.

    Args:
        log_odds: Of inclusion, nats.
        slab_kl: KL of the node's weights from the slab, summed, nats.
        prior: Prior log-odds, nats.
    """
    included, excluded = log_odds.sigmoid(), (-log_odds).sigmoid()
    gates = included * (logsigmoid(log_odds) - logsigmoid(prior))
    gates = gates + excluded * (logsigmoid(-log_odds) - logsigmoid(-prior))
    return gates + included * slab_kl


def profiled_penalty(
    mean: Tensor,
    std: Tensor,
    prior: Tensor,
    slab_std: Tensor | float,
    spike_std: Tensor | float,
) -> Tensor:
    """Penalty of a Gaussian fit with the indicator at its optimum F1, nats, per node.

    Dense training with this penalty and no indicators has the same optimum. Arguments as
    :func:`spike_log_odds`.
    """
    slab = gaussian_kl(mean, std, slab_std).sum(-1)
    spike = gaussian_kl(mean, std, spike_std).sum(-1)
    return mixture_penalty(slab, spike, prior)


def mixture_penalty(slab_kl: Tensor, spike_kl: Tensor, prior: Tensor, power: float = 1.0) -> Tensor:
    """``-log(pi exp(-KL(q || slab)) + (1 - pi) exp(-KL(q || spike)))``, nats, per node.

    Args:
        slab_kl: KL of each node's weights from the slab, nats.
        spike_kl: The same from the spike.
        prior: Prior log-odds, nats, broadcast against both.
        power: Deterministic annealing: below 1 the slab's share of a node, ``sigmoid(power *
            log-odds)`` in the gradient, is kept from being sure too early (card section 3.1).
    """
    slab, spike = logsigmoid(prior) - slab_kl, logsigmoid(-prior) - spike_kl
    return -torch.logaddexp(power * slab, power * spike) / power


def profiled_gain(gain: Tensor, slab_kl: Tensor, prior: Tensor) -> Tensor:
    """What a gated node adds to the evidence bound at its optimum F5, nats.

    Arguments as :func:`gain_log_odds`. Without the node's log-likelihood when it is closed.
    """
    # PyTorch's softplus drops the exponential beyond 20.
    return logsigmoid(-prior) - logsigmoid(-gain_log_odds(gain, slab_kl, prior))


def ridge(log_odds: Tensor, slab_std: Tensor | float, spike_std: Tensor | float) -> Tensor:
    """Precision that the profiled penalty puts on a node's weights at these log-odds.

    The gradient of :func:`profiled_penalty` is ``ridge * mean`` in the mean and
    ``ridge * std^2 - 1`` in the log standard deviation (card section 2, R-Prop B).
    """
    slab, spike = _scales(
        torch.as_tensor(slab_std, dtype=log_odds.dtype, device=log_odds.device), slab_std, spike_std
    )
    return log_odds.sigmoid() / slab + (-log_odds).sigmoid() / spike


def break_even(
    prior: Tensor, slab_std: Tensor | float, spike_std: Tensor | float, size: int
) -> Tensor:
    """Root mean square weight at which F1 gives even odds.

    Args:
        prior: Prior log-odds, nats.
        slab_std: Of the slab.
        spike_std: Of the spike.
        size: Weights of the node, ``K``: the more there are, the less the prior matters.
    """
    slab, spike = _scales(torch.as_tensor(slab_std, dtype=prior.dtype), slab_std, spike_std)
    square = ((slab / spike).log() - 2 * prior / size) / (1 / spike - 1 / slab)
    return square.clamp_min(0).sqrt()
