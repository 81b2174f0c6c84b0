"""A Gaussian posterior around the parameters a model already has.

One interface for every family (mean-field, rank-one, the variational optimiser's, Laplace with a
diagonal or with Kronecker factors): spread by parameter name, draws, and evidence of removals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self, get_args

import torch
from torch import Generator, Tensor, nn

from bayespare.bayes.evidence import KroneckerPosterior, block_delta_f, delta_f
from bayespare.errors import BayespareError, did_you_mean

Predictive = Literal["draws", "linear", "probit"]


@dataclass(frozen=True, eq=False)
class Correlated:
    """A parameter whose entries are correlated, with Kronecker factors.

    Attributes:
        matrix: The posterior of the parameter read as ``(outputs, inputs)``, a convolution's
            kernel flattened into its inputs.
        shape: Of the parameter.
        transposed: Whether the parameter is stored as ``(inputs, outputs)``.
    """

    matrix: KroneckerPosterior
    shape: tuple[int, ...]
    transposed: bool = False

    def stored(self, matrix: Tensor) -> Tensor:
        """Values of the matrix in the shape of the parameter."""
        return (matrix.mT if self.transposed else matrix).reshape(self.shape)

    def deviation(self, noise: Tensor) -> Tensor:
        """What to add to the mean for standard normal noise, both in the parameter's shape."""
        matrix, noise = self.matrix, noise.reshape(-1).to(self.matrix.mean)
        if self.transposed:
            noise = noise.view(matrix.mean.mT.shape).mT
        scaled = matrix.variance.sqrt() * noise.reshape(matrix.mean.shape)
        return self.stored(matrix.left @ scaled @ matrix.right.mT)

    def whitened(self, slopes: Tensor) -> Tensor:
        """Slopes in the parameter's entries as slopes in independent standard normal ones.

        Args:
            slopes: Shape ``(..., *shape)``.

        Returns:
            Shape ``(..., entries)``: its squares sum to the variance the parameter brings.
        """
        matrix, leading = self.matrix, slopes.shape[: slopes.ndim - len(self.shape)]
        outputs, inputs = matrix.mean.shape
        if self.transposed:
            slopes = slopes.reshape(*leading, inputs, outputs).mT
        slopes = slopes.reshape(*leading, outputs, inputs).to(matrix.mean)
        found: Tensor = matrix.left.mT @ slopes @ matrix.right * matrix.variance.sqrt()
        return found.flatten(-2)

    def line_delta_f(self, dim: int) -> Tensor:
        """Change of log evidence without each slice along a dimension, jointly, nats, float64."""
        dim %= max(1, len(self.shape))
        rows = dim == (1 if self.transposed else 0)
        matrix = self.matrix if rows else self.matrix.transposed()
        if rows or len(self.shape) <= 2:
            return matrix.row_delta_f()
        if dim > 1:
            raise BayespareError(f"{matrix.name}: dimension {dim} lies within the kernel")
        inputs = torch.arange(len(matrix.mean), device=matrix.mean.device)
        return torch.stack(
            [matrix.rows_delta_f(channel) for channel in inputs.view(self.shape[1], -1)]
        )


@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """Gaussians: the means are the model's parameters, the spread is kept here.

    Attributes:
        std: Parameter name to its posterior standard deviation, the shape of the parameter.
            Parameters that are not named are known exactly (a point mass).
        prior_std: Parameter name to the standard deviation of its prior of mean zero, broadcast,
            where it is known: what the evidence of removals is measured against.
        correlated: Parameters whose entries are correlated; all others are independent.
        predictive: How it predicts: by the average over ``draws`` of networks; over draws of the
            outputs of the network ``linear`` in its parameters around their means, which is what a
            Laplace posterior is of; or by ``probit``, the closed form of the latter.
    """

    std: Mapping[str, Tensor]
    prior_std: Mapping[str, Tensor] = field(default_factory=dict)
    correlated: Mapping[str, Correlated] = field(default_factory=dict)
    predictive: Predictive = "draws"

    def checked(self, model: nn.Module) -> Self:
        """Return this posterior if it fits the model.

        Raises:
            BayespareError: If a name is no parameter of the model, a shape differs, or a standard
                deviation is negative or not finite.
        """
        if self.predictive not in get_args(Predictive):
            hint = did_you_mean(str(self.predictive), get_args(Predictive))
            raise BayespareError(f"posterior: unknown predictive {self.predictive!r}{hint}")
        parameters = dict(model.named_parameters())
        for name, std in self.std.items():
            if name not in parameters:
                hint = did_you_mean(name, parameters)
                raise BayespareError(f"posterior: the model has no parameter {name!r}{hint}")
            shape = tuple(parameters[name].shape)
            if tuple(std.shape) != shape:
                raise BayespareError(
                    f"posterior of {name!r}: the standard deviation has shape "
                    f"{tuple(std.shape)}, the parameter {shape}; was it made for another model?"
                )
            if not bool((torch.isfinite(std) & (std >= 0)).all()):
                raise BayespareError(
                    f"posterior of {name!r}: a standard deviation is negative or not finite"
                )
        return self

    def scaled(self, factor: float) -> GaussianPosterior:
        """The same, every standard deviation multiplied; no evidence follows from it any more."""
        correlated = {
            name: replace(
                part,
                matrix=replace(
                    part.matrix, variance=factor**2 * part.matrix.variance, factors=None
                ),
            )
            for name, part in self.correlated.items()
        }
        std = {name: factor * std for name, std in self.std.items()}
        return GaussianPosterior(std, correlated=correlated, predictive=self.predictive)

    def draw(self, model: nn.Module, generator: Generator | None = None) -> dict[str, Tensor]:
        """Draw the uncertain parameters once, for ``torch.func.functional_call``.

        The noise is drawn in the order of the model's parameters on the generator's device, so a
        posterior read back from a file, or a model moved to another device, gives the same draw.

        Args:
            model: The model whose parameters are the means.
            generator: Source of the noise; without one, torch's global generator.

        Returns:
            Parameter name to ``mean + std * noise``, on the parameter's device and in its dtype.
        """
        source = torch.device("cpu") if generator is None else generator.device
        drawn = {}
        for name, mean in model.named_parameters():
            std = self.std.get(name)
            if std is None:
                continue
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=source)
            noise = noise.to(mean.device)
            known = self.correlated.get(name)
            offset = std.to(mean) * noise if known is None else known.deviation(noise).to(mean)
            drawn[name] = mean.detach() + offset
        return drawn

    def delta_f(self, model: nn.Module, name: str) -> Tensor:
        """Change of log evidence when each entry of a parameter is removed by itself.

        Args:
            model: The model whose parameters are the means.
            name: Of the parameter.

        Returns:
            Nats, the shape of the parameter; positive means remove. Zero for what is gone already,
            exactly zero and known exactly.

        Raises:
            BayespareError: If the parameter or its prior is not known here.
        """
        mean, std, prior = self._known(model, name)
        std, prior = std.to(mean), prior.to(mean)
        gone = (mean == 0) & (std == 0)
        return delta_f(mean, std.where(~gone, prior), prior, name=name).masked_fill(gone, 0.0)

    def line_delta_f(self, model: nn.Module, name: str, dim: int) -> Tensor:
        """Change of log evidence when all entries of a slice are removed together.

        Of correlated entries that is not the sum of their own.

        Args:
            model: The model whose parameters are the means.
            name: Of the parameter.
            dim: Dimension along which the units lie: 0 for incoming blocks, 1 for outgoing ones.

        Returns:
            Nats, float64, shape ``(size of dim,)``.

        Raises:
            BayespareError: As :meth:`delta_f`; if ``dim`` lies within the kernel of a convolution
                with correlated weights.
        """
        if name in self.correlated:
            self._known(model, name)
            return self.correlated[name].line_delta_f(dim)
        return block_delta_f(self.delta_f(model, name), dim)

    def _known(self, model: nn.Module, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, standard deviation and prior's standard deviation of a parameter."""
        parameters = dict(model.named_parameters())
        for names, what in (
            (parameters, "the model has no parameter"),
            (self.std, "no spread is known of"),
            (self.prior_std, "no prior is known of"),
        ):
            if name not in names:
                raise BayespareError(f"posterior: {what} {name!r}{did_you_mean(name, names)}")
        return parameters[name].detach(), self.std[name], self.prior_std[name]
