"""Node posterior inclusion probabilities: how probable it is that a unit or feature belongs.

A spike-and-slab posterior at its full weight, whose log-odds are brought to the optimum of the
evidence bound in closed form before anything is decided. Three ways lead there: gates trained with
the weights; dense training under the slab alone, with the odds recovered afterwards; and dense
training under a mixture of slab and Gaussian spike, whose indicators are integrated out. In the
spirit of Saha, Liu and Liang, arXiv 2411.00273, whose body could not be read: card sections 1 to 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bayespare.bayes.inclusion import (
    gaussian_kl,
    mixture_penalty,
    polish,
    prior_log_odds,
    rate_posterior,
    reduced_log_odds,
)
from bayespare.bayes.likelihood import Likelihood
from bayespare.bayes.weights import TiedWeights
from bayespare.data import Dataset
from bayespare.errors import BayespareError
from bayespare.methods.registry import register
from bayespare.methods.spike_slab import SpikeSlab, SpikeSlabConfig
from bayespare.training.method import Config
from bayespare.training.schedule import Schedule

# Steps that make an epoch at least: less and what is done once an epoch takes most of the time.
STEPS = 40

WIDEST = 0.95
"""Width of the Gaussian spike at the start, as a share of the slab's."""

NARROWING = 0.7
"""Share of the exploration over which it narrows."""

RATE_UPDATES = 5
"""Times a learnt inclusion rate and the log-odds that depend on it follow each other."""


class NodePipConfig(SpikeSlabConfig):
    """Settings of ``node-pip``; the others are those of the spike-and-slab methods.

    Attributes:
        prior: As there, or ``beta``: learnt for each group of nodes, under a Beta prior that
            expects one node of the group.
        algorithm: ``gates``: open at first, then trained with the weights; ``dense``: open to the
            end, the log-odds those of exchanging each node's slab for zero (F2); ``spike``: open
            too, under the mixture of the slab and a Gaussian spike, the log-odds those at its
            optimum (F1), which are not polished.
        spike: Width of the Gaussian spike as a share of the slab's.
        annealing: Power of a node's odds while the spike narrows, at the start; it rises to 1.
        draws: Draws of weights and gates that a node is judged on in the polish; 0: no polish.
        sweeps: Times each node is judged.
        judged: Nodes that are judged at most, the least certain ones; the others keep the log-odds
            they were trained to.
    """

    slab: Literal["gaussian"] = "gaussian"
    settings: Literal["default"] = "default"
    prior: Annotated[float, Field(gt=0, lt=1)] | Literal["1/k", "theory", "beta"] = 0.2  # type: ignore[assignment]
    prior_std: Annotated[float, Field(gt=0)] | Literal["empirical", "fan-in"] = "fan-in"
    start_std: float = Field(0.1, gt=0)
    settled: float = Field(0.0, ge=0, lt=0.5)
    algorithm: Literal["gates", "dense", "spike"] = "gates"
    spike: float = Field(0.14, gt=0, lt=1)
    annealing: float = Field(1.0, gt=0, le=1)
    draws: int = Field(8, ge=0)
    sweeps: int = Field(2, ge=1)
    judged: int = Field(256, ge=1)


@register("node-pip", NodePipConfig)
class NodePip(SpikeSlab):
    """Gates at tempering one, polished; or none while it trains, recovered afterwards."""

    settings_class: ClassVar[type[Config]] = NodePipConfig
    most_batch = 1024
    separates = False
    config: NodePipConfig

    def __init__(self, config: NodePipConfig) -> None:
        super().__init__(config)
        if config.algorithm != "gates" and config.prior_std == "empirical":
            raise BayespareError(
                f"node-pip: algorithm={config.algorithm} needs the slab's width, which "
                "prior_std=empirical does not give; use fan-in or a number"
            )

    # -------------------------------------------------------------- schedule
    def schedule(
        self, epochs: int, steps: int, examples: int, tempering: float | Literal["auto"]
    ) -> Schedule:
        """See :class:`Method`.

        No dense start: an overfitted network makes noise look useful on the data it has seen, and
        learns too small a noise. The gates are open while the KL rises to its full weight.
        """
        passes = max(1, round(STEPS / steps))
        dense = self.config.algorithm != "gates"
        return Schedule(
            warm=0,
            explore=max(2, round(0.75 * epochs / passes)),
            cool=max(1, round(0.25 * epochs / passes)),
            candidates=1,
            tempering=1.0 if tempering == "auto" else tempering,
            cooling=0.05 if tempering == "auto" else tempering,
            cool_batch=1,
            teacher=0.0,
            share=False,
            hold=math.inf if dense else 0.35,
            ramp=0.35,
            fall=0.05,
            passes=passes,
        )

    def parameter_groups(self, network: nn.Module, batch: int) -> list[dict[str, Any]]:
        """See :class:`Method`.

        Gates are slower, means faster than in the search for a size: a gate that closes before the
        network has learnt what its feature is good for does not open again (Friedman's square).
        """
        means, spreads, gates = super().parameter_groups(network, batch)
        means["lr"] = means["base_lr"] = 1e-2
        gates["lr"] = gates["base_lr"] = gates["lr"] / 2
        return [means, spreads, gates]

    # --------------------------------------------------------- learnt inclusion
    def _prior(self, examples: int) -> Tensor:
        if self.config.prior != "beta":
            return super()._prior(examples)
        return torch.full((sum(group.size for group in self.gated()),), 0.2)

    def observe(self, likelihood: Likelihood, data: Dataset, held: Dataset | None = None) -> None:
        """See :class:`Method`: updates the inclusion rates, once the gates say anything."""
        if self.config.prior == "beta" and not self.held and not self.decided:
            self._update_rates()

    @torch.no_grad()
    def _update_rates(self) -> None:
        """The Beta posterior of each group's rate, as the log-odds that stand for it."""
        sizes = [group.size for group in self.gated()]
        for odds, prior in zip(
            torch.split(self.gates, sizes), torch.split(self.prior_inclusion, sizes), strict=True
        ):
            prior.fill_(rate_posterior(odds.sigmoid()).log_odds.sigmoid())
        self.cached.forget()

    # ------------------------------------------------------------ Gaussian spike
    def kl(self) -> Tensor:
        """KL of the posterior from the prior, nats; of ``spike`` its bound at the best odds."""
        if self.config.algorithm != "spike" or self.decided:
            return super().kl()
        slab, spike, rest = self._mixture()
        prior = prior_log_odds(self.prior_inclusion)
        done = min(1.0, self.progress / NARROWING)
        power = self.config.annealing ** (1 - done)
        total = mixture_penalty(slab, spike, prior, power).sum() + rest + 0 * self.gates.sum()
        if self.price:
            total = total + self._priced((prior + spike - slab).sigmoid())
        return total

    def _mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """KL of each node's outgoing weights from slab and spike; of free weights from the slab.

        The spike narrows from nearly the slab's width, geometrically: where both are alike no node
        is in the wrong basin (card section 3, variant 1b).
        """
        done = min(1.0, self.progress / NARROWING)
        share = WIDEST * (self.config.spike / WIDEST) ** done
        slab, rest = self._owned(gaussian_kl)
        spike, _ = self._owned(lambda mean, std, width: gaussian_kl(mean, std, share * width))
        return slab, spike, rest

    def _owned(self, value: Callable[[Tensor, Tensor, float], Tensor]) -> tuple[Tensor, Tensor]:
        """Sums over each node's outgoing weights, and over weights of no node, nats.

        Args:
            value: Of each weight, from means, standard deviations and the slab's width.
        """
        assert isinstance(self.weights, TiedWeights)
        widths = self.weights.per_layer(self.slab_std)
        columns = []
        for layer, log_std, width in zip(self.layers, self.weights.log_stds(), widths, strict=True):
            assert width is not None
            columns.append(value(layer.weight.flatten(1), log_std.exp(), width).sum(0))
        return self.wiring.sums(columns)

    # ---------------------------------------------------------------- polish
    def polish(self, log_likelihood: Callable[[], Tensor]) -> None:
        """See :class:`Method`: log-odds that were not trained, then each at its best in turn."""
        if not self.gates.numel():
            return
        self.held = False
        if self.config.algorithm != "gates":
            self._recover()
        if self.config.draws and self.config.algorithm != "spike":
            self._polish(log_likelihood)
        self.cached.forget()

    @torch.no_grad()
    def _recover(self) -> None:
        """Bring the gates to the log-odds of a fit that was made without them (F1 or F2)."""
        if self.config.algorithm == "spike":
            slab, spike, _ = self._mixture()
            evidence = spike - slab
        else:
            evidence, _ = self._owned(_exchange)
        evidence = evidence - self._prices(self.gates.detach())
        learnt = self.config.prior == "beta"
        for _ in range(RATE_UPDATES if learnt else 1):
            self.gates.copy_(prior_log_odds(self.prior_inclusion) + evidence)
            if learnt:
                self._update_rates()

    def _polish(self, log_likelihood: Callable[[], Tensor]) -> None:
        """Move each gate in turn to where the bound has its maximum (F5)."""
        config = self.config
        gates = self.gates.detach()
        judged = gates.abs().argsort()[: config.judged].sort().values
        seeds = torch.Generator().manual_seed(self._seed())
        own, noise = self.generator, torch.Generator(gates.device)
        self.generator = noise
        draws: list[tuple[int, Tensor]] = []

        def redraw() -> None:
            """Seeds of the weights' noise, and gates of what is not judged, for each draw."""
            draws.clear()
            for _ in range(config.draws):
                seed = int(torch.randint(2**31, (), generator=seeds))
                uniform = torch.rand(len(gates), generator=seeds).to(gates.device)
                draws.append((seed, (uniform < gates.sigmoid()).to(gates.dtype)))

        def likelihoods(chosen: Tensor) -> Tensor:
            values = []
            for (seed, others), line in zip(draws, chosen, strict=True):
                noise.manual_seed(seed)
                self.given = others.index_copy(0, judged, line)
                values.append(log_likelihood())
            return torch.stack(values)

        try:
            found = polish(
                likelihoods,
                gates[judged],
                lambda odds: self._node_costs(gates.index_copy(0, judged, odds))[judged],
                prior_log_odds(self.prior_inclusion[judged]),
                draws=config.draws,
                sweeps=config.sweeps,
                redraw=redraw,
                generator=torch.Generator(gates.device).manual_seed(self._seed()),
            )
        finally:
            self.given, self.generator = None, own
        with torch.no_grad():
            self.gates[judged] = found.to(self.gates.dtype)

    def warnings(self) -> list[str]:
        """See :class:`Method`: groups of which the data ask for nothing."""
        closed = [name for name, odds in self.log_odds().items() if not bool((odds > 0).any())]
        if not closed:
            return []
        return [
            f"{', '.join(closed)}: no unit is more probable than not, so one is left; if inputs do "
            "matter, a network with one hidden layer, more data or a higher prior= may help"
        ]

    def _node_costs(self, gates: Tensor | None = None) -> Tensor:
        """KL from the slab of what hangs on each node, and its price, nats.

        That is the weights that leave it and, of a hidden unit, those that enter it: a weight is
        paid for only if both its ends exist.

        Args:
            gates: Log-odds of all nodes; default: as they are.
        """
        gates = self.gates.detach() if gates is None else gates
        return _shares(self.slabs, gates.sigmoid()) + self._prices(gates)

    def _prices(self, gates: Tensor) -> Tensor:
        """Price of what hangs on each node, nats; all others are there while none has a gate."""
        joint = self.config.algorithm == "gates"
        return _shares(self._priced, gates.sigmoid() if joint else torch.ones_like(gates))

    def _seed(self) -> int:
        """From the run's own stream of noise."""
        device = self.gates.device
        return int(torch.randint(2**31, (), generator=self.generator, device=device))


def _shares(total: Callable[[Tensor], Tensor], included: Tensor) -> Tensor:
    """What each node adds to a total, by its slope: it is linear in each one's inclusion."""
    included = included.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(total(included), included)
    return slope


def _exchange(mean: Tensor, std: Tensor, width: float) -> Tensor:
    """What each weight adds to its node's log-odds if the slab is exchanged for zero (F2)."""
    return reduced_log_odds(mean[..., None], std[..., None], mean.new_zeros(()), width)
