"""Evidence under posteriors that are diagonal plus low rank, in covariance or in precision.

A removal of s weights costs O(s k^2) for rank k, never a matrix of the size of the layer. In
float64; delta-F in nats, positive = remove.

Source: card section 9.1.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from bayespare.bayes.evidence.inputs import (
    Number,
    check_finite,
    check_prior_std,
    check_std,
    cholesky,
    half_squared_norm,
    log_determinant,
    rows_of,
    wide,
)
from bayespare.bayes.evidence.joint import check_shape

Subset = Tensor | list[int]


@dataclass(frozen=True, eq=False)
class LowRankCovariance:
    """Posterior covariance ``diag(variance) + factor factor'``.

    Attributes:
        mean: Shape ``(n,)``.
        variance: Shape ``(n,)``.
        factor: Shape ``(n, k)``.
        name: The layer, for errors.
    """

    mean: Tensor
    variance: Tensor
    factor: Tensor
    name: str = "posterior"

    def __post_init__(self) -> None:
        _check(self.mean, self.variance, self.factor, self.name)

    def joint_delta_f(self, subset: Subset, prior_std: Number) -> Tensor:
        """Change of log evidence when the subset is removed together, a scalar.

        Args:
            subset: Boolean mask or indices.
            prior_std: Standard deviation of the independent priors of mean zero, broadcast to
                ``(n,)``.

        Raises:
            BayespareError: If the subset is empty or out of range, or the prior improper.
        """
        chosen, _ = rows_of(subset, len(self.mean), self.name)
        mean, variance = wide(self.mean)[chosen], wide(self.variance)[chosen]
        root, pulled = self._inside(chosen)
        cost = 0.5 * (mean.square() / variance).sum() - half_squared_norm(root, pulled)
        volume = 0.5 * (variance.log().sum() + log_determinant(root))
        return _prior(self, prior_std)[chosen].sum() - volume - cost

    def without(self, subset: Subset) -> LowRankCovariance:
        """The posterior of the other weights given that the subset is zero (they move)."""
        chosen, rest = rows_of(subset, len(self.mean), self.name)
        root, pulled = self._inside(chosen)
        factor = wide(self.factor)[rest]
        move = factor @ torch.cholesky_solve(pulled.unsqueeze(-1), root).squeeze(-1)
        # Covariance of the rest: the latent factors keep what the subset did not tell of them.
        left = torch.linalg.solve_triangular(root, factor.mT, upper=False).mT
        return LowRankCovariance(
            wide(self.mean)[rest] - move, wide(self.variance)[rest], left, self.name
        )

    def _inside(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Cholesky factor of ``I + L' D^-1 L`` and ``L' D^-1 mean``, over the chosen weights."""
        scaled = wide(self.factor)[chosen] / wide(self.variance)[chosen].unsqueeze(1)
        inner = _identity_like(self.factor) + wide(self.factor)[chosen].mT @ scaled
        return cholesky(inner, self.name, "the covariance"), scaled.mT @ wide(self.mean)[chosen]


@dataclass(frozen=True, eq=False)
class LowRankPrecision:
    """Posterior precision ``diag(1 / variance) + factor factor'``.

    Attributes:
        mean: Shape ``(n,)``.
        variance: Inverse of the diagonal part, shape ``(n,)``.
        factor: Shape ``(n, k)``.
        name: The layer, for errors.
    """

    mean: Tensor
    variance: Tensor
    factor: Tensor
    name: str = "posterior"

    def __post_init__(self) -> None:
        _check(self.mean, self.variance, self.factor, self.name)

    def joint_delta_f(self, subset: Subset, prior_std: Number) -> Tensor:
        """Change of log evidence when the subset is removed together; as for the covariance."""
        chosen, rest = rows_of(subset, len(self.mean), self.name)
        mean, variance = wide(self.mean)[chosen], wide(self.variance)[chosen]
        outside = self._without(chosen, rest)
        pulled = wide(self.factor)[chosen].mT @ mean
        cost = 0.5 * (mean.square() / variance).sum() + half_squared_norm(outside, pulled)
        volume = 0.5 * (
            variance.log().sum()
            + log_determinant(outside)
            - log_determinant(cholesky(self._whole, self.name, "the precision"))
        )
        return _prior(self, prior_std)[chosen].sum() - volume - cost

    def without(self, subset: Subset) -> LowRankPrecision:
        """The posterior of the other weights given that the subset is zero (they move)."""
        chosen, rest = rows_of(subset, len(self.mean), self.name)
        factor, variance = wide(self.factor), wide(self.variance)
        pulled = factor[chosen].mT @ wide(self.mean)[chosen]
        inner = torch.cholesky_solve(pulled.unsqueeze(-1), self._without(chosen, rest)).squeeze(-1)
        # (D^-1 + V V')^-1 V = D V (I + V' D V)^-1.
        move = variance[rest] * (factor[rest] @ inner)
        return LowRankPrecision(
            wide(self.mean)[rest] + move, variance[rest], factor[rest], self.name
        )

    @functools.cached_property
    def _whole(self) -> Tensor:
        """``I + V' D V`` over all weights."""
        return _identity_like(self.factor) + self._inner(slice(None))

    def _inner(self, which: Tensor | slice) -> Tensor:
        factor = wide(self.factor)[which]
        return factor.mT @ (wide(self.variance)[which].unsqueeze(1) * factor)

    def _without(self, chosen: Tensor, rest: Tensor) -> Tensor:
        """Cholesky factor of ``I + V' D V`` over the rest."""
        inner = self._whole - self._inner(chosen)
        cancelled = bool((inner.diagonal() < 1e-6 * self._whole.diagonal()).any())
        if cancelled or len(chosen) > len(rest):
            inner = _identity_like(self.factor) + self._inner(rest)
        return cholesky(inner, self.name, "the precision")


def _check(mean: Tensor, variance: Tensor, factor: Tensor, name: str) -> None:
    check_finite(mean, name, "the posterior mean")
    check_shape(variance, tuple(mean.shape), name, "the variance")
    check_std(wide(variance), name)
    check_shape(factor, (*mean.shape, factor.shape[-1]), name, "the low-rank factor")
    check_finite(factor, name, "the low-rank factor")


def _identity_like(factor: Tensor) -> Tensor:
    return torch.eye(factor.shape[1], dtype=torch.float64, device=factor.device)


def _prior(posterior: LowRankCovariance | LowRankPrecision, prior_std: Number) -> Tensor:
    scale = wide(prior_std, posterior.mean)
    check_prior_std(scale, posterior.name)
    return scale.log().expand_as(posterior.mean)
