"""A method inside a training loop that is not ours: what the callbacks of other libraries share.

The loop trains the network as it always has. Before each of its steps the gradient of the KL is
added; after it the posterior takes a step of its own, and units that have settled are cut out of
the network with their share of the loop's optimiser.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from bayespare import methods
from bayespare.errors import BayespareError
from bayespare.structure import trace
from bayespare.structure.positions import with_positions
from bayespare.training import ranks
from bayespare.training.finish import Finished, finish
from bayespare.training.method import Config
from bayespare.training.schedule import Schedule

CHECKS = 100
"""Times that a run looks for units to cut."""

POLISH = "belongs to a polish on all training data, which a loop of another library does not have"
UNDONE = {
    "algorithm": "finds its log-odds when training is over, not in a loop of another library",
    "draws": POLISH,
    "sweeps": POLISH,
    "judged": POLISH,
}
"""Settings of which nothing but the default, or no polish, is a matter of a loop's steps alone."""


class OwnLoop:
    """Makes a network smaller while somebody else trains it.

    While it explores, the tempering of the KL rises to its end; then everything with negative
    log-odds goes, and what is left is trained on without gates.

    Args:
        network: Shrinks in place; its parameters are replaced when it is cut.
        example: A batch it accepts: a tensor, or a tuple of its arguments.
        examples: Number of training examples: scales the KL.
        steps: That the loop is going to take.
        batch: Examples of a step.
        method: Name of a method that decides.
        explore: Share of the steps after which it is decided.
        tempering: Weight of the KL when it is decided; 1 is the untempered bound.
        seed: Of the noise.
        **settings: Of the method. The log-odds of ``node-pip`` stay as they were trained: nothing
            is polished (``draws=0``).

    Raises:
        BayespareError: If the method or one of its settings cannot be used so, or there are
            several processes.
        UnsupportedStructureError: If nothing can be removed from the network.
    """

    def __init__(
        self,
        network: nn.Module,
        example: Tensor | tuple[Tensor, ...],
        *,
        examples: int,
        steps: int,
        batch: int,
        method: str = "ss-ig",
        explore: float = 0.7,
        tempering: float = 1.0,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        if ranks.world() > 1:
            raise BayespareError(
                "a network cannot be cut inside another library's loop over several processes; "
                "train in one, or give the network to bayespare.sparsify under torchrun"
            )
        kind = methods.find(method)
        if kind.at_mode or not kind.removes:
            why = "has to see the training data" if kind.at_mode else "removes nothing"
            raise BayespareError(f"method={method}: {why}, so it cannot be used in a callback")
        if not 0 < explore <= 1:
            raise BayespareError(f"explore={explore}: must be above 0 and at most 1")
        if "draws" in kind.settings_class.model_fields:
            settings = {"draws": 0, **settings}
        self.method = methods.build(method, **settings)
        _check(method, self.method.config)
        device = next(network.parameters()).device
        self.network = network
        self.example = _on(torch.device("cpu"), example)
        self.template = copy.deepcopy(network)
        plan = with_positions(trace(network, _on(device, example)))
        generator = torch.Generator(device).manual_seed(seed)
        self.method.attach(network, plan, examples=examples, generator=generator)
        self.method.to(device)
        self.examples, self.batch, self.steps, self.taken = examples, batch, steps, 0
        self.explore = max(1, round(explore * steps))
        self.schedule = Schedule(end=tempering)
        self.hold = self.method.schedule(1, 1, examples, tempering).hold
        self.method.held = self.hold > 0
        self.optimizer = self._own_optimizer()

    def _own_optimizer(self) -> torch.optim.Optimizer:
        """Over the posterior; the network is the loop's."""
        own = {id(p) for p in self.method.parameters()}
        groups = [
            {**group, "params": [p for p in group["params"] if id(p) in own]}
            for group in self.method.parameter_groups(self.network, self.batch)
        ]
        return torch.optim.Adam([g for g in groups if g["params"]] or [{"params": []}])

    def before_step(self) -> None:
        """Add the gradient of the penalty to those of the loss."""
        progress = self.taken / self.explore
        self.method.progress = min(1.0, progress)
        if not self.method.decided:
            self.method.tempering = self.schedule.rising(progress)
        self.method.penalty().backward()  # type: ignore[no-untyped-call]

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the posterior take its step; cut what has settled, or decide when it is time.

        Args:
            optimizer: Of the loop, over the network; its step is done.
        """
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.taken += 1
        if self.method.decided:
            return
        if self.method.held and self.taken >= self.hold * self.explore:
            self.method.held = False
            self.method.begin_epoch()  # the gradient that is cached is that of held gates
        if self.taken >= self.explore:
            self._decide(optimizer)
            self.optimizer = self._own_optimizer()
        elif self.taken % max(10, self.explore // CHECKS) == 0:
            self.method.update(_Both(optimizer, self.optimizer))

    def _decide(self, optimizer: torch.optim.Optimizer) -> None:
        self.method.held = False
        self.method.decide(_Both(optimizer, self.optimizer))
        each = self.examples / max(1, sum(p.numel() for p in self.network.parameters()))
        self.method.tempering = self.schedule.cooled(alone=False, examples_each=each)

    def finish(self, optimizer: torch.optim.Optimizer) -> Finished:
        """The compact network of stock layers, decided now if it was not.

        Raises:
            UnsupportedStructureError: If it differs from the masked network.
        """
        if not self.method.decided:
            self._decide(optimizer)
        return finish(self.template, self.method, self.example)


def _check(method: str, config: Config) -> None:
    """Refuse settings that nothing here would carry out.

    Raises:
        BayespareError: If there is one; the message names it.
    """
    fields = type(config).model_fields
    found = {key: getattr(config, key) for key in UNDONE if key in fields}
    plain = {key: fields[key].default for key in found} | {"draws": 0}
    problems = [
        f"{key}={value!r} {UNDONE[key]}; use {key}={plain[key]!r}"
        for key, value in found.items()
        if value != plain[key]
    ]
    if getattr(config, "prior", None) == "beta":
        problems.append(
            "prior='beta' is learnt between epochs, of which a loop of another library does not "
            "tell; give a probability"
        )
    if problems:
        raise BayespareError(f"{method}: {problems[0]}, or bayespare.sparsify")


def _on(device: torch.device, example: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    if isinstance(example, Tensor):
        return example.to(device)
    return tuple(part.to(device) for part in example)


class _Both(torch.optim.Optimizer):
    """Two optimisers as one, as far as a cut asks: their groups and the state of a parameter."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        # Not Optimizer's own: it would take the parameters over.
        self.param_groups = [group for part in parts for group in part.param_groups]
        self.state = _States(parts)


class _States(defaultdict[Tensor, Any]):
    """The state of a parameter, in the optimiser that has it."""

    def __init__(self, parts: tuple[torch.optim.Optimizer, ...]) -> None:
        super().__init__(dict)
        self.parts = parts

    def pop(self, parameter: Tensor, default: Any = None) -> Any:
        """Take the state of a parameter out."""
        for part in self.parts:
            if parameter in part.state:
                return part.state.pop(parameter)
        return default

    def __setitem__(self, parameter: Tensor, value: Any) -> None:
        for part in self.parts:
            if any(parameter is p for group in part.param_groups for p in group["params"]):
                part.state[parameter] = value
