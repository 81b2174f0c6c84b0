"""Evidence in an exact Bayesian linear head with unknown noise: the normal-gamma posterior.

``y = X w + noise``, ``noise variance v``, ``1/v ~ Gamma(shape, rate)``, ``w | v ~ N(0, v / prior
precision)``. Everything is exact; in float64; delta-F in nats, positive = remove.

Source: card section 9.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bayespare.bayes.evidence.inputs import (
    Number,
    check_finite,
    check_prior_precision,
    cholesky,
    half_squared_norm,
    log_determinant,
    rows_of,
    wide,
)
from bayespare.bayes.evidence.joint import check_shape
from bayespare.errors import BayespareError

Subset = Tensor | list[int]


@dataclass(frozen=True, eq=False)
class NormalGamma:
    """Posterior ``w | v ~ N(mean, v precision^-1)``, ``1/v ~ Gamma(shape, rate)``.

    Attributes:
        mean: Shape ``(n,)``.
        precision: Shape ``(n, n)``.
        shape: a of the noise precision's posterior.
        rate: b of it.
        prior_precision: Of the weights, per unit of noise precision; shape ``(n,)``.
        name: The layer, for errors.
    """

    mean: Tensor
    precision: Tensor
    shape: float
    rate: float
    prior_precision: Tensor
    name: str = "posterior"

    def __post_init__(self) -> None:
        count = len(self.mean)
        check_finite(self.mean, self.name, "the posterior mean")
        check_shape(self.precision, (count, count), self.name, "the posterior precision")
        check_shape(self.prior_precision, (count,), self.name, "the prior precision")
        check_prior_precision(self.prior_precision, self.name)
        _check_gamma(self.shape, self.rate, self.name)

    @classmethod
    def fit(
        cls,
        x: Tensor,
        y: Tensor,
        *,
        prior_precision: Number = 1.0,
        shape: float = 2.0,
        rate: float = 1.0,
        name: str = "posterior",
    ) -> Self:
        """The exact posterior of a linear regression.

        Args:
            x: Features, shape ``(examples, n)``; a column of ones for an intercept.
            y: Targets, shape ``(examples,)``.
            prior_precision: Of the weights per unit of noise precision, broadcast to ``(n,)``.
            shape: a of the noise precision's prior.
            rate: b of it.
            name: The layer, for errors.

        Raises:
            BayespareError: If the data are not finite or a prior is improper.
        """
        x = wide(x)
        y = wide(y, x)
        check_shape(y, (x.shape[0],), name, "the target")
        check_finite(x, name, "a feature")
        check_finite(y, name, "a target")
        _check_gamma(shape, rate, name)
        prior = wide(prior_precision, x).expand(x.shape[1]).clone()
        check_prior_precision(prior, name)
        precision = x.mT @ x + torch.diag(prior)
        factor = cholesky(precision, name, "the posterior precision")
        mean = torch.cholesky_solve((x.mT @ y).unsqueeze(-1), factor).squeeze(-1)
        residual = y - x @ mean
        # Residuals and the prior's share: the same as y'y - mean' P mean, without cancellation.
        error = residual.square().sum() + (prior * mean.square()).sum()
        return cls(mean, precision, shape + len(y) / 2, rate + 0.5 * float(error), prior, name)

    def delta_f(self, subset: Subset) -> Tensor:
        """Change of log evidence when the subset of features is removed together, a scalar.

        The ratio of marginal Student-t densities at zero is not this: the reduced model has the
        noise prior of the full one, not the full one's given that the weights are zero.

        Args:
            subset: Boolean mask or indices.

        Raises:
            BayespareError: If the subset is empty or out of range.
        """
        chosen, _ = rows_of(subset, len(self.mean), self.name)
        factor = self._marginal(chosen)
        explained = float(half_squared_norm(factor, wide(self.mean)[chosen]))
        volume = 0.5 * (log_determinant(factor) + self.prior_precision[chosen].log().sum())
        return -volume - self.shape * math.log1p(explained / self.rate)

    def without(self, subset: Subset) -> NormalGamma:
        """The posterior of the other weights and the noise when the subset is not in the model."""
        chosen, rest = rows_of(subset, len(self.mean), self.name)
        mean, precision = wide(self.mean), wide(self.precision)
        inner = precision[rest][:, rest]
        factor = cholesky(inner, self.name, "the posterior precision")
        pull = precision[rest][:, chosen] @ mean[chosen]
        move = torch.cholesky_solve(pull.unsqueeze(-1), factor).squeeze(-1)
        explained = float(half_squared_norm(self._marginal(chosen), mean[chosen]))
        return NormalGamma(
            mean[rest] + move,
            inner,
            self.shape,
            self.rate + explained,
            self.prior_precision[rest],
            self.name,
        )

    def _marginal(self, chosen: Tensor) -> Tensor:
        """Cholesky factor of the covariance of the chosen weights, per unit of noise variance."""
        factor = cholesky(wide(self.precision), self.name, "the posterior precision")
        covariance = torch.cholesky_inverse(factor)[chosen][:, chosen]
        return cholesky(covariance, self.name, "the posterior covariance")


def _check_gamma(shape: float, rate: float, name: str) -> None:
    if not (0 < shape < math.inf and 0 < rate < math.inf):
        raise BayespareError(
            f"{name}: shape={shape}, rate={rate} of the noise precision must be positive"
        )
