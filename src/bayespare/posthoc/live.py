"""What a round works on: single weights behind masks, or a network cut to the units it has left.

Cut, a step costs what is left of the network. Between rounds shapes are whole, so that every size
speaks of the same units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from bayespare.posthoc.removal import Removal, masks_of, remove_units, remove_weights
from bayespare.structure import Plan, Verdict, compact
from bayespare.structure.slicing import cut_late
from bayespare.structure.survivors import expand
from bayespare.training.loop import placed

Train = Callable[[nn.Module, dict[str, Tensor]], None]
"""Trains a network in place, masks by parameter name in force."""


@dataclass(frozen=True, eq=False)
class Left:
    """What a round leaves, in whole shapes.

    Attributes:
        model: What was removed is zero.
        masks: Which entries are there, by parameter name.
        keep: Which units are there, by group; empty for weights.
        log_odds: Of every unit that was there before the round, by group; zero for the others.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    keep: dict[str, Tensor]
    log_odds: dict[str, Tensor]


class Live(ABC):
    """The network as a round finds it.

    Attributes:
        model: What is measured and refitted.
        there: Which weights or units of it there are, by parameter or group.
    """

    model: nn.Module
    there: Mapping[str, Tensor]

    @abstractmethod
    def decide(self, *measured: Any, trust: float, forced: bool) -> Removal | None:
        """As :func:`remove_units` or :func:`remove_weights`, from ``batches`` on."""

    @abstractmethod
    def trained(self, reduced: nn.Module, removal: Removal, train: Train) -> Left:
        """Train what a removal leaves.

        Args:
            reduced: Of the shapes of :attr:`model`; what was removed is zero. May be changed.
            removal: From :meth:`decide`.
            train: How.
        """

    def little(self, removal: Removal) -> bool:
        """Whether less than two in a hundred of the survivors would go."""
        return removal.removed < 0.02 * sum(int(line.sum()) for line in self.there.values())


@final
class LiveWeights(Live):
    """Single weights go: shapes stay.

    Args:
        model: What is gone is zero.
        masks: Which weights are there.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.model, self.there = model, masks

    def decide(self, *measured: Any, trust: float, forced: bool) -> Removal | None:
        """See :class:`Live`."""
        return remove_weights(self.model, self.there, *measured, trust=trust, forced=forced)

    def trained(self, reduced: nn.Module, removal: Removal, train: Train) -> Left:
        """See :class:`Live`."""
        train(reduced, removal.masks)
        return Left(reduced, removal.masks, {}, {})


@final
class LiveUnits(Live):
    """Units go: the network is cut to those that are there.

    Input features and positions that are gone stay, silent, until it is trained: a layer that skips
    them changes its name.

    Args:
        whole: Shapes whole; what is gone is zero.
        plan: Of it.
        keep: Which units are there, every group.
    """

    def __init__(self, whole: nn.Module, plan: Plan, keep: Mapping[str, Tensor]) -> None:
        late = {group.name for group in plan.groups if cut_late(group)}
        cut = plan.closed({name: line for name, line in keep.items() if name not in late})
        self.whole, self.verdict = whole, Verdict(plan, cut)
        # A layer cut by lines loses its memory layout.
        self.model = placed(compact(whole, self.verdict), next(whole.parameters()).device)
        self.plan = plan.restrict(cut)
        self.there = {name: line[cut[name]] for name, line in keep.items()}

    def decide(self, *measured: Any, trust: float, forced: bool) -> Removal | None:
        """See :class:`Live`."""
        given = (self.model, self.plan, self.there, *measured)
        return remove_units(*given, trust=trust, forced=forced)

    def trained(self, reduced: nn.Module, removal: Removal, train: Train) -> Left:
        """See :class:`Live`."""
        verdict = Verdict(self.plan, removal.keep)
        small = placed(compact(reduced, verdict), next(reduced.parameters()).device)
        train(small, {})
        whole = expand(expand(small, reduced, verdict), self.whole, self.verdict)
        keep = self._widened(removal.keep)
        masks = masks_of(whole, Verdict(self.verdict.plan, keep))
        return Left(whole, masks, keep, self._widened(removal.log_odds))

    def _widened(self, lines: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values per unit of the cut network as those of the whole one."""
        wide = {}
        for name, line in lines.items():
            cut = self.verdict.keep[name]
            wide[name] = torch.zeros(cut.shape, dtype=line.dtype)
            wide[name][cut] = line.cpu()
        return wide
