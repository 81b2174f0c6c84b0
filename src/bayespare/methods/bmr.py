"""Bayesian model reduction: remove what the evidence of one Gaussian posterior is against.

A mean-field Gaussian is fitted under a flat prior; the change of log evidence when weights leave
the model is then in closed form (Savage-Dickey), so every round of a run prunes for the price of
one pass over the weights, and training goes on. Source: Markovic, Friston and Kiebel,
arXiv 2309.12095, and the authors' code (card sections 2, 3 and 5).

``unit=unit``, the default, judges units by their outgoing weights: of a unit that has become
useless the evidence bound concentrates these around zero and lets the incoming ones relax, and
both blocks tell the same evidence, so adding them would count it twice. Removed units leave the
live network. ``unit=weight`` judges single weights, as published; they are masked for good, and
units that nobody reads any more leave.

``bmr`` compares the flat prior with a spike. ``bmr-rhs`` compares a regularised horseshoe over
the scale of each block with the spike, integrating over that scale: the authors fit it by
stochastic optimisation, but it is one integral per unit. (Their criterion, E[1/scale^2] by 1,000
draws, has no finite value: a half-Cauchy is positive at zero.)

Differences from the publication under ``settings=faithful``: Adam in place of AdaBelief, the KL in
closed form, boolean masks in place of factors of 1e-12, and weights that were pruned leave the
counts of the prior odds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bayespare.bayes.evidence import OddsRule, block_disagreement, prior_log_odds
from bayespare.bayes.horseshoe import best_tau, horseshoe_gain, shrinkages
from bayespare.bayes.masked import MaskedWeights
from bayespare.bayes.weights import Draw
from bayespare.methods.beliefs import Parts, beliefs
from bayespare.methods.gaussian import GaussianConfig, GaussianMethod, capped
from bayespare.methods.registry import fixed, register
from bayespare.methods.wiring import block_best
from bayespare.training.criterion import Foretold
from bayespare.training.shrink import remaining_parameters

log = logging.getLogger(__name__)

COLLAPSED = 0.01
"""A layer whose weights are this share better known than under the prior has learnt nothing."""


class BmrConfig(GaussianConfig):
    """Settings of Bayesian model reduction.

    Attributes:
        slab: What the spike is compared with: the flat prior, or a horseshoe over block scales.
        unit: What is judged: units, or single weights.
        odds: Prior log odds per layer or group: ``zero``, ``fixed`` at ``fixed_odds``, or those
            of a Beta-Bernoulli prior, iterated as ``published`` or until ``converged``. These can
            tip a whole layer over in one round; ours is ``zero``.
        fixed_odds: Nats, for ``odds=fixed``.
        odds_bound: Prior log odds are clipped to plus or minus this, nats; None: not at all.
        tie: Nats per weight in favour of removal: what the data ignore has a change of evidence
            of zero, on either side of it.
        cap: Largest share of the units of a group, or weights of a layer, that leaves in a round.
        warm_up: Steps before the first round; None: those of an epoch, at least 50.
        every: Steps between rounds; None: a quarter of an epoch, at least 10.
        prune_last: Whether weights of output layers can go (``unit=weight``; the authors never).
    """

    slab: Literal["flat", "horseshoe"] = "flat"
    unit: Literal["unit", "weight"] = "unit"
    odds: OddsRule = "zero"
    fixed_odds: float = 0.0
    odds_bound: Annotated[float, Field(gt=0)] | None = None
    tie: float = Field(0.05, ge=0)
    cap: float = Field(0.25, gt=0, le=1)
    warm_up: int | None = Field(None, ge=0)
    every: int | None = Field(None, ge=1)
    prune_last: bool = True

    def idle(self) -> dict[str, str]:
        """See :class:`bayespare.training.method.Config`."""
        found = super().idle()
        if self.unit == "weight":
            found.pop("noise", None)
            return found
        single = ("prune_last",) if self.settings == "faithful" else ("prune_last", "noise")
        return found | dict.fromkeys(single, "it is of unit=weight")

    @model_validator(mode="after")
    def _slab_of_units(self) -> BmrConfig:
        if self.slab == "horseshoe" and self.unit == "weight":
            raise ValueError("unit=weight: bmr-rhs judges units; a single weight has no block")
        return self


NAMES = {"flat": "bmr", "horseshoe": "bmr-rhs"}
"""Which method has which slab."""


def _config(slab: str, /, settings: str = "default", **changes: Any) -> BmrConfig:
    """The authors' values where ``settings`` is ``faithful``, ours elsewhere; then the user's."""
    fixed("slab", NAMES, slab, changes)
    values: dict[str, Any] = {}
    if settings == "faithful":
        values = {
            "unit": "weight" if slab == "flat" else "unit",
            "odds": "published",
            "tie": 0.0,
            "cap": 1.0,
            "warm_up": 500,
            "every": 500,
            "prune_last": False,
            "rate": 1e-2,
            "kl_every": 1,
        }
    return BmrConfig(**{**values, **changes, "slab": slab, "settings": settings})


@register("bmr", partial(_config, "flat"))
@register("bmr-rhs", partial(_config, "horseshoe"))
class ModelReduction(GaussianMethod):
    """A Gaussian posterior whose redundant units or weights are removed as training goes on.

    Attributes:
        steps: Training steps taken.
        last_round: The step of the last round.
    """

    settings_class = BmrConfig
    offers = ("unit", "feature", "weight")
    foretells = True
    config: BmrConfig
    steps: Tensor
    last_round: Tensor

    def make_posterior(self) -> None:
        """Standard deviations of rank one for units, one each for weights."""
        if self.faithful or self.config.unit == "weight":
            self.weights = self.masked_weights()
        else:
            self.weights = self.tied_weights()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last_round", torch.zeros((), dtype=torch.int64))
        self._judged: tuple[Any, _Judged] | None = None
        self._warned: set[str] = set()
        self._stuck: dict[str, float] = {}
        self.separates = not self.by_weight

    @property
    def by_weight(self) -> bool:
        """Whether single weights are judged."""
        return self.config.unit == "weight"

    # ------------------------------------------------- what a forward pass uses
    def after_step(self) -> None:
        """Count it."""
        self.steps += 1

    @torch.no_grad()
    def evaluation_means(self, rows: Sequence[Tensor | None]) -> Sequence[Draw | None]:
        """In evaluation what the evidence is against is silent already."""
        odds = {} if self.looking else self.log_odds()
        if not odds:
            return super().evaluation_means(rows)
        if self.by_weight:
            drawn = self.weights.means([None] * len(self.layers), rows)
            pending = self._judge().weights
            return [
                partial(draw().without, *(odds > 0 for odds in pending[layer.name]))
                for layer, draw in zip(self.layers, drawn, strict=True)
            ]
        if self.relaxed:
            units = [value.sigmoid() for value in odds.values()]
        else:
            kept = self.plan.surviving({n: v > 0 for n, v in odds.items()}, odds)
            units = [kept[name].float() for name in odds]
        device = self.layers[0].weight.device
        return self.weights.means(self.wiring.by_column(torch.cat(units).to(device)), rows)

    # ---------------------------------------------------------------- update
    @property
    def _warm_up(self) -> int:
        """The step of the first round."""
        given = self.config.warm_up
        return max(50, self.epoch_steps) if given is None else max(1, given)

    def _due(self) -> bool:
        """Whether enough steps have been taken for the next round."""
        config = self.config
        every = max(10, self.epoch_steps // 4) if config.every is None else config.every
        steps, last = int(self.steps), int(self.last_round)
        return steps >= self._warm_up and (last == 0 or steps - last >= every)

    def update(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
        """See :class:`bayespare.methods.Method`: one round, when it is due.

        At most ``cap`` of each group goes, the units with the lowest log-odds first.
        """
        if self.decided or not self._due():
            return {}
        self.last_round.copy_(self.steps)
        if self.by_weight:
            self._prune(self.config.cap)
            return self.remove(self._read(), optimizer)
        keep = {name: capped(odds, self.config.cap) for name, odds in self.log_odds().items()}
        return self.remove(keep, optimizer)

    def decide(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
        """Remove all that the evidence is against; masks of weights stay.

        Returns:
            Which units of the plan as it was stay, per group that lost some.
        """
        keep = {name: odds > 0 for name, odds in self.log_odds().items()}
        if self.by_weight and not self.decided:
            self._prune(1.0)
        stayed = self.remove(keep, optimizer)
        self.settle(optimizer)
        return stayed

    def remove(
        self, keep: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None
    ) -> dict[str, Tensor]:
        """See :class:`bayespare.methods.Method`; notes what is expected of it."""
        known = {} if self.decided or self.by_weight else self._foretell_units()
        stayed = super().remove(keep, optimizer)
        self._judged = None
        for name, line in stayed.items():
            if name in known:
                changes, rises = known[name]
                self._foretell(float(changes[~line].sum()), float(rises[~line].sum()))
        return stayed

    @torch.no_grad()
    def _foretell_units(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Change of log evidence, and rise of the loss, without each unit, nats, by group."""
        rises = self.block_sums({name: parts[0] for name, parts in self._rises().items()})
        return {name: (gain, rises[name]) for name, gain in self._judge().gains.items()}

    def _foretell(self, change: float, rise: float) -> None:
        self.foretold = (self.foretold or Foretold()) + Foretold(change, rise)

    @torch.no_grad()
    def _prune(self, cap: float) -> None:
        """Mask the weights and biases that the evidence is against, ``cap`` of a layer at most."""
        assert isinstance(self.weights, MaskedWeights)
        lines = {}
        judged, rises = self._judge(), self._rises()
        for place, layer in enumerate(self.layers):
            there = torch.cat([mask.flatten() for mask in self.weights.masks(place)])
            odds = torch.cat([part.flatten() for part in judged.weights[layer.name]])
            gain = torch.cat([part.flatten() for part in judged.changes[layer.name]])
            stays = there.clone()
            stays[there] = capped(odds[there], cap).to(stays.device)
            rise = torch.cat([part.flatten() for part in rises[layer.name]])
            gone = there & ~stays
            self._foretell(*(float(v[gone].sum(dtype=torch.float64)) for v in (gain, rise)))
            number = layer.weight.numel()
            lines[place] = (stays[:number], stays[number:])
        self.weights.prune(lines)
        self.cached.forget()
        self._judged = None

    def remaining(self, network: nn.Module, stay: Mapping[str, Tensor]) -> int:
        """See :class:`bayespare.methods.Method`: without what would be masked, too."""
        if not self.by_weight:
            return super().remaining(network, stay)
        return remaining_parameters(network, self.plan, stay, self._there())

    def _there(self) -> dict[str, Tensor]:
        """Which weights and biases are there, by name, and would be if it were decided now."""
        assert isinstance(self.weights, MaskedWeights)
        pending = {} if self.decided else self._judge().weights
        there = {}
        for place, layer in enumerate(self.layers):
            leaves = zip(("weight", "bias"), self.weights.masks(place), strict=True)
            for i, (leaf, mask) in enumerate(leaves):
                odds = pending.get(layer.name)
                left = mask if odds is None else mask & (odds[i] > 0)
                there[f"{layer.name}.{leaf}"] = layer.stored(left)
        return there

    def _read(self) -> dict[str, Tensor]:
        """Which units still have an outgoing weight."""
        assert isinstance(self.weights, MaskedWeights)
        masks = {x.name: self.weights.masks(place)[0] for place, x in enumerate(self.layers)}
        sums = self.block_sums({name: mask.double() for name, mask in masks.items()})
        unjudged = self.unjudged()
        return {name: (values > 0) | unjudged[name] for name, values in sums.items()}

    # -------------------------------------------------------------- log_odds
    def log_odds(self) -> dict[str, Tensor]:
        """See :class:`bayespare.methods.Method`.

        ``log prior odds - delta_f - tie * weights - price * parameters`` of the outgoing block;
        with ``unit=weight`` the same of the outgoing weight that has the best claim. Infinite
        where a layer that reads the group has not left its prior.
        """
        return {} if self.decided else dict(self._judge().units)

    @torch.no_grad()
    def _judge(self) -> _Judged:
        """All log-odds, computed once for the same posterior."""
        (network,) = self.network
        tensors = (*network.parameters(), *self.parameters())
        # A fused optimiser does not count its changes in the version of a tensor.
        key = (self.price, int(self.steps), *((id(t), t._version) for t in tensors))
        if self._judged is None or self._judged[0] != key:
            self._judged = (key, self._weigh_weights() if self.by_weight else self._weigh_units())
        return self._judged[1]

    def _weigh_units(self) -> _Judged:
        """Judge units by their outgoing weights."""
        changes = {name: parts[0] for name, parts in self._changes(0.0).items()}
        spike = self.block_sums(changes)
        sizes = self.block_sums({n: torch.ones_like(v) for n, v in changes.items()})
        costs, unjudged = self.costs(changes), self.unjudged()
        excess = spike
        if self.config.slab == "horseshoe":
            slab = self._horseshoe(spike)
            excess = {name: spike[name] - slab[name] for name in spike}
        units = {}
        for group in self.plan.groups:
            value = excess[group.name]
            odds = self._prior_odds(value, group.name) - value
            odds = odds - self.config.tie * sizes[group.name] - costs[group.name]
            stuck = unjudged[group.name]
            if any(slot.layer in self._stuck for slot in group.reads()):
                stuck = torch.ones_like(stuck)
            units[group.name] = odds.masked_fill(stuck, torch.inf).float()
        return _Judged(units, spike, {}, {})

    def _weigh_weights(self) -> _Judged:
        """Judge single weights; a unit belongs as long as one of its outgoing weights does."""
        assert isinstance(self.weights, MaskedWeights)
        weights = {}
        changes = self._changes(0.0)
        for place, (layer, last) in enumerate(zip(self.layers, self.last, strict=True)):
            masks = self.weights.masks(place)
            flat = torch.cat([part.flatten() for part in changes[layer.name]])
            there = torch.cat([mask.flatten() for mask in masks])
            worth = (self.worth or {}).get(layer.name, 1.0)
            odds = self._prior_odds(flat, layer.name, there) - flat
            odds = odds - self.config.tie - self.price * worth
            if layer.name in self._stuck or (last and not self.config.prune_last):
                odds = torch.full_like(odds, torch.inf)
            odds = odds.masked_fill(~there, -torch.inf)
            number = masks[0].numel()
            weights[layer.name] = (odds[:number].view_as(masks[0]), odds[number:])
        best = block_best(self.plan, {x.name: x.stored(weights[x.name][0]) for x in self.layers})
        unjudged = self.unjudged()
        units = {n: odds.masked_fill(unjudged[n], torch.inf) for n, odds in best.items()}
        return _Judged(units, {}, weights, changes)

    def _changes(self, share: float) -> dict[str, Parts]:
        """Change of log evidence of every weight and bias, nats, its prior narrowed to a share."""
        layers = beliefs(self.weights, self.prior_stds())
        self._stuck = {x.name: x.known for x in layers if x.known < COLLAPSED}
        for text in self._unlearnt():
            if text not in self._warned:
                self._warned.add(text)
                log.warning("%s", text)
        return {layer.name: layer.changes(share) for layer in layers}

    def _rises(self) -> dict[str, Parts]:
        """Rise of the training loss without each weight and bias, as the posterior has it, nats."""
        layers = beliefs(self.weights, self.prior_stds())
        return {layer.name: layer.rises(self.tempering) for layer in layers}

    def warnings(self) -> list[str]:
        """See :class:`bayespare.methods.Method`: rounds that never came, layers without data."""
        told = self._unlearnt()
        if self.steps > 0 and not self.last_round > 0:
            told.append(
                f"{int(self.steps)} steps were too few for a round of removal (the first is due at "
                f"step {self._warm_up}): all that goes goes at once at the end; more epochs, a "
                "smaller batch or a lower warm_up would make rounds"
            )
        return told

    def _unlearnt(self) -> list[str]:
        """A warning for every layer that never left its prior."""
        if not self.steps > 0:
            return []
        return [
            f"{name}: its weights are known no better than before the data (mean of 1 - variance / "
            f"prior variance is {known:.2g}), so nothing it reads is removed; more epochs, a lower "
            "tempering or a lower start_std may help"
            for name, known in self._stuck.items()
        ]

    @torch.no_grad()
    def diagnostics(self) -> dict[str, Any]:
        """See :class:`bayespare.methods.Method`: how far the two blocks of units disagree.

        Under an exact posterior the weights that compute a unit and those that read it tell the
        same evidence, so the difference is what the factorised one is off by (card 2.8).
        """
        if self.decided or self.by_weight:
            return {}
        changes = {name: parts[0] for name, parts in self._changes(0.0).items()}
        incoming, outgoing = (self.block_sums(changes, role) for role in ("write", "read"))
        found = {}
        for group in self.plan.groups:
            if group.size and {"write", "read"} <= {slot.role for slot in group.slots}:
                blocks = block_disagreement(incoming[group.name], outgoing[group.name])
                found[group.name] = {"mean_nats": blocks.mean, "opposite": blocks.opposite}
        return {"block_disagreement": found} if found else {}

    def _prior_odds(self, values: Tensor, name: str, there: Tensor | None = None) -> float:
        config = self.config
        return prior_log_odds(
            values,
            config.odds,
            fixed=config.fixed_odds,
            candidates=there,
            bound=math.inf if config.odds_bound is None else config.odds_bound,
            name=name,
        )

    def _horseshoe(self, spike: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Change of log evidence of each unit under a horseshoe over the scale of its block."""

        def gain(share: float) -> dict[str, Tensor]:
            changes = {name: parts[0] for name, parts in self._changes(share).items()}
            return self.block_sums(changes)

        grid = [gain(share) for share in shrinkages()]
        gains = {name: torch.stack([point[name] for point in grid]) for name in spike}
        return {name: horseshoe_gain(value, best_tau(value)) for name, value in gains.items()}


@dataclass(frozen=True, eq=False)
class _Judged:
    """What one look at the posterior says.

    Attributes:
        units: Log-odds of every unit, by group, nats.
        gains: Change of log evidence when a unit goes, by group, nats.
        weights: Log-odds of weights and of biases, by layer (``unit=weight``).
        changes: Their changes of log evidence, by layer (``unit=weight``).
    """

    units: dict[str, Tensor]
    gains: dict[str, Tensor]
    weights: dict[str, Parts]
    changes: dict[str, Parts]
