"""SpaM: training by marginal likelihood, which makes a network sparsifiable, and what it removes.

Weights are trained to their mode under a Gaussian prior whose precisions (one per weight, unless
said otherwise) are set by the evidence of a Laplace approximation after every epoch; useless
weights get large ones and shrink. A unit, or with ``unit=weight`` a single weight, is judged by the
change of that evidence when its outgoing weights go, at a precision its layer shares: the optimal
brain damage of the posterior with its Occam term. A ``sparsity`` is reached by the paper's ranking,
optimal posterior damage (OPD), on top. Source: Dhahri et al., arXiv 2402.15978; Immer et al.,
arXiv 2104.04975; card sections 1 to 8. Differences from the publication: curvature by sampled
labels, precisions in closed form or by MacKay's fixed point in place of Adam, no ratio.

``settings=faithful`` is the publication: the empirical Fisher of all data every fifth epoch, 100
steps of Adam on the log precisions, constant rate, and at the end the ``sparsity`` that was asked
for: of weights by OPD over the whole network, of units by the sum of OPD over their incoming
weights, the same share of every group. Without ``sparsity`` (the paper has no rule) the evidence
decides. With ``online=true`` a growing share of the single weights is set to zero every tenth epoch
and may grow back until the next (:func:`~bayespare.bayes.scores.online_sparsity`). Differences:
every parameter is counted, Adam's moments start afresh at each look, and the noise of a regression
is what is left on validation data, not learnt by gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from bayespare.bayes.curvature import Curvature, all_reduce, curvature, estimate
from bayespare.bayes.curvature.cotangents import Kind
from bayespare.bayes.curvature.passes import Structure
from bayespare.bayes.curvature.running import evaluating
from bayespare.bayes.likelihood import Gaussian, Likelihood
from bayespare.bayes.marginal import Laplace, Prior, PriorKind, learn
from bayespare.bayes.modes import LaplaceWeights
from bayespare.bayes.scores import ONLINE_EVERY, Scope, above_rank, online_sparsity
from bayespare.bayes.weights import Draw
from bayespare.data import Batches, Dataset
from bayespare.errors import BayespareError
from bayespare.methods.gaussian import GaussianConfig, GaussianMethod, capped
from bayespare.methods.registry import register
from bayespare.methods.wiring import block_best, block_sums
from bayespare.structure.plan import Group
from bayespare.training import ranks
from bayespare.training.method import Config
from bayespare.training.shrink import remaining_parameters

logger = logging.getLogger(__name__)


class SpamConfig(GaussianConfig):
    """Settings of ``spam``.

    Attributes:
        prior: Who shares a prior precision while training: all (``scalar``), a ``layer``, inputs
            and outputs (``unit``), or nobody (``parameter``).
        unit: What is judged: units, or single weights and biases.
        sparsity: Least share of the weights that is removed, those with the lowest OPD
            (``unit=weight``); ``faithful``: exactly this share, of weights or of units.
        scope: Whether the ranking is over the whole network or in each weight and bias.
        online: Whether weights go while the network trains, more of them with every look, or all
            at the end; ``faithful`` with ``unit=weight``: whether they are set to zero for a while.
        curvature: ``diag``, or ``kfac``: Kronecker factors (``unit=unit`` only).
        kind: Of curvature, as in :func:`bayespare.bayes.curvature.curvature`.
        samples: Training examples that each curvature is measured on; None: all.
        every: Epochs between looks at the curvature.
        burn_in: The first epoch that is followed by a look.
        update: How precisions are set, as in :func:`bayespare.bayes.marginal.learn`.
        steps: Of ``update``, where it takes any.
        cap: Largest share of a group's units, or of a layer's weights, that goes after one epoch.
        max_memory_gb: What a curvature may take; more is refused before it is taken.
    """

    prior: PriorKind = "parameter"
    unit: Literal["unit", "weight"] = "unit"
    sparsity: float | None = Field(None, gt=0, lt=1)
    scope: Scope = "global"
    online: bool = True
    curvature: Structure = "diag"
    kind: Kind = "ggn-mc"
    samples: int | None = Field(2000, ge=1)
    every: int = Field(1, ge=1)
    burn_in: int = Field(1, ge=0)
    update: Literal["auto", "mackay", "adam"] = "auto"
    steps: int = Field(30, ge=1)
    cap: float = Field(0.25, gt=0, le=1)
    max_memory_gb: float | None = Field(None, gt=0)

    def idle(self) -> dict[str, str]:
        """See :class:`bayespare.training.method.Config`."""
        mode = dict.fromkeys(("start_std", "noise"), "spam trains at the mode, without noise")
        return super().idle() | mode | {"prior_std": "spam learns the prior; prior= says how"}


def _config(settings: str = "default", **changes: Any) -> SpamConfig:
    """The authors' values where ``settings`` is ``faithful``, ours elsewhere; then the user's."""
    values: dict[str, Any] = {}
    if settings == "faithful":
        values = {
            "online": False,
            "kind": "ef",
            "samples": None,
            "every": 5,
            "update": "adam",
            "steps": 100,
            "rate": 1e-3,
        }
    return SpamConfig(**{**values, **changes, "settings": settings})


@register("spam", _config)
@final
class Spam(GaussianMethod):
    """Modes under learnt precisions, with their Laplace posterior.

    Attributes:
        epochs: That it has observed.
        zeroed: Share of the weights that was last set to zero, to grow back or not.
    """

    settings_class: ClassVar[type[Config]] = SpamConfig
    offers = ("unit", "feature", "weight")
    authors_run = (100, 128)
    at_mode = True
    config: SpamConfig
    weights: LaplaceWeights
    epochs: Tensor
    zeroed: Tensor
    due: bool = False

    # ---------------------------------------------------------------- attach
    def _authors_start(self) -> None:
        """The authors start where the network starts."""

    def foresee(self, network: nn.Module, x: Tensor) -> str:
        """See :class:`Method`: parameters that are not followed, curvature that takes too much."""
        needs = estimate(network, x, structure=self.config.curvature)
        needs.check(self.config.max_memory_gb)
        return f"curvature takes {needs}"

    def make_posterior(self) -> None:
        """See :class:`GaussianMethod`: nothing is known of the spread before the first look."""
        if self.by_weight and self.config.curvature == "kfac":
            raise BayespareError(
                "spam: curvature='kfac' does not know single weights that are gone; use unit=unit "
                "or curvature=diag"
            )
        (network,) = self.network
        self.separates = not self.by_weight
        self.weights = LaplaceWeights(self.layers, masked=self.by_weight)
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self.register_buffer("zeroed", torch.zeros((), dtype=torch.float64))
        self.total = sum(p.numel() for p in network.parameters())
        self.sizes = {n: p.numel() for n, p in self.weights.parameters_by_name().items()}

    @property
    def by_weight(self) -> bool:
        """Whether single weights are judged."""
        return self.config.unit == "weight"

    @property
    def _grows_back(self) -> bool:
        """Whether weights that go amid training may come back, as published."""
        ranked = self.by_weight and self.config.sparsity is not None
        return self.faithful and self.config.online and ranked

    # ------------------------------------------------- what a forward pass uses
    @torch.no_grad()
    def evaluation_means(self, rows: Sequence[Tensor | None]) -> Sequence[Draw | None]:
        """See :class:`GaussianMethod`: without what would go if it were decided now."""
        if self.looking:
            # Curvature looks the parameters themselves up in the network.
            return [None] * len(self.layers)
        odds = self.log_odds()
        if not odds:
            return super().evaluation_means(rows)
        kept = self.plan.surviving({n: v > 0 for n, v in odds.items()}, odds)
        units = torch.cat([kept[g.name].float() for g in self.plan.groups])
        gates = self.wiring.by_column(units.to(self.layers[0].weight.device))
        drawn = self.weights.means(gates, rows)
        if not self.by_weight:
            return drawn
        stays = {name: value > 0 for name, value in self.weight_log_odds().items()}
        return [
            partial(
                draw().without,
                layer.stored(stays[f"{layer.name}.weight"]),
                stays.get(f"{layer.name}.bias"),
            )
            for layer, draw in zip(self.layers, drawn, strict=True)
        ]

    # --------------------------------------------------------------- observe
    def observe(self, likelihood: Likelihood, data: Dataset, held: Dataset | None = None) -> None:
        """See :class:`Method`: curvature, then the precisions of highest evidence.

        Ranks share the examples.
        """
        self.epochs += 1
        epochs, every = int(self.epochs), self.config.every
        learning = epochs >= self.config.burn_in and epochs % every == 0
        if not learning and self.progress < 1:
            return
        number = max(ranks.world(), min(self.config.samples or len(data), len(data)))
        device = data.x.device
        order = torch.randperm(len(data), generator=self.generator, device=device)[:number]
        own = order[ranks.share(number)]
        slices = Batches(data.subset(own), min(1000, len(own)), shuffle=False)
        batches = list(slices)
        (network,) = self.network
        self.weights.silence()
        self.looking = True
        try:
            with ranks.own_noise(self):
                found = all_reduce(
                    curvature(
                        network,
                        likelihood,
                        batches,
                        kind=self.config.kind,
                        structure=self.config.curvature,
                        max_memory_gb=self.config.max_memory_gb,
                        generator=self.generator,
                    )
                )
        finally:
            self.looking = False
        found = found.scaled(len(data) / number)
        if self.by_weight:  # what is gone has no part in what others share
            bends = {
                n: found.diagonal[n] * self.weights.get("there", n)
                for n in self.weights.parameter_names()
            }
            found = replace(found, diagonal=bends)
        self._learn(found, learning=learning)
        if isinstance(likelihood, Gaussian):
            self._set_noise(likelihood, found, batches, held)
        self.cached.forget()
        self.due = True

    def _learn(self, found: Curvature, *, learning: bool) -> None:
        """Set all precisions; the likelihood counts 1 / tempering as often as the prior."""
        means = self.weights.parameters_by_name()
        laplace = Laplace(
            means, found, temperature=max(self.tempering, 1e-3), published=self.faithful
        )
        prior, shared = Prior(means, self.config.prior), Prior(means, "layer")
        # Near the last optimum few steps are enough.
        prior.start_at({name: self.weights.get("log_precision", name) for name in means})
        shared.start_at({name: self.weights.get("shared", name) for name in means})
        if learning:
            clamps = learn(prior, laplace, self.config.update, steps=self.config.steps)
            # Weights and inputs without use are meant to run away; what a layer shares is not.
            shares = prior.kind in ("scalar", "layer") and clamps.low + clamps.high > 0
            logger.log(logging.WARNING if shares else logging.DEBUG, "spam: %s", clamps)
        learn(shared, laplace, steps=15)
        curvatures = laplace.curvatures()
        logs = prior.log_precisions()
        for name in means:
            log = logs[name].detach() if learning else self.weights.get("log_precision", name)
            level = shared.log_precisions()[name].detach()
            self.weights.set(name, log, curvatures[name], level)

    @torch.no_grad()
    def _set_noise(
        self,
        likelihood: Gaussian,
        found: Curvature,
        batches: list[tuple[Tensor, ...]],
        held: Dataset | None,
    ) -> None:
        """The noise is what is left on validation data.

        By gradient alone it would shrink with the residuals of an overfitted network. Without
        validation data it is MacKay's: training residuals over the rows that the weights have not
        used up. Of more weights than rows a diagonal counts more used than there are rows, and the
        noise would be taken for several times what it is, and everything for removable.
        """
        if held is not None:
            batches = list(Batches(held, 1024, shuffle=False))
        (network,) = self.network
        self.looking = True
        try:
            with evaluating(network):
                scores = torch.cat([likelihood.score(network(x), y) for x, y, *_ in batches])
        finally:
            self.looking = False
        often = [weight[0] if weight else torch.ones_like(y) for _, y, *weight in batches]
        weight = torch.cat(often).to(scores)
        total = torch.stack(((scores * weight).sum(), weight.sum(), weight.new_tensor(len(weight))))
        free = 1.0
        if held is None:
            total, used = ranks.summed(total), 0.0
            for name in self.weights.parameter_names():
                bend = self.weights.get("curvature", name)
                used += float((bend / (bend + self.weights.get("log_precision", name).exp())).sum())
            count = self.examples * float(total[1] / total[2])
            free = max(1 - used / count, 0.1)
        likelihood.log_noise.fill_(0.5 * torch.log(-total[0] / total[1] / free))

    # --------------------------------------------------------------- penalty
    def kl(self) -> Tensor:
        """Minus the log prior density of the weights at their modes, up to a constant, nats."""
        total = self.layers[0].weight.new_zeros(())
        for name, value in self.weights.parameters_by_name().items():
            precision = self.weights.get("log_precision", name).exp()
            if self.by_weight:
                precision = precision * self.weights.get("there", name)
            total = total + 0.5 * (precision * value.square()).sum()
        return total

    # ---------------------------------------------------------------- update
    def update(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
        """See :class:`Method`: once after each look, the worst of each group first."""
        if self.decided or not self.due or not self.config.online:
            return {}
        self.due = False
        if self._grows_back:
            self._zero()
            return {}
        if self.by_weight:
            return self._prune(self.config.cap, optimizer)
        keep = {name: capped(odds, self.config.cap) for name, odds in self.log_odds().items()}
        return self.remove(keep, optimizer)

    def decide(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
        """See :class:`Method`."""
        if not self.by_weight or self.decided or not self.weights.known:
            return super().decide(optimizer)
        stayed = self._prune(1.0, optimizer)
        self.settle(optimizer)
        return stayed

    @torch.no_grad()
    def _zero(self) -> None:
        """Set to zero what ranks lowest, every so often; the optimiser may move it again."""
        epochs = int(self.epochs)
        if epochs % ONLINE_EVERY or self.progress >= 1:
            return
        assert self.config.sparsity is not None
        total = round(epochs / self.progress)
        self.zeroed.fill_(online_sparsity(epochs, total, self.config.sparsity))
        odds, parameters = self.weight_log_odds(), self.weights.parameters_by_name()
        for name, value in odds.items():
            parameters[name].masked_fill_(value <= 0, 0.0)
        self.cached.forget()

    @torch.no_grad()
    def _prune(self, cap: float, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
        """Remove single weights, ``cap`` of a layer at most, and the units nobody reads then."""
        keep = {}
        for name, odds in self.weight_log_odds().items():
            there = self.weights.get("there", name)
            keep[name] = there.clone()
            keep[name][there] = capped(odds[there], cap)
        self.weights.prune(keep)
        self.cached.forget()
        return self.remove({n: odds > -torch.inf for n, odds in self.log_odds().items()}, optimizer)

    def remaining(self, network: nn.Module, stay: Mapping[str, Tensor]) -> int:
        """See :class:`Method`: without what would be removed, too."""
        if not self.by_weight or not self.weights.known:
            return super().remaining(network, stay)
        if self.decided:
            there = {name: self.weights.get("there", name) for name in self.sizes}
        else:
            there = {name: odds > 0 for name, odds in self.weight_log_odds().items()}
        # A bias that has never moved is zero by itself.
        values = self.weights.parameters_by_name()
        there = {name: line & (values[name] != 0) for name, line in there.items()}
        return remaining_parameters(network, self.plan, stay, there)

    # -------------------------------------------------------------- log_odds
    @torch.no_grad()
    def log_odds(self) -> dict[str, Tensor]:
        """See :class:`Method`: infinite before the first look.

        With ``unit=weight`` that of the outgoing weight that has the best claim.
        """
        if self.decided:
            return {}
        if not self.weights.known:
            return self.certain()
        if self.by_weight:
            best = block_best(self.plan, _by_layer(self.weight_log_odds()))
            unjudged = self.unjudged()
            return {n: odds.masked_fill(unjudged[n], torch.inf) for n, odds in best.items()}
        if self.faithful and self.config.sparsity is not None:
            return {group.name: self._published(group) for group in self.plan.groups}
        sums = block_sums(self.plan, _by_layer(self._evidence()))
        costs = self.costs({layer.name: layer.weight for layer in self.layers})
        unjudged = self.unjudged()
        return {
            name: (value - costs[name]).masked_fill(unjudged[name], torch.inf).float()
            for name, value in sums.items()
        }

    @torch.no_grad()
    def weight_log_odds(self) -> dict[str, Tensor]:
        """Log posterior odds of every weight and bias, nats; minus infinity of what is gone.

        A ``sparsity`` acts as a price per weight: the least that is enough by rank of OPD.
        """
        worth = self.worth or {}
        ranked = self.config.sparsity is not None
        odds = {
            name: value - self.price * worth.get(name.rpartition(".")[0], 1.0)
            for name, value in self._evidence().items()
        }
        if ranked:
            above = self._above_rank()
            odds = {
                n: above[n] if self.faithful else torch.minimum(odds[n], above[n]) for n in odds
            }
        return {
            name: value.masked_fill(~self.weights.get("there", name), -torch.inf)
            for name, value in odds.items()
        }

    def _evidence(self) -> dict[str, Tensor]:
        """Rise of the evidence by each weight at the precision its layer shares, nats, float64."""
        odds = {}
        for name, mean in self.weights.parameters_by_name().items():
            log = self.weights.get("shared", name).double()
            precision = self.weights.get("curvature", name).double() + log.exp()
            odds[name] = 0.5 * (precision * mean.double().square() - precision.log() + log)
        return odds

    def _damage(self) -> dict[str, Tensor]:
        """OPD of every weight and bias, float64: at the precisions that were learnt."""
        damage = {}
        for name, mean in self.weights.parameters_by_name().items():
            prior = self.weights.get("log_precision", name).double().exp()
            precision = self.weights.get("curvature", name).double() + prior
            damage[name] = precision * mean.double().square()
        return damage

    def _above_rank(self) -> dict[str, Tensor]:
        """Half of OPD less that of the last weight that goes at this stage, nats."""
        share, damage = self._share(), self._damage()
        if self.config.scope == "layer":
            return {
                n: above_rank(d, share * self.sizes[n], self.sizes[n]) for n, d in damage.items()
            }
        flat = torch.cat([value.flatten() for value in damage.values()])
        # Parameters that cannot be removed count as well.
        above = above_rank(flat, share * self.total, sum(self.sizes.values()))
        parts = torch.split(above, [value.numel() for value in damage.values()])
        return {n: part.view_as(damage[n]) for n, part in zip(damage, parts, strict=True)}

    def _published(self, group: Group) -> Tensor:
        """Half of a group's OPD sums less that of the last unit that goes; hidden units alone."""
        if group.unit in ("feature", "position"):
            return torch.full((group.size,), torch.inf)
        sums = block_sums(self.plan, _by_layer(self._damage()), "write")[group.name]
        whole = len(self.keep[group.name])
        return above_rank(sums, int(self._share() * whole), whole).float()

    def _share(self) -> float:
        """What share is to be gone at this stage: all of it at the end, or a part before."""
        assert self.config.sparsity is not None
        if self._grows_back and self.progress < 1:
            return float(self.zeroed)
        stage = self.progress if self.config.online else float(self.progress >= 1)
        return self.config.sparsity * stage


def _by_layer(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the weights, under the names of their layers."""
    return {
        name.removesuffix(".weight"): value
        for name, value in values.items()
        if name.endswith(".weight")
    }
