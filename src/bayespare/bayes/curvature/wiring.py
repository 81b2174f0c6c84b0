"""How a model uses its parameters, found on a few examples and proven against autograd.

Each example's outputs are sent back alone. Where cotangents are zero shows which dimension holds
the examples, and the gradients that the rules put together must be autograd's: a use that a rule
does not see, or misunderstands, is found here, and its parameter named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bayespare.bayes.curvature import rules as _rules  # noqa: F401  # fills the table
from bayespare.bayes.curvature.layout import Layout, Place, candidates
from bayespare.bayes.curvature.parts import Convolution, Kronecker, Part
from bayespare.bayes.curvature.running import call, few, outputs_of
from bayespare.bayes.curvature.tape import Listener, Site, Tape
from bayespare.bayes.curvature.views import like_parameter
from bayespare.errors import BayespareError, NoCurvatureError, UnsupportedStructureError


@dataclass(frozen=True, eq=False)
class Wiring:
    """What is the same in every batch.

    Attributes:
        layouts: Where the examples lie at each site.
        shapes: Parameter name to its shape.
        parts: Parameter name to its uses, of whose inputs only shapes are left.
        shared: Parameters of which some entries have several uses.
        twins: Biases by name, with their weight: both act at one site alone, where they have the
            same cotangents.
        unused: Parameters without any.
        lookups: Sites at which all examples look up the same rows of a table.
    """

    layouts: tuple[Layout, ...]
    shapes: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, list[Part]] = field(repr=False)
    shared: frozenset[str]
    twins: Mapping[str, str]
    unused: tuple[str, ...]
    lookups: frozenset[int]

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise if a model has other parameters than the one this was found on.

        Raises:
            BayespareError: Naming one of them.
        """
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        changed = sorted(name for name, _ in shapes.items() ^ self.shapes.items())
        if changed:
            raise BayespareError(
                f"curvature of {changed[0]!r}: the parameter is not as it was when the wiring was "
                "found; find it again after a model has changed"
            )

    def kronecker(self, name: str) -> bool:
        """Whether the uses of a parameter have one Kronecker form together."""
        parts = self.parts.get(name, [])
        if not parts or not all(_has_factors(part) for part in parts):
            return False
        views = [part.view for part in parts]
        alike = len({type(part) for part in parts}) == 1
        alike &= len({(view.size, view.stride) for view in views}) == 1
        entries = math.prod(views[0].size)
        if len(parts) == 1 or name in self.shared:
            return alike and len(set(views)) == 1 and entries == views[0].numel
        # Consecutive blocks of rows, as the three projections of attention.
        rows = views[0].stride[0] == max(views[0].stride)
        plain = not any(isinstance(part, Convolution) for part in parts)
        return alike and rows and plain and entries * len(parts) == views[0].numel


def _has_factors(part: Part) -> bool:
    if isinstance(part, Convolution):
        return not part.transposed
    return isinstance(part, Kronecker)


CHECKPOINTED = (
    "activation checkpointing runs parts of the network again in the backward pass, where nothing "
    "can be seen of them; switch it off in evaluation mode"
)


def check_followed(site: Site) -> None:
    """Refuse a use of a parameter that no gradient comes back to.

    Raises:
        UnsupportedStructureError: If gradients are off.
    """
    if not torch.is_grad_enabled():
        raise UnsupportedStructureError(
            f"curvature of {site.parts[0].view.name!r}: it is used under torch.no_grad(); freeze "
            f"it (requires_grad_(False)), or, if that is checkpointing: {CHECKPOINTED}"
        )


class _Recorder(Listener):
    """Keeps sites and what arrives back at them."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.refused: dict[str, str] = {}
        self.arrived: dict[int, Tensor] = {}

    def visit(self, site: Site, output: Tensor) -> Tensor:
        check_followed(site)
        self.sites.append(site)
        number = site.number
        output.register_hook(  # type: ignore[no-untyped-call]
            lambda cotangent: self._arrive(number, cotangent)
        )
        return output

    def _arrive(self, number: int, cotangent: Tensor) -> None:
        self.arrived[number] = cotangent.detach()

    def refuse(self, name: str, why: str) -> None:
        self.refused.setdefault(name, why)


def find_wiring(model: nn.Module, parameters: Mapping[str, Tensor], x: Any) -> Wiring:
    """Learn how the model uses its parameters from a batch of inputs.

    Args:
        model: In evaluation mode.
        parameters: Those that need a block, by name.
        x: Inputs of one batch.

    Raises:
        UnsupportedStructureError: If a parameter's use is not understood; the message names it.
    """
    probe, examples = few(x)
    recorder = _Recorder()
    # Of a number no dimension has: shapes tell which lookups all examples share.
    with Tape(parameters, recorder, examples=examples) as tape:
        output = outputs_of(call(model, probe))
    for name, why in recorder.refused.items():
        raise NoCurvatureError(
            f"curvature of {name!r}: the parameter {why}; freeze it (requires_grad_(False)) or "
            "use a stock layer",
            recorder.refused,
        )
    if not output.requires_grad:
        raise UnsupportedStructureError("curvature: the outputs depend on no trainable parameter")
    if len(output) != examples:
        raise BayespareError(
            f"curvature: for {examples} examples the network returns {tuple(output.shape)}; the "
            "first dimension of its output must be the batch"
        )
    arrivals = []
    for example in range(examples):
        _back(parameters, recorder, output, example)
        arrivals.append(recorder.arrived)
    layouts = tuple(
        _layout(site, [found.get(site.number) for found in arrivals], examples)
        for site in recorder.sites
    )
    for example in range(examples):
        # Once more: gradients of all examples together are several times the model.
        gradients = _back(parameters, recorder, output, example)
        _prove(parameters, recorder, layouts, gradients, examples, example)
    parts: dict[str, list[Part]] = {}
    for site in recorder.sites:
        for part in site.parts:
            parts.setdefault(part.view.name, []).append(part.hollow())
    shared = frozenset(name for name, uses in parts.items() if _overlap(uses))
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    unused = tuple(name for name in parameters if name not in parts)
    twins = {}
    for site in recorder.sites:
        names = [part.view.name for part in site.parts]
        if len(names) == 2 and all(len(parts[name]) == 1 for name in names):
            twins[names[1]] = names[0]
    # The graph's hooks know the recorder: what it knows of the graph would live for ever.
    recorder.sites.clear()
    return Wiring(layouts, shapes, parts, shared, twins, unused, tape.lookups)


def _back(
    parameters: Mapping[str, Tensor], recorder: _Recorder, output: Tensor, example: int
) -> dict[str, Tensor | None]:
    """Send one example's outputs back alone: gradients here, cotangents to the recorder."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(output.shape, generator=generator).to(output)
    cotangent = torch.zeros_like(output)
    cotangent[example] = direction[example]
    recorder.arrived = {}
    found = torch.autograd.grad(
        output, list(parameters.values()), cotangent, retain_graph=True, allow_unused=True
    )
    return dict(zip(parameters, found, strict=True))


def _layout(site: Site, arrived: list[Tensor | None], examples: int) -> Layout:
    """The first layout in which each example's cotangent is zero everywhere else."""
    for layout in candidates(site.shape, examples, site.leading):
        if all(
            cotangent is None or _alone(layout.spread(cotangent, examples), example)
            for example, cotangent in enumerate(arrived)
        ):
            return layout
    names = ", ".join(repr(part.view.name) for part in site.parts)
    raise UnsupportedStructureError(
        f"curvature of {names}: at its use (output of shape {site.shape} for {examples} examples) "
        "no dimension keeps the examples apart: they are mixed, or the use does not depend on them"
    )


def _alone(spread: Tensor, example: int) -> bool:
    other = torch.ones(len(spread), dtype=torch.bool, device=spread.device)
    other[example] = False
    return not bool(spread[other].any())


@torch.no_grad()
def _prove(
    parameters: Mapping[str, Tensor],
    recorder: _Recorder,
    layouts: tuple[Layout, ...],
    gradients: dict[str, Tensor | None],
    examples: int,
    example: int,
) -> None:
    """Compare an example's gradient with autograd's."""
    given = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    totals = {
        name: torch.zeros(gradient.numel(), dtype=gradient.dtype, device=gradient.device)
        for name, gradient in given.items()
    }
    for site, layout in zip(recorder.sites, layouts, strict=True):
        cotangent = recorder.arrived.get(site.number)
        if cotangent is None:
            continue
        place = Place(layout, examples)
        for part in site.parts:
            name = part.view.name
            found = part.gradients(part.arranged(cotangent, place), place, _only(example))
            if name not in totals or found.shape[1:] != part.view.size:
                raise UnsupportedStructureError(
                    f"curvature of {name!r}: its use is not understood (a gradient of shape "
                    f"{tuple(found.shape[1:])} for {part.view.size})"
                )
            part.view.within(totals[name]).add_(found[0])
    largest = max((float(value.abs().max()) for value in given.values()), default=0.0)
    for name, gradient in given.items():
        total = like_parameter(totals.pop(name), parameters[name])
        _compare(name, gradient, total, largest)


def _only(example: int) -> slice:
    return slice(example, example + 1)


def _compare(name: str, gradient: Tensor, total: Tensor, largest: float) -> None:
    epsilon = torch.finfo(gradient.dtype).eps
    scale = float(gradient.abs().max()) if gradient.numel() else 0.0
    # Where the gradient cancels (the bias of a key in attention) all there is is rounding.
    tolerance = max(3 * epsilon**0.5 * scale, 100 * epsilon * largest)
    if float((total - gradient).abs().max()) > tolerance:
        raise NoCurvatureError(
            f"curvature of {name!r}: its gradient is not the sum of the uses that were followed; "
            "it also acts through a function that cannot be seen (a custom autograd function?)",
            (name,),
        )


def _overlap(uses: list[Part]) -> bool:
    """Whether two uses share entries of their parameter."""
    if len(uses) == 1:
        return False
    if any(use.view.whole for use in uses):
        return True
    count = torch.zeros(uses[0].view.numel)
    for use in uses:
        use.view.within(count).add_(1)
    return bool((count > 1).any())
