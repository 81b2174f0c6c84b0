"""What the methods with a posterior over a network's weights share: how it gets in, acts and goes.

A subclass says which posterior it is, what the layers compute with, and what is believed of units.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from bayespare.bayes.layers import Layer
from bayespare.bayes.weights import Cut, Draw, TiedWeights, Weights
from bayespare.errors import UnsupportedStructureError
from bayespare.methods.cached import CachedKL
from bayespare.methods.wiring import (
    Wiring,
    judged,
    kept_lines,
    posterior_layers,
    posterior_names,
)
from bayespare.structure.plan import Group, Plan
from bayespare.structure.sizes import follow
from bayespare.training import ranks
from bayespare.training.method import Config, Method
from bayespare.training.shards import refuse_cuts
from bayespare.training.shrink import apply_cuts, narrow_inputs, plan_cuts


class PosteriorConfig(Config):
    """Settings of all methods with a posterior over weights.

    Attributes:
        settings: ``default`` (ours) or ``faithful`` (the authors' parametrisation and start).
        kl_every: Steps for which a gradient of the KL is used.
    """

    settings: Literal["default", "faithful"] = "default"
    kl_every: int = Field(4, ge=1)


class PosteriorMethod(Method):
    """A posterior over the weights of a network's layers.

    Attributes:
        layers: Those that have a posterior; the others keep plain parameters.
        weights: What is known of their weights besides the means.
        wiring: Which units every weight hangs on.
        running: Whether the network is being computed.
    """

    config: PosteriorConfig
    layers: list[Layer]
    weights: Weights
    wiring: Wiring
    running: bool

    def __init__(self, config: PosteriorConfig) -> None:
        super().__init__()
        self.config = config
        self.cached = CachedKL(config.kl_every)
        self.decided = False

    @property
    def faithful(self) -> bool:
        """Whether the parametrisation is the authors'."""
        return self.config.settings == "faithful"

    # ---------------------------------------------------------------- attach
    def attach(
        self,
        network: nn.Module,
        plan: Plan,
        *,
        examples: int,
        generator: torch.Generator | None = None,
    ) -> None:
        """See :class:`Method`.

        Units that a layer without a posterior reads are not judged, and stay.

        Raises:
            UnsupportedStructureError: If no layer that reads or writes units can have a posterior.
        """
        self.network = (network,)  # not a submodule: its parameters are the optimiser's anyway
        self.start(judged(network, plan))
        self.examples, self.generator = examples, generator
        self.layers = posterior_layers(network, self.plan, every=self.by_weight)
        self.wiring = Wiring(self.layers, self.gated())
        self.begin()
        self.blocks: tuple[_Block, ...] = ()
        self.running = False
        for layer in self.layers:
            layer.module.register_forward_pre_hook(self._refuse_recomputing)
        network.register_forward_pre_hook(self._before_forward)
        network.register_forward_hook(self._after_forward, always_call=True)

    def judged_weights(self, network: nn.Module, plan: Plan) -> frozenset[str]:
        """See :class:`Method`: those of all layers that have a posterior."""
        if not self.by_weight:
            return frozenset()
        return frozenset(
            f"{name}.{leaf}"
            for name in posterior_names(network, plan, every=True)
            for leaf, value in network.get_submodule(name).named_parameters(recurse=False)
            if value.requires_grad
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the wiring with the parameters; before it is attached there is none."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if "wiring" in self.__dict__:
            self.wiring.moved(fn)
        return self

    @abstractmethod
    def begin(self) -> None:
        """Make everything that is fitted; the layers are known."""

    def gated(self) -> Sequence[Group]:
        """The groups whose units the wiring knows."""
        return self.plan.groups

    # ------------------------------------------------- what a forward pass uses
    @abstractmethod
    def drawn(self, *, training: bool) -> Sequence[Draw | None]:
        """What the layers compute with in the next pass; None: with their means."""

    def after_step(self) -> None:
        """Called after every forward pass in training."""

    def draw_within(self, blocks: Sequence[nn.Module]) -> None:
        """See :class:`Method`: they are drawn then."""
        if not isinstance(self.weights, TiedWeights):
            raise UnsupportedStructureError(
                "a posterior with a number for every weight cannot be spread over the ranks; "
                "those of ss-ig, ss-gl, ss-ghs, node-pip and bmr with settings=default and "
                "unit=unit have one per unit"
            )
        self.blocks = tuple(_Block(block, self.layers) for block in blocks)

    @property
    def noisy(self) -> bool:
        """Whether two passes in training differ."""
        return not self.at_mode

    def _refuse_recomputing(self, module: nn.Module, inputs: Any) -> None:
        """Refuse a pass of a part within the backward pass: the draw it had is gone.

        Gradients would be those of other weights, and nobody would see it. Who calls a part of
        the network by itself does so outside of the backward pass.
        """
        if self.running or not (self.noisy and module.training and torch.is_grad_enabled()):
            return
        if torch._C._current_graph_task_id() == -1:  # what activation checkpointing asks, too
            return
        name = next((x.name for x in self.layers if x.module is module), "the network")
        raise UnsupportedStructureError(
            f"{name}: computed again in the backward pass, as activation (gradient) checkpointing "
            "does, when the weights drawn for it are gone; train without checkpointing"
        )

    def _before_forward(self, network: nn.Module, inputs: Any) -> None:
        self._refuse_recomputing(network, inputs)
        self.running = True
        draws = self.drawn(training=network.training)
        for block in self.blocks:
            block.take(draws)
        elsewhere = {place for block in self.blocks for place in block.layers}
        for place, (layer, draw) in enumerate(zip(self.layers, draws, strict=True)):
            if place not in elsewhere:
                layer.compute_with(None if draw is None else draw())

    def _after_forward(self, network: nn.Module, inputs: Any, output: Any) -> None:
        self.running = False
        for layer in self.layers:
            layer.compute_with(None)
        if network.training and torch.is_grad_enabled():
            self.after_step()

    # --------------------------------------------------------------- penalty
    def begin_epoch(self) -> None:
        """See :class:`Method`: the gradient of the KL is computed anew."""
        self.cached.forget()

    def penalty(self) -> Tensor:
        """See :class:`Method`: tempering * KL / N.

        The KL does not depend on the data and changes slowly, so its gradient is recomputed every
        ``kl_every`` steps and reused in between: in small networks it is half the cost of a step.
        """
        parameters = [p for layer in self.layers for p in layer.module.parameters()]
        value = self.cached(self.kl, [*parameters, *self.parameters()])
        return value * (self.tempering / self.examples)

    @abstractmethod
    def kl(self) -> Tensor:
        """KL of the posterior from the prior, nats."""

    # ---------------------------------------------------------------- update
    def decide(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
        """See :class:`Method`."""
        keep = self.remove({n: odds > 0 for n, odds in self.log_odds().items()}, optimizer)
        self.settle(optimizer)
        return keep

    def settle(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """See :class:`Method`."""
        self.decided = True

    def remove(
        self, keep: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None
    ) -> dict[str, Tensor]:
        """See :class:`Method`: cuts the network, the posterior and the optimiser's moments."""
        kept = ranks.agreed(self.plan.surviving(keep, self.log_odds()))
        keep = {name: line for name, line in kept.items() if not line.all()}
        if not keep:
            return keep
        (network,) = self.network
        refuse_cuts(network)
        columns, rows = kept_lines(self.layers, self.plan, kept)
        self.cached.forget()
        follow(network, self.plan, kept, live=True)
        cuts = plan_cuts(network, self.plan, keep)
        cuts += self.weights.cuts(columns, rows)
        cuts += self.cuts(keep, rows)
        apply_cuts(cuts, optimizer)
        self.narrow(keep)
        narrow_inputs(network, self.whole, self.keep)
        return keep

    def cuts(self, keep: Mapping[str, Tensor], rows: Sequence[Tensor]) -> list[Cut]:
        """What to cut from tensors of the method's own, besides the weights' posterior.

        Args:
            keep: Which units of the plan as it is stay, per group that loses some.
            rows: Which rows of every layer's weight stay.
        """
        return []

    def narrow(self, stayed: Mapping[str, Tensor]) -> None:
        """See :class:`Method`."""
        super().narrow(stayed)
        self.wiring = Wiring(self.layers, self.gated())

    @torch.no_grad()
    def take(self, means: Mapping[str, Tensor]) -> None:
        """See :class:`Method`; scales stay as they are."""
        (network,) = self.network
        device = next(network.parameters()).device
        values = self.unscaled({name: value.to(device) for name, value in means.items()})
        for name, parameter in network.named_parameters():
            parameter.copy_(values[name])

    def unscaled(self, means: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The network's own parameters that have these posterior means."""
        return means

    def standard_deviations(self) -> dict[str, Tensor]:
        """See :class:`Method`."""
        return self.weights.standard_deviations()


class _Block:
    """A part of a network whose weights are there while it runs only.

    Attributes:
        layers: Those inside, by their place among all.
        draws: What they draw in the next pass, by the same.
    """

    def __init__(self, block: nn.Module, layers: Sequence[Layer]) -> None:
        inside = set(block.modules())
        self.layers = {n: layer for n, layer in enumerate(layers) if layer.module in inside}
        self.draws: dict[int, Draw | None] = {}
        block.register_forward_pre_hook(self._before)
        block.register_forward_hook(self._after, always_call=True)

    def take(self, draws: Sequence[Draw | None]) -> None:
        """Take what the layers of the block draw in the next pass."""
        self.draws = {place: draws[place] for place in self.layers}

    def _before(self, block: nn.Module, inputs: Any) -> None:
        for place, layer in self.layers.items():
            draw = self.draws.get(place)
            layer.compute_with(None if draw is None else draw())

    def _after(self, block: nn.Module, inputs: Any, output: Any) -> None:
        for layer in self.layers.values():
            layer.compute_with(None)
