"""Updates of the prior inclusion rate and of the prior's scales (card section 3.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bayespare.errors import BayespareError


class Rate(NamedTuple):
    """Beta posterior of the prior inclusion rate.

    Attributes:
        a: First shape.
        b: Second shape.
    """

    a: Tensor
    b: Tensor

    @property
    def log_included(self) -> Tensor:
        """Expected log of the rate, nats."""
        return torch.digamma(self.a) - torch.digamma(self.a + self.b)

    @property
    def log_excluded(self) -> Tensor:
        """Expected log of one minus the rate, nats."""
        return torch.digamma(self.b) - torch.digamma(self.a + self.b)

    @property
    def log_odds(self) -> Tensor:
        """What stands for the prior log-odds in the log-odds formulas, nats."""
        return torch.digamma(self.a) - torch.digamma(self.b)


def rate_posterior(inclusion: Tensor, a: float = 1.0, b: float | None = None) -> Rate:
    """Posterior of the inclusion rate given the inclusion probabilities.

    Args:
        inclusion: Probabilities, shape ``(J,)``.
        a: First shape of the Beta prior.
        b: Second shape; None: the number of nodes, which expects about one included node.

    Raises:
        BayespareError: If a shape is not positive.
    """
    b = float(inclusion.numel()) if b is None else b
    if a <= 0 or b <= 0:
        raise BayespareError(f"Beta prior a={a}, b={b}: both must be more than 0")
    return Rate(a + inclusion.sum(), b + (1 - inclusion).sum())


def rate_mode(inclusion: Tensor, a: float = 1.0, b: float | None = None) -> Tensor:
    """Most probable inclusion rate; arguments as :func:`rate_posterior`.

    Raises:
        BayespareError: If the posterior has no mode inside (0, 1) or at its ends.
    """
    a_post, b_post = rate_posterior(inclusion, a, b)
    if a_post < 1 or b_post < 1 or a_post + b_post <= 2:
        raise BayespareError(f"Beta({float(a_post)}, {float(b_post)}) has no mode; use a, b >= 1")
    return (a_post - 1) / (a_post + b_post - 2)


def prior_variance(
    inclusion: Tensor, mean: Tensor, std: Tensor, shape: float = -1.0, scale: float = 0.0
) -> Tensor:
    """Variance of the slab at its optimum; with ``1 - inclusion``, that of the spike.

    Under an inverse gamma prior ``IG(shape, scale)``; the default is flat: plain empirical Bayes.

    Args:
        inclusion: Probabilities, shape ``(J,)``.
        mean: Posterior means, shape ``(J, K)``.
        std: Posterior standard deviations, shape ``(J, K)``.
        shape: Of the inverse gamma.
        scale: Of the inverse gamma.

    Raises:
        BayespareError: If no node is included at all and the prior does not fill in.
    """
    weight = 2 * shape + 2 + mean.shape[-1] * inclusion.sum()
    if not bool(weight > 0):
        raise BayespareError("no node is included: its prior variance has no estimate")
    energy = (mean.square() + std.square()).sum(-1)
    return (2 * scale + (inclusion * energy).sum()) / weight
