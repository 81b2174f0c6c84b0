"""Determinants and diagonals of the posterior precision, one block per parameter.

The posterior precision of a block is ``P = c H + diag(delta)``; c is the weight of the likelihood.
For Kronecker factors ``H = B (x) A`` with a prior that is not constant, the published form
restricts P to the eigenbasis of H, which raises the determinant: its evidence is a lower bound.
Where the prior is constant or an outer product (unit-wise) the determinant has an exact form.
Source: arXiv 2402.15978, proposition 3.0 (card sections 4 and 5).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from bayespare.bayes.curvature import KroneckerFactors
from bayespare.bayes.evidence import KroneckerPosterior
from bayespare.bayes.posterior import Correlated
from bayespare.errors import BayespareError


class Block(ABC):
    """Posterior precision of one parameter, all else given."""

    @abstractmethod
    def log_determinant(
        self, log_precision: Tensor, factor: Tensor, *, published: bool, separable: bool
    ) -> Tensor:
        """``log|c H + diag(delta)|``, differentiable in both arguments.

        Args:
            log_precision: log delta, broadcasting to the parameter; a scalar where it is shared.
            factor: c, a scalar.
            published: The eigenbasis proposition wherever factors are Kronecker; otherwise the
                exact form where there is one, and the tighter of two upper bounds elsewhere.
            separable: Whether delta is an outer product of one per output and one per input.
        """

    @abstractmethod
    def diagonal(self, log_precision: Tensor, factor: float, *, published: bool) -> Tensor:
        """Diagonal of the posterior precision, the parameter's shape.

        Exact; with ``published`` that of the precision restricted to the eigenbasis, which
        smooths delta over the layer.
        """

    @abstractmethod
    def determined(
        self, log_precision: Tensor, factor: float, *, published: bool, separable: bool
    ) -> Tensor:
        """``1 - delta dlog|P| / ddelta`` of each parameter, in its shape; in [0, 1] but of a bound.

        Arguments as in :meth:`log_determinant`.
        """

    def effective(self, log_precision: Tensor, factor: float) -> Tensor:
        """Sum of :meth:`determined` under one precision, a scalar ``log_precision``; float64."""
        gamma = self.determined(log_precision, factor, published=False, separable=False)
        return gamma.sum(dtype=torch.float64)

    @property
    @abstractmethod
    def curvature(self) -> Tensor:
        """Diagonal of H, the parameter's shape."""


@final
class DiagonalBlock(Block):
    """H is diagonal.

    Args:
        curvature: Its diagonal; what is negative is taken as zero.
    """

    def __init__(self, curvature: Tensor) -> None:
        self._curvature = curvature.clamp_min(0) if bool((curvature < 0).any()) else curvature

    @property
    def curvature(self) -> Tensor:
        """See :class:`Block`."""
        return self._curvature

    def log_determinant(
        self, log_precision: Tensor, factor: Tensor, *, published: bool, separable: bool
    ) -> Tensor:
        """See :class:`Block`: exact."""
        logs = (factor * self._curvature + log_precision.exp()).log()
        return logs.sum(dtype=torch.float64)

    def determined(
        self, log_precision: Tensor, factor: float, *, published: bool, separable: bool
    ) -> Tensor:
        """See :class:`Block`."""
        seen = factor * self._curvature
        return seen / (seen + log_precision.exp())

    def diagonal(self, log_precision: Tensor, factor: float, *, published: bool) -> Tensor:
        """See :class:`Block`."""
        return factor * self._curvature + log_precision.exp()


@final
class KroneckerBlock(Block):
    """H is ``output (x) input``, in groups where a convolution has them; in float64.

    Args:
        factors: Of the curvature.
        twin: A block with the same output factor, whose eigenvectors are taken over.
    """

    def __init__(self, factors: KroneckerFactors, twin: KroneckerBlock | None = None) -> None:
        self.factors = factors
        output = factors.output.double()
        self.output = _symmetric(output if output.ndim == 3 else output[None])
        groups, device = len(self.output), output.device
        if factors.input is None:
            self.input = torch.ones(groups, 1, 1, dtype=torch.float64, device=device)
        elif factors.input.ndim == 1:
            self.input = factors.input.double()
        else:
            given = factors.input.double()
            self.input = _symmetric(given if given.ndim == 3 else given[None])
        self._outputs: Spectrum = Spectrum(self.output) if twin is None else twin._outputs
        self._inputs = None if self.input.ndim == 1 else Spectrum(self.input)

    @property
    def output_values(self) -> Tensor:
        """Eigenvalues of the output factor."""
        return self._outputs.values

    @property
    def input_values(self) -> Tensor:
        """Eigenvalues of the input factor."""
        return self.input.clamp_min(0)[None] if self._inputs is None else self._inputs.values

    @property
    def curvature(self) -> Tensor:
        """See :class:`Block`."""
        return self.factors.diagonal()

    def matrix(self, values: Tensor) -> Tensor:
        """Values that broadcast to the parameter as ``(groups, outputs, inputs)``, float64."""
        groups, outputs = self.output.shape[:2]
        values = values.expand(self.factors.shape)
        if self.factors.transposed:
            return values.double().reshape(groups, -1, outputs).mT
        return values.double().reshape(groups, outputs, -1)

    def back(self, matrix: Tensor) -> Tensor:
        """Undo :meth:`matrix`."""
        return (matrix.mT if self.factors.transposed else matrix).reshape(self.factors.shape)

    def projected(self, matrix: Tensor) -> Tensor:
        """``(Q o Q)' delta``: the diagonal of the prior in the eigenbasis."""
        found = self._outputs.squares.mT @ matrix
        return found if self._inputs is None else found @ self._inputs.squares

    def restored(self, matrix: Tensor) -> Tensor:
        """``(Q o Q) d``: the diagonal, over parameters, of what is diagonal in the eigenbasis."""
        found = self._outputs.squares @ matrix
        return found if self._inputs is None else found @ self._inputs.squares.mT

    def correlated(
        self, name: str, mean: Tensor, log_precision: Tensor, factor: float
    ) -> Correlated:
        """The posterior of the parameter under one prior precision.

        Args:
            name: The parameter, for errors.
            mean: Its value.
            log_precision: Of its prior, the parameter's shape.
            factor: c.

        Raises:
            BayespareError: If the prior has several precisions, or the factors are not one pair of
                full matrices.
        """
        if float(log_precision.max() - log_precision.min()) > 1e-6:
            raise BayespareError(
                f"{name}: a posterior with Kronecker factors needs one prior precision for the "
                "whole parameter; use a prior of kind layer or scalar, or diagonal curvature"
            )
        if len(self.output) > 1 or self.input.ndim == 1:
            raise BayespareError(
                f"{name}: groups and embeddings have no posterior with Kronecker factors; use "
                "diagonal curvature"
            )
        # As they were summed: their precision says which eigenvalues are zero but for rounding.
        accuracy = self.factors.output.dtype
        matrix = KroneckerPosterior.from_factors(
            self.matrix(mean)[0],
            (factor * self.output[0]).to(accuracy),
            self.input[0].to(accuracy),
            math.exp(float(log_precision.double().mean())),
            name=name,
        )
        return Correlated(matrix, tuple(mean.shape), self.factors.transposed)

    def _spectrum(self, factor: Tensor | float) -> Tensor:
        values = self.output_values.unsqueeze(-1) * self.input_values.unsqueeze(-2)
        return factor * values

    def _plain(self) -> Tensor:
        inputs = self.input[None] if self.input.ndim == 1 else self.input.diagonal(0, -2, -1)
        return self.output.diagonal(0, -2, -1).unsqueeze(-1) * inputs.unsqueeze(-2)

    def log_determinant(
        self, log_precision: Tensor, factor: Tensor, *, published: bool, separable: bool
    ) -> Tensor:
        """See :class:`Block`."""
        if log_precision.ndim == 0:
            constant: Tensor = (self._spectrum(factor) + log_precision.double().exp()).log().sum()
            return constant
        log = self.matrix(log_precision)
        if not published and (separable or log.shape[-1] == 1):
            return self._separable(log, factor)
        return self._bound(log, factor, published)

    def _bound(self, log: Tensor, factor: Tensor, published: bool) -> Tensor:
        """The eigenbasis form, or the tighter one of two."""
        precision = log.exp()
        basis: Tensor = (self._spectrum(factor) + self.projected(precision)).log().sum()
        if published:
            return basis
        return torch.minimum(basis, (factor * self._plain() + precision).log().sum())

    def _shares(self, log: Tensor) -> tuple[Tensor, Tensor]:
        """Factors scaled by an outer product's outputs' and inputs' shares."""
        rows, columns = log[:, :, 0], log[:, 0] - log[:, 0, :1]
        if self.input.ndim == 1:
            return _scaled(self.output, rows), self.input * (-columns).exp()
        return _scaled(self.output, rows), _scaled(self.input, columns)

    def _separable(self, log: Tensor, factor: Tensor) -> Tensor:
        """``sum log delta + sum log(1 + c b a)``, b and a eigenvalues of the scaled factors."""
        output, into = self._shares(log)
        outputs = torch.linalg.eigvalsh(output).clamp_min(0)
        inputs = (into if self.input.ndim == 1 else torch.linalg.eigvalsh(into)).clamp_min(0)
        excess = factor * outputs.unsqueeze(-1) * inputs.unsqueeze(-2)
        found: Tensor = log.sum() + excess.log1p().sum()
        return found

    def determined(
        self, log_precision: Tensor, factor: float, *, published: bool, separable: bool
    ) -> Tensor:
        """See :class:`Block`."""
        if log_precision.ndim == 0:
            spectrum = self._spectrum(factor)
            gamma = self.restored(spectrum / (spectrum + log_precision.double().exp()))
            return self.back(gamma).to(log_precision.dtype)
        log = self.matrix(log_precision)
        if not published and (separable or log.shape[-1] == 1):
            gamma = self._separable_determined(log, factor).clamp(0, 1)
        else:
            gamma = self._bound_determined(log, factor, published)
        return self.back(gamma).to(log_precision.dtype)

    def effective(self, log_precision: Tensor, factor: float) -> Tensor:
        """See :class:`Block`: of eigenvalues alone."""
        spectrum = self._spectrum(factor)
        return (spectrum / (spectrum + log_precision.double().exp())).sum()

    def _bound_determined(self, log: Tensor, factor: float, published: bool) -> Tensor:
        """``1 - delta dlog|P| / ddelta`` of :meth:`_bound`."""
        precision = log.exp()
        basis = self._spectrum(factor) + self.projected(precision)
        if not published:
            plain = factor * self._plain() + precision
            if plain.log().sum() < basis.log().sum():
                return 1 - precision / plain
        return 1 - precision * self.restored(1 / basis)

    def _separable_determined(self, log: Tensor, factor: float) -> Tensor:
        """``1 - delta diag(P^-1)``: from the eigenbases of the scaled factors."""
        output, into = self._shares(log)
        outputs, squares = _decomposed(output)
        if self.input.ndim == 1:
            rest = 1 / (1 + factor * outputs.unsqueeze(-1) * into.clamp_min(0))
            return 1 - squares @ rest
        inputs, columns = _decomposed(into)
        rest = 1 / (1 + factor * outputs.unsqueeze(-1) * inputs.unsqueeze(-2))
        return 1 - squares @ rest @ columns.mT

    def diagonal(self, log_precision: Tensor, factor: float, *, published: bool) -> Tensor:
        """See :class:`Block`."""
        precision = self.matrix(log_precision).exp()
        if published:
            found = self.restored(self._spectrum(factor) + self.projected(precision))
        else:
            found = factor * self._plain() + precision
        return self.back(found).to(log_precision.dtype)


@final
class Spectrum:
    """Of symmetric matrices, no eigenvalue below zero.

    Found when they are asked for: eigenvectors cost twice as much as eigenvalues alone.

    Args:
        matrix: Shape ``(..., n, n)``.
    """

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix

    @cached_property
    def values(self) -> Tensor:
        """Eigenvalues, rising, shape ``(..., n)``."""
        values: Tensor = torch.linalg.eigvalsh(self._matrix)
        return values.clamp_min(0)

    @cached_property
    def squares(self) -> Tensor:
        """Squares of the eigenvectors' entries, a column each, shape ``(..., n, n)``."""
        self.values, squares = _decomposed(self._matrix)
        return squares


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, not below zero, and the squares of the eigenvectors' entries."""
    values, basis = torch.linalg.eigh(matrix)
    return values.clamp_min(0), basis.square()


def _scaled(matrix: Tensor, log: Tensor) -> Tensor:
    """``D^-1/2 M D^-1/2`` with D = exp(log)."""
    return matrix * (-0.5 * (log.unsqueeze(-1) + log.unsqueeze(-2))).exp()
