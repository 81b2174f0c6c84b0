"""A scale that all weights of a layer share: c_l with c_l^-2 ~ Gamma(2, 2), non-centred."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from bayespare.bayes.scales import inverse_softplus

_HALF_LOG_2PI_E = 0.5 * math.log(2 * math.pi * math.e)


def gamma_kl(log_mean: Tensor, log_std: Tensor, shape: float, rate: float) -> Tensor:
    """KL of LogNormal from Gamma(shape, rate), elementwise, nats.

    Args:
        log_mean: Mean of the logarithm.
        log_std: Standard deviation of the logarithm.
        shape: Of the Gamma.
        rate: Of the Gamma.
    """
    entropy = log_mean + log_std.log() + _HALF_LOG_2PI_E
    log_prior = (
        shape * math.log(rate)
        - math.lgamma(shape)
        + (shape - 1) * log_mean
        - rate * (log_mean + log_std.square() / 2).exp()
    )
    return -entropy - log_prior


@final
class LayerScale(nn.Module):
    """Log-normal posteriors of c_l^-2; weights are ``constant_l * c_l * W`` with W ~ N(0, 1).

    Args:
        constants: One fixed factor per layer (0.1, and 1 for the last, as published).

    Source: arXiv 2309.12095, code (card section 3.1).
    """

    constant: Tensor

    def __init__(self, constants: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("constant", torch.tensor(list(constants)))
        # The prior's median of c is 1.09; a start at one keeps the weights as they are drawn.
        self.log_mean = nn.Parameter(torch.zeros(len(constants)))
        self.rho = nn.Parameter(inverse_softplus(torch.full((len(constants),), 0.1)))

    def mean(self) -> Tensor:
        """E[constant * c], shape ``(layers,)``."""
        return self.constant * (softplus(self.rho).square() / 8 - self.log_mean / 2).exp()

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """A draw of ``constant * c``, shape ``(layers,)``."""
        noise = torch.empty_like(self.log_mean).normal_(generator=generator)
        return self.constant * (-(self.log_mean + softplus(self.rho) * noise) / 2).exp()

    def kl(self) -> Tensor:
        """KL of all posteriors from Gamma(2, 2), nats."""
        return gamma_kl(self.log_mean, softplus(self.rho), 2.0, 2.0).sum()
