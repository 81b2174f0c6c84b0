"""Zero-mean Gaussian priors over a network's parameters, and who shares a precision.

``scalar``: one for all; ``layer``: one per parameter tensor; ``unit``: of a weight the product of
one per output and one per input, kernel positions sharing it, of a bias one per entry;
``parameter``: one each. All are kept as logs. Source: arXiv 2402.15978, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bayespare.errors import BayespareError, did_you_mean

PriorKind = Literal["scalar", "layer", "unit", "parameter"]

LOG_RANGE = (-12.0, 14.0)
"""Log precisions stay in here: a weight that goes to zero would take its precision to infinity."""


@dataclass(frozen=True)
class Clamps:
    """How many log precisions were held at an end of :data:`LOG_RANGE`.

    Attributes:
        low: At the lower end.
        high: At the upper end.
        total: Of how many.
    """

    low: int = 0
    high: int = 0
    total: int = 0

    def __str__(self) -> str:
        return f"{self.low} low and {self.high} high of {self.total} precisions clamped"


class Prior(nn.Module):
    """Log precisions, shared as their kind says, in the shapes of the parameters.

    Args:
        parameters: Parameter name to a tensor of its shape, dtype and device.
        kind: Who shares a precision.
        start: Precision that every parameter starts at.

    Attributes:
        kind: As given.
        logs: The log precisions; of a ``unit`` weight two tensors that are added.

    Raises:
        BayespareError: On an unknown kind, no parameters, or a start that is not positive.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], kind: PriorKind = "parameter", start: float = 1.0
    ) -> None:
        super().__init__()
        if kind not in get_args(PriorKind):
            raise BayespareError(f"unknown prior {kind!r}{did_you_mean(kind, get_args(PriorKind))}")
        if not parameters:
            raise BayespareError("prior: there are no parameters")
        if not 0 < start < math.inf:
            raise BayespareError(f"prior: start={start} must be a precision above 0")
        self.kind = kind
        self.shapes = {name: tuple(value.shape) for name, value in parameters.items()}
        self.places: dict[str, tuple[int, ...]] = {}
        logs: list[nn.Parameter] = []
        for name, value in parameters.items():
            if kind == "scalar" and logs:
                self.places[name] = (0,)
                continue
            shapes = _shapes(tuple(value.shape), kind)
            self.places[name] = tuple(range(len(logs), len(logs) + len(shapes)))
            # Each of two factors gets half of the logarithm.
            level = math.log(start) / len(shapes)
            logs += [nn.Parameter(value.detach().new_full(shape, level)) for shape in shapes]
        self.logs = nn.ParameterList(logs)

    def log_precision(self, name: str) -> Tensor:
        """Log precisions of one parameter, broadcastable to its shape."""
        if name not in self.places:
            raise BayespareError(
                f"the prior has no parameter {name!r}{did_you_mean(name, self.places)}"
            )
        total: Tensor = self.logs[self.places[name][0]]
        for place in self.places[name][1:]:
            total = total + self.logs[place]
        return total

    def log_precisions(self) -> dict[str, Tensor]:
        """Log precisions of every parameter, in its shape; differentiable."""
        return {name: self.log_precision(name).expand(shape) for name, shape in self.shapes.items()}

    @torch.no_grad()
    def precisions(self) -> dict[str, Tensor]:
        """Precision of every parameter, in its shape."""
        return {name: log.exp() for name, log in self.log_precisions().items()}

    @torch.no_grad()
    def start_at(self, logs: Mapping[str, Tensor]) -> None:
        """Begin where log precisions of a prior of this kind were left, in place.

        Args:
            logs: Parameter name to its log precisions, in its shape.
        """
        for name, places in self.places.items():
            rest = logs[name]
            for place in places:
                log = self.logs[place]
                shares = [d for d in range(rest.ndim) if not log.ndim or log.shape[d] == 1]
                mean = rest.mean(shares, keepdim=bool(log.ndim)) if shares else rest
                log.copy_(mean)
                rest = rest - mean

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """``1/2 sum precision * parameter^2``, nats; no gradient reaches the precisions."""
        total: Tensor | None = None
        for name in self.places:
            precision = self.log_precision(name).detach().exp()
            part = 0.5 * (precision * parameters[name].square()).sum()
            total = part if total is None else total + part
        assert total is not None
        return total

    def pooled(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Sums of values per parameter over whoever shares each log precision.

        Args:
            values: Parameter name to values of its shape.

        Returns:
            One tensor for each of :attr:`logs`, of its shape, float64.
        """
        sums = [torch.zeros_like(log, dtype=torch.float64) for log in self.logs]
        for name, places in self.places.items():
            for place in places:
                sums[place] += values[name].double().sum_to_size(sums[place].shape)
        return sums

    def sharers(self) -> list[int]:
        """How many parameters share each of the precisions in each of :attr:`logs`."""
        found = [0] * len(self.logs)
        for name, places in self.places.items():
            for place in places:
                found[place] += math.prod(self.shapes[name]) // self.logs[place].numel()
        return found

    @torch.no_grad()
    def clamp(self, places: Sequence[int] | None = None) -> Clamps:
        """Bring runaway log precisions back to :data:`LOG_RANGE`.

        Raises:
            BayespareError: If one is not a number, naming the parameter.
        """
        low, high = LOG_RANGE
        found = [0, 0, 0]
        for place in range(len(self.logs)) if places is None else places:
            log = self.logs[place]
            if bool(log.isnan().any()):
                name = next(n for n, owned in self.places.items() if place in owned)
                raise BayespareError(
                    f"{name}: a prior precision is not a number; look for the epoch at which "
                    "training diverged, and lower the learning rate"
                )
            found[0] += int((log <= low).sum())
            found[1] += int((log >= high).sum())
            found[2] += log.numel()
            log.clamp_(low, high)
        return Clamps(*found)


class Decay:
    """The gradient of :meth:`Prior.penalty`: weight decay at a rate for each weight.

    Added after ``backward``, it costs a few per cent of a step where the penalty in the loss may
    cost half of one. Make it anew when the precisions have changed.

    Args:
        prior: As it is now.
        parameters: Parameter name to the parameter.
        weight: Of the penalty in the loss: ``temperature / examples`` beside a mean.
    """

    def __init__(self, prior: Prior, parameters: Mapping[str, nn.Parameter], weight: float) -> None:
        self._weight = weight
        self._parameters = [parameters[name] for name in prior.places]
        with torch.no_grad():
            self._rates = [
                log.exp().contiguous().to(parameters[name])
                for name, log in prior.log_precisions().items()
            ]

    @torch.no_grad()
    def add(self) -> None:
        """Add ``weight * precision * parameter`` to every gradient, in place."""
        gradients: list[Tensor] = []
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        parameters: list[Tensor] = list(self._parameters)
        torch._foreach_addcmul_(gradients, parameters, self._rates, value=self._weight)


def _shapes(shape: tuple[int, ...], kind: PriorKind) -> list[tuple[int, ...]]:
    """Shapes of the log precisions of one parameter."""
    if kind in ("scalar", "layer"):
        return [()]
    if kind == "parameter" or len(shape) < 2:
        return [shape]
    ones = (1,) * (len(shape) - 2)
    return [(shape[0], 1, *ones), (1, shape[1], *ones)]
