"""Node posterior inclusion probabilities: how probable it is that a unit or feature belongs.

A spike-and-slab posterior at its full weight, with gates where units are read, whose log-odds are
brought to the optimum of the evidence bound in closed form before anything is decided. In the
spirit of Saha, Liu and Liang, arXiv 2411.00273, whose body could not be read: card sections 1 to 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bayespare.bayes.inclusion import polish, prior_log_odds
from bayespare.methods.base import Config, register
from bayespare.methods.spike_slab import SpikeSlab, SpikeSlabConfig
from bayespare.training.schedule import Schedule

# Steps that make an epoch at least: less and what is done once an epoch takes most of the time.
STEPS = 40


class NodePipConfig(SpikeSlabConfig):
    """Settings of ``node-pip``; the others are those of the spike-and-slab methods.

    Attributes:
        algorithm: ``gates``: open at first, then trained with the weights; ``dense``: open to the
            end, so that the polish alone says which nodes belong.
        draws: Draws of weights and gates that a node is judged on in the polish; 0: no polish.
        sweeps: Times each node is judged.
        judged: Nodes that are judged at most, the least certain ones; the others keep the log-odds
            they were trained to.
    """

    slab: Literal["gaussian"] = "gaussian"
    settings: Literal["default"] = "default"
    prior: Annotated[float, Field(gt=0, lt=1)] | Literal["1/k", "theory"] = 0.2
    prior_std: Annotated[float, Field(gt=0)] | Literal["empirical", "fan-in"] = "fan-in"
    start_std: float = Field(0.1, gt=0)
    settled: float = Field(0.0, ge=0, lt=0.5)
    algorithm: Literal["gates", "dense"] = "gates"
    draws: int = Field(8, ge=0)
    sweeps: int = Field(2, ge=1)
    judged: int = Field(256, ge=1)


@register("node-pip", NodePipConfig)
class NodePip(SpikeSlab):
    """Gates at tempering one, polished."""

    settings_class: ClassVar[type[Config]] = NodePipConfig
    most_batch = 1024
    config: NodePipConfig

    # -------------------------------------------------------------- schedule
    def schedule(
        self, epochs: int, steps: int, examples: int, tempering: float | Literal["auto"]
    ) -> Schedule:
        """See :class:`Method`.

        No dense start: an overfitted network makes noise look useful on the data it has seen, and
        learns too small a noise. The gates are open while the KL rises to its full weight.
        """
        passes = max(1, round(STEPS / steps))
        dense = self.config.algorithm == "dense"
        return Schedule(
            warm=0,
            explore=max(2, round(0.75 * epochs / passes)),
            cool=max(1, round(0.1 * epochs / passes)),
            candidates=1,
            tempering=1.0 if tempering == "auto" else tempering,
            cooling=1.0,
            cool_batch=1,
            teacher=0.0,
            share=False,
            hold=2.0 if dense else 0.35,
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

    # ---------------------------------------------------------------- polish
    def polish(self, log_likelihood: Callable[[], Tensor]) -> None:
        """See :class:`Method`: each gate in turn to where the bound has its maximum (F5)."""
        config = self.config
        if not config.draws or not self.gates.numel():
            return
        self.held = False
        gates = self.gates.detach()
        judged = gates.abs().argsort()[: config.judged].sort().values
        costs = self._node_costs()
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
                costs[judged],
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
        self.cached.forget()

    def _node_costs(self) -> Tensor:
        """KL from the slab of what hangs on each node, nats, the others as they are.

        That is the weights that leave it and, of a hidden unit, those that enter it: a weight is
        paid for only if both its ends exist.
        """
        included = self.gates.detach().sigmoid().requires_grad_()
        (costs,) = torch.autograd.grad(self.slabs(included), included)
        return costs

    def _seed(self) -> int:
        """From the run's own stream of noise."""
        device = self.gates.device
        return int(torch.randint(2**31, (), generator=self.generator, device=device))
