"""The Laplace approximation at a network's parameters and its log evidence, nats.

    log q(D) = c l(theta) - 1/2 [log|P| - log|P0| + theta' P0 theta],  P = c H + P0

with c = 1 / (T sigma^2) for regression, 1 / T for classification, and l the log likelihood without
noise and normaliser. The training loss that goes with it is the mean negative log likelihood plus
``T / N`` times :meth:`Prior.penalty`. Source: card section 1 (arXiv 2104.04975, 2402.15978).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayespare.bayes.curvature import Curvature, curvature
from bayespare.bayes.likelihood import Likelihood, by_position, likelihood_for
from bayespare.bayes.marginal.blocks import Block, DiagonalBlock, KroneckerBlock
from bayespare.bayes.marginal.priors import Prior
from bayespare.bayes.posterior import GaussianPosterior
from bayespare.errors import BayespareError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Noise:
    """Residuals of a regression at the parameters.

    Attributes:
        squares: Sum of squared residuals.
        numbers: How many residuals; of weighted examples the sum of their weights.
        std: Standard deviation of the noise that the curvature was computed with.
        power: Of the noise by which the curvature falls: 2, but 4 of the empirical Fisher, whose
            gradients of the negative log likelihood each fall with its square.
    """

    squares: float
    numbers: float
    std: float
    power: float = 2.0


class Laplace:
    """A Gaussian around parameters, precise as curvature and prior together say.

    Args:
        means: Parameter name to its value.
        curvature: Of the summed negative log likelihood at these values.
        log_likelihood: Summed over the data, nats; of a regression it follows from ``noise``.
        temperature: T; below one the data count more than once. The same as in the training loss.
        noise: Of a regression.
        published: Use the eigenbasis form for all Kronecker blocks, as in the paper; otherwise
            exact forms where there are any and the tighter bound elsewhere.

    Raises:
        BayespareError: If names or shapes differ, the temperature is not positive, or a value is
            not finite.
    """

    def __init__(
        self,
        means: Mapping[str, Tensor],
        curvature: Curvature,
        log_likelihood: float = 0.0,
        *,
        temperature: float = 1.0,
        noise: Noise | None = None,
        published: bool = False,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise BayespareError(f"temperature={temperature} must be positive (1 is untempered)")
        if not math.isfinite(log_likelihood):
            raise BayespareError(f"the log likelihood is {log_likelihood}; training has diverged")
        self.means = {name: mean.detach() for name, mean in means.items()}
        self.examples = curvature.examples
        self.temperature, self.noise, self.published = temperature, noise, published
        self._log_likelihood = log_likelihood
        self.blocks: dict[str, Block] = {}
        known: dict[int, KroneckerBlock] = {}
        for name, mean in self.means.items():
            if not bool(torch.isfinite(mean).all()):
                raise BayespareError(f"{name}: a parameter is not finite; training has diverged")
            block: Block
            if name in curvature.factors:
                factors = curvature.factors[name]
                # A bias has its weight's output factor: the very same tensor.
                block = kronecker = KroneckerBlock(factors, known.get(id(factors.output)))
                known.setdefault(id(factors.output), kronecker)
            elif name in curvature.diagonal:
                given = curvature.diagonal[name]
                if bool((given < 0).any()):
                    log.warning(
                        "%s: %d of %d curvatures are negative (the lowest %.3g) and were taken as "
                        "zero",
                        name,
                        int((given < 0).sum()),
                        given.numel(),
                        float(given.min()),
                    )
                block = DiagonalBlock(given)
            else:
                raise BayespareError(f"{name}: the curvature has no block for this parameter")
            if block.curvature.shape != mean.shape:
                raise BayespareError(
                    f"{name}: the curvature has shape {tuple(block.curvature.shape)}, the "
                    f"parameter {tuple(mean.shape)}"
                )
            self.blocks[name] = block

    # ------------------------------------------------------------- likelihood
    def factor(self, log_noise: Tensor | None = None) -> Tensor:
        """c, relative to the noise that the curvature was computed with."""
        one = torch.tensor(1 / self.temperature, dtype=torch.float64)
        if self.noise is None or log_noise is None:
            return one
        return one * (self.noise.power * (math.log(self.noise.std) - log_noise.double())).exp()

    def log_likelihood(self, log_noise: Tensor | None = None) -> Tensor:
        """Tempered log likelihood; of a regression with its normaliser, which is not tempered."""
        if self.noise is None:
            return torch.tensor(self._log_likelihood / self.temperature, dtype=torch.float64)
        if log_noise is None:
            log_noise = torch.tensor(math.log(self.noise.std), dtype=torch.float64)
        log_noise = log_noise.double()
        fit = 0.5 * self.noise.squares / self.temperature * (-2 * log_noise).exp()
        return -fit - self.noise.numbers * (log_noise + 0.5 * math.log(2 * math.pi))

    # ---------------------------------------------------------------- evidence
    def log_determinant(
        self,
        prior: Prior,
        log_noise: Tensor | None = None,
        logs: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """``log|P|``; differentiable in the prior, or in its ``logs`` where they are there."""
        if logs is None:
            logs = {name: prior.log_precision(name) for name in self.means}
        factor, separable = self.factor(log_noise), prior.kind == "unit"
        total = torch.zeros((), dtype=torch.float64)
        for name, block in self.blocks.items():
            total = (
                total
                + block.log_determinant(
                    logs[name],
                    factor.to(logs[name].device),
                    published=self.published,
                    separable=separable,
                ).cpu()
            )
        return total

    def log_evidence(self, prior: Prior, log_noise: Tensor | None = None) -> Tensor:
        """``log q(D)``, nats, a float64 scalar; differentiable in the prior and the log noise.

        No gradient is taken through the parameters: they are where they are.
        """
        logs = {name: prior.log_precision(name) for name in self.means}
        prior_terms = torch.zeros((), dtype=torch.float64)
        for name, mean in self.means.items():
            pull = logs[name].exp() * mean.square() - logs[name]
            prior_terms = prior_terms + pull.sum(dtype=torch.float64).cpu()
        determinant = self.log_determinant(prior, log_noise, logs)
        return self.log_likelihood(log_noise) - 0.5 * (determinant + prior_terms)

    # ---------------------------------------------------------------- posterior
    def determined(self, prior: Prior, log_noise: Tensor | None = None) -> dict[str, Tensor]:
        """How well the data determine each parameter: gamma, between 0 and 1, in its shape.

        Their sum is the effective number of parameters. Of a bound on the evidence single ones may
        be below zero.
        """
        factor = float(self.factor(log_noise).detach())
        return {
            name: block.determined(
                prior.log_precision(name).detach(),
                factor,
                published=self.published,
                separable=prior.kind == "unit",
            )
            for name, block in self.blocks.items()
        }

    def effective(self, prior: Prior, log_noise: Tensor | None = None) -> dict[str, Tensor]:
        """The sum of :meth:`determined` for each parameter under a prior of shared precisions."""
        factor = float(self.factor(log_noise).detach())
        return {
            name: block.effective(prior.log_precision(name).detach(), factor)
            for name, block in self.blocks.items()
        }

    @torch.no_grad()
    def precisions(self, prior: Prior, log_noise: Tensor | None = None) -> dict[str, Tensor]:
        """Diagonal of the posterior precision, in the shapes of the parameters.

        Exact also for Kronecker factors; with ``published`` that of the restricted precision.
        """
        factor, logs = float(self.factor(log_noise).detach()), prior.log_precisions()
        return {
            name: block.diagonal(logs[name], factor, published=self.published)
            for name, block in self.blocks.items()
        }

    @torch.no_grad()
    def posterior(self, prior: Prior, log_noise: Tensor | None = None) -> GaussianPosterior:
        """The posterior, in the form that predictions and removals are made from.

        Kronecker factors keep their correlations; the prior of such a parameter must be one.

        Raises:
            BayespareError: If a parameter with Kronecker factors has several prior precisions, or
                several groups or an embedding's factors.
        """
        factor, logs = float(self.factor(log_noise).detach()), prior.log_precisions()
        std, correlated = {}, {}
        for name, block in self.blocks.items():
            if isinstance(block, KroneckerBlock):
                correlated[name] = block.correlated(name, self.means[name], logs[name], factor)
                marginal = correlated[name].stored(correlated[name].matrix.element_std())
                std[name] = marginal.to(self.means[name])
            else:
                std[name] = block.diagonal(logs[name], factor, published=False).rsqrt()
        prior_std = {name: (-0.5 * logs[name]).exp() for name in self.blocks}
        return GaussianPosterior(std, prior_std, correlated)

    def curvatures(self, log_noise: Tensor | None = None) -> dict[str, Tensor]:
        """Diagonal of ``c H``, in the shapes of the parameters."""
        factor = float(self.factor(log_noise).detach())
        return {name: factor * block.curvature for name, block in self.blocks.items()}

    def is_bound(self, prior: Prior) -> bool:
        """Whether the evidence is a bound: that of Kronecker factors under a fine-grained prior."""
        grained = prior.kind == "parameter" or (prior.kind == "unit" and self.published)
        return grained and not self.is_diagonal

    @property
    def is_diagonal(self) -> bool:
        """Whether every block is diagonal."""
        return all(isinstance(block, DiagonalBlock) for block in self.blocks.values())


def laplace(
    model: nn.Module,
    likelihood: Likelihood | str,
    batches: Iterable[tuple[Any, ...]],
    *,
    temperature: float = 1.0,
    published: bool = False,
    **options: Any,
) -> Laplace:
    """The Laplace approximation at a model as it is.

    Args:
        model: The network; left as it was.
        likelihood: What its outputs say of the targets, or ``classification``, ``regression``.
        batches: Pairs ``(x, y)``, or with the weights of the examples, iterated once.
        temperature: As in the training loss.
        published: See :class:`Laplace`.
        **options: Of :func:`bayespare.bayes.curvature.curvature`.

    Raises:
        BayespareError: If there is no data, or something is not finite.
    """
    if isinstance(likelihood, str):
        likelihood = likelihood_for(likelihood)
    total, squares, numbers = 0.0, 0.0, 0.0

    @torch.no_grad()
    def add(output: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        nonlocal total, squares, numbers
        output, y = by_position(likelihood, output, y)
        total -= _summed(likelihood.nll(output, y), weight)
        if likelihood.noise_std is not None:
            squares -= _summed(likelihood.score(output, y), weight)
            numbers += y.numel() if weight is None else _summed(torch.ones_like(y), weight)

    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = curvature(model, likelihood, batches, watch=add, **options)
    std = likelihood.noise_std
    power = 4.0 if options.get("kind") == "ef" else 2.0
    noise = None if std is None else Noise(squares, numbers, std, power)
    return Laplace(
        parameters, found, total, temperature=temperature, noise=noise, published=published
    )


def _summed(values: Tensor, weight: Tensor | None) -> float:
    """Sum over examples, each as often as it counts, and over positions where there are several."""
    if weight is not None:
        values = values.reshape(len(weight), -1) * weight.unsqueeze(1)
    return float(values.sum(dtype=torch.float64))
