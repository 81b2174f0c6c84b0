"""Unit scales of the three slabs: none (SS-IG), group lasso (SS-GL), group horseshoe (SS-GHS).

A slab weight of unit j has prior N(0, (prior_std * s_j)^2). Everything a centred slab needs of the
posterior of s_j are two moments, E[log s_j^2] and E[1 / s_j^2]; a non-centred one multiplies the
weights by a draw of s_j. Source: arXiv 2308.09104, card sections 2 to 4.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from bayespare.bayes.slabs import (
    expected_log_regulariser,
    expected_regularised_scale,
    half_gamma_kl,
    half_inverse_gamma_kl,
    inverse_gamma_kl,
    lasso_rate_kl,
    lasso_scale_kl,
)

FAITHFUL_RHO = -6.0
"""Initial value of every softplus standard deviation in the authors' code."""


class Moments(NamedTuple):
    """E[log s^2] and E[1/s^2], per unit or scalar."""

    log_square: Tensor
    inverse_square: Tensor


class Scale(nn.Module):
    """Posterior over the scale of each unit; parameters named in ``per_unit`` index units."""

    per_unit: tuple[str, ...] = ()

    @abstractmethod
    def moments(self) -> Moments:
        """E[log s^2] and E[1/s^2] of each unit."""

    @abstractmethod
    def kl_units(self, group_sizes: Tensor) -> Tensor:
        """KL of the scale posteriors from their priors, nats per unit, shape ``(units,)``."""

    @abstractmethod
    def kl_global(self) -> Tensor:
        """KL of what the whole network shares, nats."""

    @abstractmethod
    def mean(self) -> Tensor:
        """E[s] of each unit."""

    @abstractmethod
    def draw(self, noise: Tensor, shared_noise: Tensor) -> Tensor:
        """Reparameterised draw of s for each unit, from standard normal noise."""


@final
class NoScale(Scale):
    """SS-IG: every scale is one."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones(()), persistent=False)
        self.register_buffer("units", torch.ones(units), persistent=False)
        self.one: Tensor
        self.units: Tensor

    @staticmethod
    def plain(like: Tensor) -> Moments:
        """Zero and one: the slab is the plain Gaussian."""
        return Moments(like.new_zeros(()), like.new_ones(()))

    def moments(self) -> Moments:
        """Zero and one: the slab is the plain Gaussian."""
        return self.plain(self.one)

    def kl_units(self, group_sizes: Tensor) -> Tensor:
        """No scale, no KL."""
        return torch.zeros_like(group_sizes)

    def kl_global(self) -> Tensor:
        """No scale, no KL."""
        return torch.zeros_like(self.one)

    def mean(self) -> Tensor:
        """One."""
        return self.one

    def draw(self, noise: Tensor, shared_noise: Tensor) -> Tensor:
        """One."""
        return self.one


@final
class GroupLassoScale(Scale):
    """SS-GL: tau_j^2 ~ Gamma((m_j+1)/2, rate varsigma^2/2), varsigma^2 ~ Gamma(4, 2) shared.

    Args:
        log_mean: Initial mean of log tau^2, per unit.
        log_std: Initial standard deviation of log tau^2, per unit.
        rate_log_mean: Initial mean of log varsigma^2.
        rate_log_std: Initial standard deviation of log varsigma^2.
    """

    per_unit = ("log_mean", "rho")

    def __init__(
        self, log_mean: Tensor, log_std: Tensor, rate_log_mean: float, rate_log_std: float
    ) -> None:
        super().__init__()
        self.log_mean = nn.Parameter(log_mean.clone())
        self.rho = nn.Parameter(inverse_softplus(log_std))
        self.rate_log_mean = nn.Parameter(log_mean.new_tensor(rate_log_mean))
        self.rate_rho = nn.Parameter(inverse_softplus(log_mean.new_tensor(rate_log_std)))

    @classmethod
    def at_prior(cls, group_sizes: Tensor) -> GroupLassoScale:
        """Start where the scale's own KL is smallest, not 1,838 nats away (card 8.12).

        The expected rate starts at its prior mean, 2.
        """
        rate_log_mean, rate_log_std = math.log(2.0) - 0.125, 0.5
        log_std = (2 / (group_sizes + 1)).sqrt()
        log_mean = ((group_sizes + 1) / 2.0).log() - log_std.square() / 2
        return cls(log_mean, log_std, rate_log_mean, rate_log_std)

    def moments(self) -> Moments:
        """Log-normal moments of tau^2."""
        return Moments(self.log_mean, (softplus(self.rho).square() / 2 - self.log_mean).exp())

    def kl_units(self, group_sizes: Tensor) -> Tensor:
        """Card 4c."""
        rate_std = softplus(self.rate_rho)
        return lasso_scale_kl(
            group_sizes, self.log_mean, softplus(self.rho), self.rate_log_mean, rate_std
        )

    def kl_global(self) -> Tensor:
        """Card 4d."""
        return lasso_rate_kl(self.rate_log_mean, softplus(self.rate_rho))

    def mean(self) -> Tensor:
        """E[tau] = exp(m/2 + v^2/8)."""
        return (self.log_mean / 2 + softplus(self.rho).square() / 8).exp()

    def draw(self, noise: Tensor, shared_noise: Tensor) -> Tensor:
        """exp((m + v eps)/2)."""
        return ((self.log_mean + softplus(self.rho) * noise) / 2).exp()


@final
class GroupHorseshoeScale(Scale):
    """SS-GHS: s_j = t_j c / sqrt(c^2 + t_j^2), t_j = s tau_j, both half-Cauchy.

    Each half-Cauchy squared is a product of a Gamma(1/2) and an inverse Gamma(1/2), both with
    log-normal posteriors. ``slab`` is c_reg per unit, or None for a learnt one shared by the
    network, with c^2 ~ InverseGamma(2, 6).

    Args:
        log_mean: Initial means of (log alpha, log beta), shape ``(2, units)``.
        std: Initial standard deviation of every log-normal factor.
        global_log_mean: Initial means of the two global factors.
        slab: c_reg, shape ``(units,)``, or None to learn it.
        local_scale: tau_1, scale of the local half-Cauchy.
        global_scale: tau_0, scale of the global half-Cauchy.
    """

    per_unit: tuple[str, ...] = ("alpha_log_mean", "beta_log_mean", "alpha_rho", "beta_rho")
    slab: Tensor | None

    def __init__(
        self,
        log_mean: Tensor,
        std: float,
        global_log_mean: float,
        slab: Tensor | None,
        local_scale: float = 1.0,
        global_scale: float = 1.0,
    ) -> None:
        super().__init__()
        rho = inverse_softplus(torch.full_like(log_mean[0], std))
        self.alpha_log_mean = nn.Parameter(log_mean[0].clone())
        self.beta_log_mean = nn.Parameter(log_mean[1].clone())
        self.alpha_rho = nn.Parameter(rho.clone())
        self.beta_rho = nn.Parameter(rho.clone())
        self.global_log_mean = nn.Parameter(log_mean.new_full((2,), global_log_mean))
        self.global_rho = nn.Parameter(inverse_softplus(log_mean.new_full((2,), std)))
        self.local_scale, self.global_scale = local_scale, global_scale
        if slab is not None:
            self.register_buffer("slab", slab.clone())
            self.per_unit = (*self.per_unit, "slab")
        else:
            self.slab = None
            self.slab_log_mean = nn.Parameter(log_mean.new_tensor(math.log(6 / 2)))
            self.slab_rho = nn.Parameter(inverse_softplus(log_mean.new_tensor(std)))

    def _log_scale(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean of log(s tau), its local and its shared standard deviation."""
        mean = (self.alpha_log_mean + self.beta_log_mean + self.global_log_mean.sum()) / 2
        local = (softplus(self.alpha_rho).square() + softplus(self.beta_rho).square()).sqrt() / 2
        shared = softplus(self.global_rho).square().sum().sqrt() / 2
        return mean, local, shared

    def _log_slab_square(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of log c^2."""
        if self.slab is not None:
            return 2 * self.slab.log(), torch.zeros_like(self.slab)
        return self.slab_log_mean, softplus(self.slab_rho)

    def moments(self) -> Moments:
        """Card 4h: log s_j^2 = log t_j^2 - log(1 + t_j^2/c^2), 1/s_j^2 = 1/t_j^2 + 1/c^2."""
        mean, local, shared = self._log_scale()
        slab, slab_std = self._log_slab_square()
        variance = local.square() + shared.square()
        # The ratio t/c of two log-normals is one, so a learnt c needs no second quadrature.
        ratio_std = (variance + slab_std.square() / 4).sqrt()
        bend = expected_log_regulariser(mean - slab / 2, ratio_std, torch.ones_like(mean))
        inverse = (2 * variance - 2 * mean).exp() + (slab_std.square() / 2 - slab).exp()
        return Moments(2 * mean - bend, inverse)

    def kl_units(self, group_sizes: Tensor) -> Tensor:
        """Card 4e and 4f."""
        return half_gamma_kl(
            self.alpha_log_mean, softplus(self.alpha_rho), self.local_scale**2
        ) + half_inverse_gamma_kl(self.beta_log_mean, softplus(self.beta_rho))

    def kl_global(self) -> Tensor:
        """Card 4e, 4f and, when c is learnt, 4i."""
        mean, std = self.global_log_mean, softplus(self.global_rho)
        total = half_gamma_kl(mean[0], std[0], self.global_scale**2)
        total = total + half_inverse_gamma_kl(mean[1], std[1])
        if self.slab is None:
            total = total + inverse_gamma_kl(self.slab_log_mean, softplus(self.slab_rho), 2.0, 6.0)
        return total

    def mean(self) -> Tensor:
        """E[s_j] by quadrature; a learnt c enters at its posterior median."""
        mean, local, shared = self._log_scale()
        std = (local.square() + shared.square()).sqrt()
        return expected_regularised_scale(mean, std, self._log_slab_square()[0].exp())

    def draw(self, noise: Tensor, shared_noise: Tensor) -> Tensor:
        """One draw per unit around one shared draw of the global scale (card 3).

        A learnt c enters at its posterior median.
        """
        mean, local, shared = self._log_scale()
        log_scale = mean + local * noise + shared * shared_noise
        log_slab = self._log_slab_square()[0]
        return (log_scale + log_slab / 2 - torch.logaddexp(log_slab, 2 * log_scale) / 2).exp()


def inverse_softplus(value: Tensor) -> Tensor:
    """Return rho with softplus(rho) = value, for value > 0."""
    return value + torch.log(-torch.expm1(-value))
