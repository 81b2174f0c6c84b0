"""Second moments of what arrives at a layer, with what it should have given, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayespare.bayes.curvature.layout import split
from bayespare.bayes.curvature.parts import Bias, Convolution, Dense, Part
from bayespare.bayes.curvature.patches import columns, windows
from bayespare.bayes.curvature.running import call, examples_in
from bayespare.bayes.curvature.tape import Listener, Site, Tape
from bayespare.bayes.curvature.views import View
from bayespare.errors import BayespareError

# Multiplications per batch that a layer's moments may take before positions are sampled.
_EFFORT = 2**30
# Rows for each input of a layer, and examples, after which no more are asked for.
_ROWS, _EXAMPLES = 64, 1000


@dataclass(frozen=True, eq=False)
class Target:
    """A use of a weight that can be refitted.

    Attributes:
        number: Of its site among those the model runs.
        part: The weight's part, of a small batch.
        bias: The bias that is added, if any.
    """

    number: int
    part: Dense | Convolution
    bias: View | None

    @property
    def key(self) -> str:
        """Name of the weight, with the place of a view in it."""
        view = self.part.view
        return view.name if view.numel == math.prod(view.size) else f"{view.name}@{view.offset}"

    @property
    def groups(self) -> int:
        """Groups of a convolution, otherwise 1."""
        return self.part.window.groups if isinstance(self.part, Convolution) else 1

    def support(self, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """Which inputs each row has, the bias last; boolean, ``(groups, rows, inputs [+ 1])``."""
        lines = [self._rows(self.part.view, masks, weights)]
        if self.bias is not None:
            lines.append(self._rows(self.bias, masks, weights))
        return torch.cat(lines, -1)

    def _rows(
        self, view: View, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]
    ) -> Tensor:
        parameter = weights[view.name]
        kept = torch.ones_like(parameter, dtype=torch.bool)
        if view.name in masks:
            kept.copy_(masks[view.name])
        found = shown(kept, view)
        return found.reshape(self.groups, view.size[0] // self.groups, -1)

    def matrices(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The weight with its bias as last column, ``(groups, rows, inputs [+ 1])``."""
        found = [shown(weights[self.part.view.name].detach(), self.part.view)]
        if self.bias is not None:
            found.append(shown(weights[self.bias.name].detach(), self.bias))
        rows = self.part.view.size[0] // self.groups
        return torch.cat([tensor.reshape(self.groups, rows, -1) for tensor in found], -1)

    def apply(self, change: Tensor, weights: Mapping[str, Tensor]) -> None:
        """Add a change, ``(groups, rows, inputs [+ 1])``, to the weight and the bias, in place."""
        if self.bias is not None:
            bias = shown(weights[self.bias.name].detach(), self.bias)
            bias.add_(change[..., -1].reshape(self.bias.size).to(bias))
            change = change[..., :-1]
        weight = shown(weights[self.part.view.name].detach(), self.part.view)
        weight.add_(change.reshape(self.part.view.size).to(weight))


def shown(tensor: Tensor, view: View) -> Tensor:
    """The view's entries of a tensor laid out like the parameter."""
    return tensor.as_strided(view.size, view.stride, tensor.storage_offset() + view.offset)


class _Sites(Listener):
    def __init__(self) -> None:
        self.sites: list[Site] = []

    def visit(self, site: Site, output: Tensor) -> Tensor:
        self.sites.append(site)
        return output


def targets_of(
    model: nn.Module, weights: Mapping[str, Tensor], x: Any, left_alone: dict[str, str]
) -> list[Target]:
    """The weights that can be refitted, in the order the model runs them.

    Args:
        model: In evaluation mode, without gradients.
        weights: Its parameters by name.
        x: Inputs of a few examples.
        left_alone: Filled with the weights that are not, and why.
    """
    sites = _Sites()
    with Tape(weights, sites, examples=examples_in(x)):
        call(model, x)
    uses: dict[tuple[str, int], int] = {}
    for site in sites.sites:
        for part in site.parts:
            key = (part.view.name, part.view.offset)
            uses[key] = uses.get(key, 0) + 1
    found = []
    for site in sites.sites:
        for part in site.parts:
            if not isinstance(part, (Dense, Convolution)):
                continue
            name = part.view.name
            if isinstance(part, Convolution) and part.transposed:
                left_alone[name] = "a transposed convolution"
            elif uses[name, part.view.offset] > 1:
                left_alone[name] = "used in several places"
            elif not weights[name].requires_grad:
                left_alone[name] = "frozen"
            else:
                found.append(Target(site.number, part, _bias(site.parts, weights, uses)))
    return found


def _bias(
    parts: tuple[Part, ...], weights: Mapping[str, Tensor], uses: Mapping[tuple[str, int], int]
) -> View | None:
    for part in parts:
        if isinstance(part, Bias):
            view = part.view
            once = uses[view.name, view.offset] == 1
            return view if once and weights[view.name].requires_grad else None
    return None


@dataclass(frozen=True, eq=False)
class Arrival:
    """What a batch brought to a target.

    Attributes:
        part: The weight's part, with its inputs.
        output: What the layer made of them.
    """

    part: Part
    output: Tensor


class Reached(Listener):
    """Stops a model at one site and holds what was there.

    Attributes:
        arrival: What was there.
    """

    class Stop(Exception):  # no error: the site has been reached
        """The site has run."""

    arrival: Arrival

    def __init__(self, number: int) -> None:
        self._number = number

    def visit(self, site: Site, output: Tensor) -> Tensor:
        """See :class:`Listener`."""
        if site.number < self._number:
            return output
        self.arrival = arrival_of(site, output)
        raise Reached.Stop


def arrival_of(site: Site, output: Tensor) -> Arrival:
    """What arrived at a site that is a target's."""
    part = next(p for p in site.parts if isinstance(p, (Dense, Convolution)))
    return Arrival(part, output)


class Moments:
    """Sums over rows (examples, or examples and positions) for one target.

    Attributes:
        gram: Inputs with inputs, the bias's one last, ``(groups, d, d)``.
        residual: Residuals with inputs, ``(groups, rows, d)``; only where outputs were added.
        rows: How many rows were summed.
        examples: The examples they are of.
        error: Sum of squared residuals of each row of the weight, ``(groups, rows)``; so too.
    """

    gram: Tensor
    residual: Tensor
    error: Tensor
    _square: Tensor

    def __init__(self, target: Target) -> None:
        self._target = target
        self._generator = torch.Generator().manual_seed(0)
        self._sum: Tensor | None = None
        self.rows = 0
        self.examples = 0

    @property
    def scale(self) -> Tensor:
        """Sum of squared targets of each row about their mean."""
        assert self._sum is not None
        return self._square - self._sum.square() / self.rows

    def add(self, whole: Arrival, reduced: Arrival) -> None:
        """Add a batch, as it reached the target in the whole and in the reduced network."""
        chosen = self._chosen(reduced)
        inputs = self._inputs(reduced.part, chosen)
        wanted = self._outputs(whole.output, chosen)
        missing = wanted - self._outputs(reduced.output, chosen)
        if not bool(torch.isfinite(missing).all()):
            raise BayespareError(
                f"update_survivors: what the network computes at {self._target.key!r} is not finite"
            )
        residual = (missing @ inputs.mT).double()
        total = wanted.sum(-1).double()
        square, error = (x.square().sum(-1).double() for x in (wanted, missing))
        if self._sum is None:
            self.residual, self._sum = residual, total
            self._square, self.error = square, error
        else:
            self.residual += residual
            self._sum += total
            self._square += square
            self.error += error
        self._add_rows(inputs, len(reduced.output))

    def add_inputs(self, reached: Arrival) -> None:
        """Add a batch of inputs alone, where nothing is to be fitted."""
        self._add_rows(self._inputs(reached.part, self._chosen(reached)), len(reached.output))

    def _add_rows(self, inputs: Tensor, examples: int) -> None:
        gram = (inputs @ inputs.mT).double()
        self.gram = self.gram.add_(gram) if self.rows else gram
        self.rows += inputs.shape[-1]
        self.examples += examples

    @property
    def enough(self) -> bool:
        """Whether more data would change little: a convolution sees many positions an example."""
        width = self.gram.shape[-1]
        return self.rows >= _ROWS * width and self.examples >= max(_EXAMPLES, 4 * width)

    def settle(self, change: Tensor) -> None:
        """Take a change of the weights, ``(groups, rows, d)``, into the error."""
        gained = 2 * change * self.residual - (change @ self.gram) * change
        self.error = (self.error - gained.sum(-1)).clamp_min(0)

    def _chosen(self, reached: Arrival) -> Tensor | None:
        """Numbers of the rows of a batch that are used; None for all of them."""
        output = reached.output
        if isinstance(reached.part, Convolution):
            total, examples = output.numel() // output.shape[1], len(output)
        else:
            total = output.numel() // output.shape[-1]
            examples = len(output)
        width = math.prod(self._target.part.view.size[1:])
        limit = max(examples, 4 * width, _EFFORT // width**2)
        if total <= limit:
            return None
        some = torch.randperm(total, generator=self._generator)[:limit]
        # Gathered in the order they are stored in: twice as fast.
        return some.sort().values.to(output.device)

    def _inputs(self, part: Part, chosen: Tensor | None) -> Tensor:
        """Shape ``(groups, d, rows)``."""
        if isinstance(part, Convolution):
            found = _patches(part, chosen)
        else:
            assert isinstance(part, Dense)
            rows = part.inputs.reshape(-1, part.inputs.shape[-1])
            found = (rows if chosen is None else rows[chosen]).t().unsqueeze(0)
        if self._target.bias is None:
            return found
        return torch.cat([found, torch.ones_like(found[:, :1])], 1)

    def _outputs(self, output: Tensor, chosen: Tensor | None) -> Tensor:
        """Shape ``(groups, outputs of a group, rows)``."""
        if isinstance(self._target.part, Convolution):
            rows = output.flatten(2).transpose(0, 1).flatten(1)
        else:
            rows = output.reshape(-1, output.shape[-1]).t()
        rows = rows if chosen is None else rows[:, chosen]
        return split(rows, 0, self._target.groups, -1)


def _patches(part: Convolution, chosen: Tensor | None) -> Tensor:
    """Unfolded inputs of a convolution, ``(groups, inputs, rows)``, of some rows or all."""
    kernel, groups = part.view.size[2:], part.window.groups
    if chosen is None:
        return columns(part.signal, kernel, part.window)
    view = windows(part.signal, kernel, part.window)
    place = torch.unravel_index(chosen, (len(view), *view.shape[2 : 2 + len(kernel)]))
    # (examples, *positions, channels, *kernel), of which the first are picked.
    found = view.movedim(1, 1 + len(kernel))[place]
    return split(found.flatten(1).t(), 0, groups, -1)
