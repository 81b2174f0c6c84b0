"""SpaM: training by marginal likelihood, which makes a network sparsifiable, and what it removes.

Weights are trained to their mode under a Gaussian prior whose precisions (one per weight, unless
said otherwise) are set by the evidence of a Laplace approximation after every epoch; useless
weights get large ones and shrink. A unit is judged by the change of that evidence when its outgoing
weights go, at a precision its layer shares: the optimal brain damage of the posterior with its
Occam term. Source: Dhahri et al., arXiv 2402.15978; Immer et al., arXiv 2104.04975; card sections
1 to 8. Differences from the publication: curvature by sampled labels, precisions in closed form or
by MacKay's fixed point in place of Adam, no ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from bayespare.bayes.curvature import Curvature, all_reduce, curvature
from bayespare.bayes.layers import Drawn, Layer
from bayespare.bayes.likelihood import Gaussian, Likelihood
from bayespare.bayes.marginal import Laplace, Prior, PriorKind, learn
from bayespare.bayes.weights import Cut, Statistics, Weights
from bayespare.data import Batches, Dataset
from bayespare.methods.base import Config, register
from bayespare.methods.gaussian import GaussianConfig, GaussianMethod, capped
from bayespare.methods.wiring import Wiring
from bayespare.training import ranks


class SpamConfig(GaussianConfig):
    """Settings of ``spam``.

    Attributes:
        prior: Who shares a prior precision while training: all (``scalar``), a ``layer``, inputs
            and outputs (``unit``), or nobody (``parameter``).
        samples: Training examples that each curvature is measured on.
        cap: Largest share of a group's units that goes after one epoch.
    """

    settings: Literal["default"] = "default"
    prior: PriorKind = "parameter"
    samples: int = Field(2000, ge=1)
    cap: float = Field(0.25, gt=0, le=1)


@register("spam", SpamConfig)
class Spam(GaussianMethod):
    """Modes under learnt precisions, with their Laplace posterior."""

    settings_class: ClassVar[type[Config]] = SpamConfig
    at_mode = True
    config: SpamConfig
    weights: LaplaceWeights
    looking: bool = False
    due: bool = False

    # ---------------------------------------------------------------- attach
    def make_posterior(self) -> None:
        """See :class:`GaussianMethod`: nothing is known of the spread before the first look."""
        self.weights = LaplaceWeights(self.layers)
        self.wiring = Wiring(self.layers, self.plan.groups)

    # ------------------------------------------------- what a forward pass uses
    def evaluation_means(self, rows: Sequence[Tensor | None]) -> list[Drawn]:
        """See :class:`GaussianMethod`: without the units that would go if it were decided now."""
        odds = self.log_odds()
        if self.looking or not odds:
            return super().evaluation_means(rows)
        kept = self.plan.surviving({n: v > 0 for n, v in odds.items()}, odds)
        units = torch.cat([kept[g.name].float() for g in self.plan.groups])
        gates = self.wiring.by_column(units.to(self.layers[0].weight.device))
        return self.weights.means(gates, rows)

    # --------------------------------------------------------------- observe
    def observe(self, likelihood: Likelihood, data: Dataset) -> None:
        """See :class:`Method`: curvature, then the precisions of highest evidence.

        Ranks share the examples.
        """
        (network,) = self.network
        number = max(ranks.world(), min(self.config.samples, len(data)))
        device = data.x.device
        order = torch.randperm(len(data), generator=self.generator, device=device)[:number]
        own = order[ranks.share(number)]
        slices = Batches(data.subset(own), min(1000, len(own)), shuffle=False)
        batches = [(x, y) for x, y, *_ in slices]
        self.looking = True
        try:
            with ranks.own_noise(self):
                found = all_reduce(
                    curvature(network, likelihood, batches, generator=self.generator)
                )
        finally:
            self.looking = False
        scale = len(data) / number
        bends = {n: found.diagonal[n] * scale for n in self.weights.parameter_names()}
        self._learn(bends, len(data))
        if isinstance(likelihood, Gaussian):
            self._set_noise(likelihood, bends, batches)
        self.cached.forget()
        self.due = True

    def _learn(self, bends: dict[str, Tensor], examples: int) -> None:
        """Set all precisions; the likelihood counts 1 / tempering as often as the prior."""
        means = self.weights.parameters_by_name()
        laplace = Laplace(
            means,
            Curvature(bends, {}, examples),
            temperature=max(self.tempering, 1e-3),
        )
        prior = Prior(means, self.config.prior)
        learn(prior, laplace, steps=30)
        shared = Prior(means, "layer")
        learn(shared, laplace, steps=30)
        curvatures = laplace.curvatures()
        for name in means:
            self.weights.set(
                name,
                prior.log_precisions()[name].detach(),
                curvatures[name],
                shared.log_precisions()[name].detach(),
            )

    @torch.no_grad()
    def _set_noise(
        self, likelihood: Gaussian, bends: dict[str, Tensor], batches: list[tuple[Tensor, Tensor]]
    ) -> None:
        """MacKay's noise: residuals over the rows that the weights have not used up.

        By gradient alone it would shrink with the residuals of an overfitted network.
        """
        (network,) = self.network
        training = network.training
        network.eval()
        self.looking = True
        scores = torch.cat([likelihood.score(network(x), y) for x, y in batches])
        total = ranks.summed(torch.stack((scores.sum(), scores.new_tensor(len(scores)))))
        self.looking = False
        network.train(training)
        used = sum(
            float((bend / (bend + self.weights.get("log_precision", name).exp())).sum())
            for name, bend in bends.items()
        )
        free = max(1 - used / self.examples, 0.1)
        likelihood.log_noise.fill_(0.5 * torch.log(-total[0] / total[1] / free))

    # --------------------------------------------------------------- penalty
    def kl(self) -> Tensor:
        """Minus the log prior density of the weights at their modes, up to a constant, nats."""
        total = self.layers[0].weight.new_zeros(())
        for name, value in self.weights.parameters_by_name().items():
            precision = self.weights.get("log_precision", name).exp()
            total = total + 0.5 * (precision * value.square()).sum()
        return total

    # ---------------------------------------------------------------- update
    def update(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
        """See :class:`Method`: once after each look, the worst of each group first."""
        if self.decided or not self.due:
            return {}
        self.due = False
        keep = {name: capped(odds, self.config.cap) for name, odds in self.log_odds().items()}
        return self.remove(keep, optimizer)

    def narrow(self, stayed: Any) -> None:
        """See :class:`Method`."""
        super().narrow(stayed)
        self.wiring = Wiring(self.layers, self.plan.groups)

    # -------------------------------------------------------------- log_odds
    @torch.no_grad()
    def log_odds(self) -> dict[str, Tensor]:
        """See :class:`Method`: infinite before the first look."""
        if self.decided:
            return {}
        if not self.weights.known:
            return self.certain()
        scores = {}
        for layer in self.layers:
            name = f"{layer.name}.weight"
            log = self.weights.get("shared", name).double()
            precision = self.weights.get("curvature", name).double() + log.exp()
            square = layer.stored(layer.weight.detach()).double().square()
            score = 0.5 * (precision * square - precision.log() + log)
            scores[layer.name] = layer.stored(score)
        sums, costs, unjudged = self.block_sums(scores), self.costs(scores), self.unjudged()
        return {
            name: (value - costs[name]).masked_fill(unjudged[name], torch.inf).float()
            for name, value in sums.items()
        }


@final
class LaplaceWeights(Weights):
    """Modes as posterior means; log precisions of the prior and curvature of each weight and bias.

    Args:
        layers: The layers.
    """

    KINDS = ("log_precision", "curvature", "shared")

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__(layers)
        for name, value in self.parameters_by_name().items():
            for kind in self.KINDS:
                self.register_buffer(self._place(kind, name), torch.zeros_like(value.detach()))
        self.register_buffer("looks", torch.zeros((), dtype=torch.long))
        self.looks: Tensor

    @staticmethod
    def _place(kind: str, name: str) -> str:
        return f"{kind}:{name.replace('.', '/')}"

    @property
    def known(self) -> bool:
        """Whether curvature has been measured."""
        return int(self.looks) > 0

    def parameter_names(self) -> list[str]:
        """Names of all weights and biases in the network."""
        return list(self.parameters_by_name())

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """All weights and biases by their name in the network."""
        return {
            f"{layer.name}.{leaf}": parameter
            for layer in self.layers
            for leaf, parameter in layer.module.named_parameters(recurse=False)
        }

    def get(self, kind: str, name: str) -> Tensor:
        """What is known of a parameter, in its shape: one of :attr:`KINDS`."""
        value: Tensor = getattr(self, self._place(kind, name))
        return value

    def set(self, name: str, log_precision: Tensor, curvature: Tensor, shared: Tensor) -> None:
        """Note a look at one parameter."""
        for kind, value in zip(self.KINDS, (log_precision, curvature, shared), strict=True):
            self.get(kind, name).copy_(value)
        self.looks += 1

    def draw(
        self,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor | None],
        generator: torch.Generator | None,
    ) -> list[Drawn]:
        """See :class:`Weights`: training is at the modes."""
        return self.means(inputs, outputs)

    def statistics(self, inputs: Sequence[Tensor]) -> list[Statistics]:
        """See :class:`Weights`."""
        result = []
        for layer, read in zip(self.layers, inputs, strict=True):
            name = f"{layer.name}.weight"
            variance = layer.stored(self._variance(name)).flatten(1)
            square = torch.mv(layer.weight.flatten(1).square() + variance, read)
            result.append(Statistics(read.sum(), square, torch.mv(0.5 * variance.log(), read)))
        return result

    def _variance(self, name: str) -> Tensor:
        return 1 / (self.get("curvature", name) + self.get("log_precision", name).exp())

    def cuts(self, columns: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Cut]:
        """See :class:`Weights`."""
        cuts = []
        for layer, column, row in zip(self.layers, columns, rows, strict=True):
            kernel = layer.weight.shape[2:].numel()
            lines = {"weight": [row, column[::kernel]], "bias": [row]}
            if layer.inputs_first:
                lines["weight"].reverse()
            for leaf, _ in layer.module.named_parameters(recurse=False):
                for kind in self.KINDS:
                    place = self._place(kind, f"{layer.name}.{leaf}")
                    cuts += [Cut(self, place, dim, keep) for dim, keep in enumerate(lines[leaf])]
        return cuts

    def standard_deviations(self) -> dict[str, Tensor]:
        """See :class:`Weights`: of the Laplace posterior; none before the first look."""
        if not self.known:
            return {}
        return {name: self._variance(name).sqrt() for name in self.parameter_names()}
