"""Evidence of rows, columns and elements of a weight matrix with a Kronecker-factored posterior.

Rows are output units (filters, features of a normalisation), columns inputs. Everything is exact
for the posterior it is given and in float64; delta-F in nats, positive = remove.

Source: card section 9.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bayespare.bayes.evidence.elementwise import delta_f
from bayespare.bayes.evidence.inputs import (
    Number,
    check_curvature,
    check_finite,
    check_prior_precision,
    check_prior_std,
    cholesky,
    half_squared_norm,
    log_determinant,
    rows_of,
    wide,
)
from bayespare.bayes.evidence.joint import check_shape, spike_delta_f
from bayespare.errors import BayespareError

Subset = Tensor | list[int]


@dataclass(frozen=True, eq=False)
class MatrixNormal:
    """A matrix-normal posterior: Cov(W[i, j], W[k, l]) = rows[i, k] columns[j, l].

    Attributes:
        mean: Shape ``(o, d)``.
        rows: Covariance over rows, shape ``(o, o)``.
        columns: Covariance over columns, shape ``(d, d)``.
        name: The layer, for errors.
    """

    mean: Tensor
    rows: Tensor
    columns: Tensor
    name: str = "posterior"

    def __post_init__(self) -> None:
        outputs, inputs = self.mean.shape
        check_finite(self.mean, self.name, "the posterior mean")
        check_shape(self.rows, (outputs, outputs), self.name, "the row covariance")
        check_shape(self.columns, (inputs, inputs), self.name, "the column covariance")

    def transposed(self) -> MatrixNormal:
        """The same posterior of the transposed matrix."""
        return MatrixNormal(self.mean.mT, self.columns, self.rows, self.name)

    def element_std(self) -> Tensor:
        """Posterior standard deviation of every element, shape ``(o, d)``."""
        return torch.outer(wide(self.rows).diagonal(), wide(self.columns).diagonal()).sqrt()

    def row_delta_f(self, prior_std: Number) -> Tensor:
        """Change of log evidence when a row is removed, for every row by itself.

        Args:
            prior_std: Standard deviation of the independent priors of mean zero, broadcast to
                ``(o, d)``.

        Returns:
            Nats, shape ``(o,)``.
        """
        mean, scale = wide(self.mean), wide(self.rows).diagonal()
        factor = cholesky(wide(self.columns), self.name, "the column covariance")
        cholesky(wide(self.rows), self.name, "the row covariance")
        cost = half_squared_norm(factor, mean) / scale
        volume = 0.5 * (mean.shape[1] * scale.log() + log_determinant(factor))
        return self._prior(prior_std).sum(1) - volume - cost

    def column_delta_f(self, prior_std: Number) -> Tensor:
        """As :meth:`row_delta_f` for every column; shape ``(d,)``."""
        return self.transposed().row_delta_f(wide(prior_std).expand(self.mean.shape).mT)

    def rows_delta_f(self, subset: Subset, prior_std: Number) -> Tensor:
        """Change of log evidence when a set of rows is removed together, a scalar."""
        chosen, _ = rows_of(subset, self.mean.shape[0], self.name)
        mean = wide(self.mean)[chosen]
        over_rows = cholesky(wide(self.rows)[chosen][:, chosen], self.name, "the row covariance")
        over_columns = cholesky(wide(self.columns), self.name, "the column covariance")
        white = torch.linalg.solve_triangular(over_rows, mean, upper=False)
        cost = half_squared_norm(over_columns, white).sum()
        volume = 0.5 * (
            mean.shape[1] * log_determinant(over_rows)
            + mean.shape[0] * log_determinant(over_columns)
        )
        return self._prior(prior_std)[chosen].sum() - volume - cost

    def without_rows(self, subset: Subset) -> MatrixNormal:
        """The posterior of the other rows given that the subset is zero (they move)."""
        chosen, rest = rows_of(subset, self.mean.shape[0], self.name)
        mean, rows = wide(self.mean), wide(self.rows)
        factor = cholesky(rows[chosen][:, chosen], self.name, "the row covariance")
        cross = rows[chosen][:, rest]
        solved = torch.cholesky_solve(cross, factor)
        return MatrixNormal(
            mean[rest] - solved.mT @ mean[chosen],
            rows[rest][:, rest] - cross.mT @ solved,
            self.columns,
            self.name,
        )

    def without_columns(self, subset: Subset) -> MatrixNormal:
        """As :meth:`without_rows` for columns."""
        return self.transposed().without_rows(subset).transposed()

    def _prior(self, prior_std: Number) -> Tensor:
        prior_std = wide(prior_std, self.mean)
        check_prior_std(prior_std, self.name)
        return prior_std.log().expand(self.mean.shape)


@dataclass(frozen=True, eq=False)
class KroneckerPosterior:
    """A posterior that is diagonal in a Kronecker-factored eigenbasis: KFAC-Laplace and its like.

    ``W = left X right'`` with independent elements of X. KFAC-Laplace is
    ``variance[k, l] = 1 / (b_k a_l + prior_precision)``; an eigenbasis variational optimiser has
    ``1 / (ess (H[k, l] + weight_decay))``.

    Attributes:
        mean: Posterior mean, shape ``(o, d)``.
        left: Orthogonal basis over rows, shape ``(o, o)``.
        right: Orthogonal basis over columns, shape ``(d, d)``.
        variance: Posterior variance of each element in the basis, shape ``(o, d)``.
        prior_precision: Precision of the isotropic prior of mean zero.
        name: The layer, for errors.
        factors: The output-side and input-side factors, if :meth:`from_factors` made it.
    """

    mean: Tensor
    left: Tensor
    right: Tensor
    variance: Tensor
    prior_precision: float
    name: str = "posterior"
    factors: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        outputs, inputs = self.mean.shape
        check_finite(self.mean, self.name, "the posterior mean")
        check_prior_precision(wide(self.prior_precision), self.name)
        check_shape(self.left, (outputs, outputs), self.name, "the row basis")
        check_shape(self.right, (inputs, inputs), self.name, "the column basis")
        check_shape(self.variance, (outputs, inputs), self.name, "the variance")
        check_finite(self.variance, self.name, "the posterior variance")
        if bool((self.variance <= 0).any()):
            raise BayespareError(f"{self.name}: a posterior variance is zero or negative")

    @classmethod
    def from_factors(
        cls,
        mean: Tensor,
        outputs: Tensor,
        inputs: Tensor,
        prior_precision: float,
        *,
        name: str = "posterior",
    ) -> Self:
        """KFAC-Laplace: posterior precision ``outputs (x) inputs + prior_precision I``.

        Args:
            mean: The trained weights, shape ``(o, d)``; the bias is a column if ``inputs`` has it.
            outputs: Output-side factor B, shape ``(o, o)``.
            inputs: Input-side factor A, shape ``(d, d)``; the factor N of the data is in either.
            prior_precision: tau of the isotropic prior.
            name: The layer, for errors.

        Raises:
            BayespareError: If a factor is not positive semi-definite or the prior improper.
        """
        mean = wide(mean)
        rounding = max(torch.finfo(factor.dtype).eps for factor in (outputs, inputs))
        outputs, inputs = wide(outputs, mean), wide(inputs, mean)
        check_prior_precision(wide(prior_precision), name)
        scales, bases = [], []
        for factor, side in ((outputs, "output"), (inputs, "input")):
            check_finite(factor, name, f"the {side}-side curvature factor")
            values, basis = torch.linalg.eigh((factor + factor.mT) / 2)
            # Rounding leaves the zeros of a rank-deficient factor on either side of zero.
            noise = 10 * len(values) * rounding * values.abs().max()
            values = torch.where(values.abs() <= noise, values.clamp_min(0.0), values)
            check_curvature(values, f"{name}, eigenvalues of the {side} side")
            scales.append(values)
            bases.append(basis)
        variance = 1 / (torch.outer(scales[0], scales[1]) + prior_precision)
        return cls(mean, bases[0], bases[1], variance, prior_precision, name, (outputs, inputs))

    def transposed(self) -> KroneckerPosterior:
        """The same posterior of the transposed matrix."""
        return KroneckerPosterior(
            self.mean.mT,
            self.right,
            self.left,
            self.variance.mT,
            self.prior_precision,
            self.name,
            None if self.factors is None else (self.factors[1], self.factors[0]),
        )

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior."""
        return 1 / math.sqrt(self.prior_precision)

    def element_std(self) -> Tensor:
        """Posterior standard deviation of every element, shape ``(o, d)``."""
        left, right, variance = wide(self.left), wide(self.right), wide(self.variance)
        return (left.square() @ variance @ right.square().mT).sqrt()

    def element_delta_f(self) -> Tensor:
        """Change of log evidence when an element is removed, for each by itself, nats, (o, d)."""
        return delta_f(wide(self.mean), self.element_std(), self.prior_std, name=self.name)

    def row_delta_f(self) -> Tensor:
        """Change of log evidence when a row is removed, for every row by itself.

        Not the sum over its elements: those are correlated.

        Returns:
            Nats, shape ``(o,)``.
        """
        # The covariance of one row is diagonal in the basis of the columns.
        spread = wide(self.left).square() @ wide(self.variance)
        cost = ((wide(self.mean) @ wide(self.right)).square() / spread).sum(1)
        volume = spread.log().sum(1) + spread.shape[1] * math.log(self.prior_precision)
        return -0.5 * (volume + cost)

    def column_delta_f(self) -> Tensor:
        """As :meth:`row_delta_f` for every column; shape ``(d,)``."""
        return self.transposed().row_delta_f()

    def rows_delta_f(self, subset: Subset) -> Tensor:
        """Change of log evidence when a set of rows is removed together, a scalar."""
        chosen, _ = rows_of(subset, self.mean.shape[0], self.name)
        rotated = (wide(self.mean) @ wide(self.right))[chosen].mT
        return spike_delta_f(
            rotated, self._between(chosen, chosen), self.prior_std, name=self.name
        ).sum()

    def covariance(self, elements: Tensor | list[int]) -> Tensor:
        """Posterior covariance of some elements, given by their index in the flattened matrix."""
        chosen, _ = rows_of(elements, self.mean.numel(), self.name)
        width = self.mean.shape[1]
        left = wide(self.left)[chosen // width]
        right = wide(self.right)[chosen % width]
        # Sum over the basis in two products of (elements, o, d) at most.
        weighted = (left.unsqueeze(-1) * wide(self.variance)) * right.unsqueeze(1)
        other = left.unsqueeze(-1) * right.unsqueeze(1)
        return weighted.flatten(1) @ other.flatten(1).mT

    def joint_delta_f(self, elements: Tensor | list[int]) -> Tensor:
        """Change of log evidence when any set of elements is removed together, a scalar."""
        chosen, _ = rows_of(elements, self.mean.numel(), self.name)
        mean = wide(self.mean).reshape(-1)[chosen]
        return spike_delta_f(mean, self.covariance(chosen), self.prior_std, name=self.name)

    def moved_mean(self, subset: Subset) -> Tensor:
        """Mean of the other rows given that the subset is zero, shape ``(rest, d)``."""
        chosen, rest = rows_of(subset, self.mean.shape[0], self.name)
        rotated = wide(self.mean) @ wide(self.right)
        factor = cholesky(self._between(chosen, chosen), self.name, "the covariance of the rows")
        pull = torch.cholesky_solve(rotated[chosen].mT.unsqueeze(-1), factor)
        move = (self._between(rest, chosen) @ pull).squeeze(-1).mT
        return (rotated[rest] - move) @ wide(self.right).mT

    def without_rows(self, subset: Subset) -> KroneckerPosterior:
        """The posterior of the other rows given that the subset is zero (they move).

        Raises:
            BayespareError: If it was not made by :meth:`from_factors`: only KFAC-Laplace stays
                in its family.
        """
        if self.factors is None:
            raise BayespareError(
                f"{self.name}: a posterior given by its eigenbasis has none without a row; use "
                "moved_mean, or make it from factors"
            )
        _, rest = rows_of(subset, self.mean.shape[0], self.name)
        outputs, inputs = self.factors
        return KroneckerPosterior.from_factors(
            self.moved_mean(subset),
            outputs[rest][:, rest],
            inputs,
            self.prior_precision,
            name=self.name,
        )

    def without_columns(self, subset: Subset) -> KroneckerPosterior:
        """As :meth:`without_rows` for columns."""
        return self.transposed().without_rows(subset).transposed()

    def _between(self, first: Tensor, second: Tensor) -> Tensor:
        """Covariance between rows, for each column of the basis: shape ``(d, first, second)``."""
        left, variance = wide(self.left), wide(self.variance)
        return (left[first] * variance.mT.unsqueeze(1)) @ left[second].mT


def conditional_row_cost(
    mean: Tensor, outputs: Tensor, inputs: Tensor, prior_precision: float
) -> Tensor:
    """Quadratic cost of removing each row while all others stay as they are, nats, shape ``(o,)``.

    Under a budget units go in the order of this cost; transpose for columns (the outgoing block
    of a hidden unit).

    Args:
        mean: The trained weights, shape ``(o, d)``.
        outputs: Output-side KFAC factor B, shape ``(o, o)``, positive semi-definite.
        inputs: Input-side factor A, shape ``(d, d)``.
        prior_precision: tau of the isotropic prior.

    Returns:
        ``1/2 w_i' (B_ii A + tau I) w_i`` for every row w_i.
    """
    mean = wide(mean)
    bend = (mean @ wide(inputs, mean) * mean).sum(1)
    squared = mean.square().sum(1)
    return 0.5 * (wide(outputs, mean).diagonal() * bend + prior_precision * squared)
