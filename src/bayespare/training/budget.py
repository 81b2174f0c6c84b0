"""What a network may cost: a constraint on top of the evidence, never a requirement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bayespare.checks import check_least, check_positive
from bayespare.errors import BayespareError
from bayespare.measure import latency
from bayespare.structure import Plan, Verdict, compact, count


class Cost(NamedTuple):
    """What a network costs, as far as somebody asked.

    Attributes:
        parameters: Physical parameters.
        macs: Multiply-accumulates for one example; None: not counted.
        latency_ms: Median time of one example on one CPU thread; None: not measured.
    """

    parameters: int
    macs: int | None = None
    latency_ms: float | None = None

    def __str__(self) -> str:
        parts = [f"{self.parameters:,} parameters"]
        if self.macs is not None:
            parts.append(f"{self.macs:,} MACs")
        if self.latency_ms is not None:
            parts.append(f"{self.latency_ms:.3g} ms a row")
        return ", ".join(parts)


@dataclass(frozen=True)
class Budget:
    """Limits that a network has to meet; without any, every network meets them.

    Attributes:
        max_params: Most physical parameters; where single weights are judged, most that are not
            zero.
        max_macs: Most multiply-accumulates for one example.
        max_latency_ms: Most milliseconds for one example, on one CPU thread, median.
        sparsity: Least share of the parameters to be removed, in (0, 1); another way to say
            ``max_params``, see :meth:`of`.
    """

    max_params: int | None = None
    max_macs: int | None = None
    max_latency_ms: float | None = None
    sparsity: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_params", "max_macs"):
            value = getattr(self, name)
            if value is not None:
                check_least(name, value, 1)
        if self.max_latency_ms is not None:
            check_positive("max_latency_ms", self.max_latency_ms)
        if self.sparsity is not None:
            check_positive("sparsity", self.sparsity, below=1)
        if self.sparsity is not None and self.max_params is not None:
            raise BayespareError(
                "sparsity= and max_params= say the same in two ways; give one of them"
            )

    def __bool__(self) -> bool:
        return self != Budget()

    def __str__(self) -> str:
        limits = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        return " ".join(f"{name}={value}" for name, value in limits if value is not None)

    def of(self, parameters: int) -> Budget:
        """These limits for a network of so many parameters, a sparsity turned into their number.

        Raises:
            BayespareError: If the sparsity leaves none.
        """
        if self.sparsity is None:
            return self
        left = math.floor((1 - self.sparsity) * parameters + 1e-9)
        if left < 1:
            raise BayespareError(
                f"sparsity={self.sparsity}: leaves none of {parameters:,} parameters; give less"
            )
        return replace(self, max_params=left, sparsity=None)

    def used(self, cost: Cost) -> float:
        """The largest share of a limit that a network takes up; infinite if it was not measured.

        A sparsity has to have become a number of parameters before, by :meth:`of`.
        """
        assert self.sparsity is None
        limits = (self.max_params, self.max_macs, self.max_latency_ms)
        shares = (
            math.inf if value is None else value / limit
            for value, limit in zip(cost, limits, strict=True)
            if limit is not None
        )
        return max(shares, default=0.0)

    def met(self, cost: Cost) -> bool:
        """Whether a network is within every limit; what was not measured is not."""
        return self.used(cost) <= 1

    def cost(
        self,
        model: nn.Module,
        verdict: Verdict,
        parameters: int,
        example: Tensor,
        before: Cost | None = None,
    ) -> Cost:
        """Measure what the limits ask for of a structure, and no more.

        The structure is cut out of the model and run: its cost does not depend on its weights.

        Args:
            model: Of the original size, on the CPU, any weights.
            verdict: Which units stay.
            parameters: That it leaves.
            example: An input of the model, shape ``(1, ...)``.
            before: Of the smallest structure so far. Time is measured only of those that are
                smaller still, and within the other limits.
        """
        if self.max_macs is None and self.max_latency_ms is None:
            return Cost(parameters)
        small = compact(model, verdict)
        cost = Cost(parameters, count(small, example).macs)
        if self.max_latency_ms is None or not replace(self, max_latency_ms=None).met(cost):
            return cost
        known = None if before is None else before.latency_ms
        if before is not None and known is not None and parameters >= before.parameters:
            return cost._replace(latency_ms=known)
        return cost._replace(latency_ms=milliseconds({"": small}, example)[""])

    def worth(self, model: nn.Module, example: Tensor) -> dict[str, float] | None:
        """Factors of the price of a parameter, by layer; None where each costs the same.

        A limit on work asks of a parameter what it is used for: once in a linear layer, at every
        output position in a convolution. On average over the parameters the factor is one, so that
        the price means the same with any limit.

        Args:
            model: Of the original size.
            example: An input of the model, shape ``(1, ...)``.
        """
        if self.max_macs is None and self.max_latency_ms is None:
            return None
        used = _positions(model, example)
        sizes = {name: model.get_parameter(f"{name}.weight").numel() for name in used}
        mean = sum(used[name] * size for name, size in sizes.items()) / sum(sizes.values())
        share = 1.0 if self.max_params is None else 0.5
        return {name: share * used[name] / mean + 1 - share for name in used}

    def check(
        self,
        model: nn.Module,
        plan: Plan,
        example: Tensor,
        weights: frozenset[str] = frozenset(),
    ) -> None:
        """Refuse limits below the smallest network there is: one unit left of every group.

        Args:
            model: Of the original size, on the CPU.
            plan: Of it.
            example: An input of the model, shape ``(1, ...)``.
            weights: Parameters of which single entries are judged: none of these is needed.

        Raises:
            BayespareError: If it does not meet them; the message says what it costs.
        """
        if not self:
            return
        budget = self.of(_parameters(model))
        none = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in plan.groups}
        smallest = compact(model, Verdict(plan, none))
        judged = sum(p.numel() for n, p in smallest.named_parameters() if n in weights)
        cost = Cost(_parameters(smallest) - judged, count(smallest, example).macs)
        if budget.max_latency_ms is not None:
            cost = cost._replace(latency_ms=milliseconds({"": smallest}, example)[""])
        if not budget.met(cost):
            zero = ", all weights that are judged at zero," if weights else ""
            raise BayespareError(
                f"{self}: out of reach: one unit left in every group{zero} still has {cost}; "
                "use a larger budget or another network"
            )

    def refusal(self, costs: Sequence[Cost], *, more: str = "epochs") -> BayespareError:
        """What to say when none of the structures that were found meets the limits.

        Args:
            costs: Of those structures.
            more: What would have found smaller ones.
        """
        macs = [cost.macs for cost in costs if cost.macs is not None]
        times = [cost.latency_ms for cost in costs if cost.latency_ms is not None]
        found = f"the smallest structure found has {min(c.parameters for c in costs):,} parameters"
        if macs:
            found += f" and {min(macs):,} MACs"
        if times:
            found += f", the fastest takes {min(times):.3g} ms"
        return BayespareError(f"{self}: {found}; use more {more} or a larger budget")


def milliseconds(models: dict[str, nn.Module], example: Tensor) -> dict[str, float]:
    """Median time of each model for one example, on one CPU thread."""
    times = latency(models, example, batches=(1,), seconds=0.5 * len(models))
    return {name: of_model["1"] for name, of_model in times.items()}


def _positions(model: nn.Module, example: Tensor) -> dict[str, int]:
    """How often each weight of a layer is used for one example; layers with weights alone."""
    used: dict[str, int] = {}

    def note(name: str, units: int, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        used[name] = used.get(name, 0) + output.numel() // units

    handles = [
        layer.register_forward_hook(partial(note, name, layer.weight.shape[0]))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    ]
    try:
        count(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return used


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
