"""Sums over batches: what arrives at each site becomes blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bayespare.bayes.curvature.blocks import Curvature, KroneckerFactors
from bayespare.bayes.curvature.layout import Place
from bayespare.bayes.curvature.parts import (
    Bias,
    Convolution,
    Dense,
    Kronecker,
    Lookup,
    Part,
    chunks,
)
from bayespare.bayes.curvature.tape import Listener, Site
from bayespare.bayes.curvature.totals import summed, total_of
from bayespare.bayes.curvature.wiring import Wiring, check_followed
from bayespare.errors import BayespareError


class _Anchor(torch.autograd.Function):
    """Lets gradients flow back to an activation whose layer was given no trainable tensor."""

    @staticmethod
    def forward(ctx: object, output: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(output)  # type: ignore[attr-defined]
        return output

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[None, None]:
        return None, None


class _Factor:
    """Running sums of one Kronecker block; its parts are stacked along the first dimension."""

    def __init__(self) -> None:
        self.output: Tensor | None = None
        self.input: Tensor | None = None
        self.rows = 0.0

    def add_input(self, moment: Tensor, rows: float) -> None:
        self.input = moment if self.input is None else self.input.add_(moment)
        self.rows += rows

    def add_output(self, moment: Tensor) -> None:
        moment = moment.to(summed(moment.dtype))
        self.output = moment if self.output is None else self.output.add_(moment)


class Sums(Listener):
    """Adds up the blocks of all parameters while batches run through the model.

    Attributes:
        anchor: The leaf that every gradient flows back to.
        examples: Examples seen so far.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        wiring: Wiring,
        *,
        kfac: bool,
        reduce: bool,
        lasting: Mapping[str, Tensor],
    ) -> None:
        self._parameters = parameters
        self._wiring = wiring
        self._reduce = reduce
        self._kron = {name for name in parameters if kfac and wiring.kronecker(name)}
        self._totals = {
            name: total_of(parameter, lasting[name])
            for name, parameter in parameters.items()
            if name not in self._kron
        }
        self._factors: dict[tuple[str, int], _Factor] = {}
        self._pending: dict[str, list[tuple[Part, Place, Tensor]]] = {}
        self._twins = {
            bias: weight
            for bias, weight in wiring.twins.items()
            if bias in self._kron and weight in self._kron
        }
        self._squared: dict[int, tuple[list[Dense | Bias], Place, Tensor]] = {}
        self._batch = 0
        self._weight: Tensor | None = None
        device = next(iter(parameters.values())).device
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.lookups = wiring.lookups
        self.examples = 0

    def begin(self, examples: int, weight: Tensor | None = None) -> None:
        """A batch of so many examples, weighted or not, is about to run.

        What comes back to the sites has the weights in it already, their inputs have not.
        """
        self._batch, self._weight = examples, weight
        self.examples += examples

    def visit(self, site: Site, output: Tensor) -> Tensor:
        """See :class:`Listener`: remember the inputs, wait for the cotangent."""
        layouts = self._wiring.layouts
        if site.number >= len(layouts):
            raise BayespareError(
                f"curvature of {site.parts[0].view.name!r}: the model does not run the same way "
                "for every batch"
            )
        check_followed(site)
        place = Place(layouts[site.number], self._batch)
        for part in site.parts:
            if part.view.name in self._kron:
                self._add_inputs(part, place)
        if not output.requires_grad:
            # An anchored output is written in place, which a view may not be.
            output = output if output._base is None else output.clone()
            output = _Anchor.apply(output, self.anchor)  # type: ignore[no-untyped-call]
        output.register_hook(  # type: ignore[no-untyped-call]
            lambda cotangent: self._arrive(site, place, cotangent)
        )
        return output

    def refuse(self, name: str, why: str) -> None:
        """See :class:`Listener`."""
        raise BayespareError(f"curvature of {name!r}: in this batch the parameter {why}")

    def _arrive(self, site: Site, place: Place, cotangent: Tensor) -> None:
        cotangent = cotangent.detach()
        single: list[Dense | Bias] = []
        with torch.no_grad():
            for part in site.parts:
                name = part.view.name
                if name in self._twins:
                    continue
                if name in self._kron:
                    self._add_outputs(part, place, cotangent)
                    continue
                if name in self._wiring.shared:
                    self._pending.setdefault(name, []).append((part, place, cotangent))
                    continue
                arranged = part.arranged(cotangent, place)
                if isinstance(part, Dense | Bias) and arranged.shape[1] == 1:
                    single.append(part)
                    rows = arranged
                else:
                    self._totals[name].add(part.view, part.squares(arranged, place))
            if single:
                self._hold(site, single, place, rows)

    def _hold(self, site: Site, parts: list[Dense | Bias], place: Place, rows: Tensor) -> None:
        """Sum squared cotangents until :meth:`end`: one product with the inputs serves them all.

        A matrix and its bias have the same.
        """
        if site.number in self._squared:
            self._squared[site.number][2].addcmul_(rows, rows)
        else:
            self._squared[site.number] = (parts, place, rows.square())

    def end(self) -> None:
        """The batch's last backward pass is over."""
        with torch.no_grad():
            for parts, place, squared in self._squared.values():
                for part in parts:
                    self._totals[part.view.name].add(part.view, part.squares_of(squared, place))
        self._squared = {}

    def flush(self) -> None:
        """A backward pass is over: parameters with several uses have all of them now."""
        with torch.no_grad():
            for name, uses in self._pending.items():
                self._add_together(name, uses)
        self._pending = {}

    def _add_together(self, name: str, uses: Sequence[tuple[Part, Place, Tensor]]) -> None:
        """Sum the gradients of all uses, then square."""
        squares = self._totals[name].zeros()
        size = len(squares)
        arranged = [part.arranged(cotangent, place) for part, place, cotangent in uses]
        entries = size + max(part.entries for part, _, _ in uses)
        for rows in chunks(self._batch, entries):
            total = squares.new_zeros(rows.stop - rows.start, size)
            for (part, place, _), given in zip(uses, arranged, strict=True):
                part.view.within(total).add_(part.gradients(given, place, rows))
            squares.add_(total.square_().sum(0))
        self._totals[name].add_all(squares)

    def _factor(self, part: Part) -> _Factor:
        return self._factors.setdefault((part.view.name, part.view.offset), _Factor())

    @torch.no_grad()
    def _add_inputs(self, part: Part, place: Place) -> None:
        assert isinstance(part, Kronecker)
        found = _input_moment(part, place, self._reduce, self._weight)
        if found is not None:
            moment, rows = found
            dtype = summed(self._parameters[part.view.name].dtype)
            self._factor(part).add_input(moment.to(dtype), rows)

    def _add_outputs(self, part: Part, place: Place, cotangent: Tensor) -> None:
        assert isinstance(part, Kronecker)
        arranged = part.arranged(cotangent, place)
        self._factor(part).add_output(part.output_moment(arranged, place, self._reduce))

    def finish(self) -> Curvature:
        """Return the blocks."""
        diagonal = {name: found.result() for name, found in self._totals.items()}
        factors: dict[str, KroneckerFactors] = {}
        # In the order of the parameters on every rank, but a weight before its bias.
        named = [name for name in self._parameters if name in self._kron]
        for name in sorted(named, key=lambda name: name in self._twins):
            factors[name] = self._block(name, factors)
        return Curvature(diagonal, factors, self.examples, self._wiring.unused)

    def _block(self, name: str, known: Mapping[str, KroneckerFactors]) -> KroneckerFactors:
        part = self._wiring.parts[name][0]
        if name in self._twins:
            output = known[self._twins[name]].output
            return KroneckerFactors(
                output, None, self.examples, tuple(self._parameters[name].shape)
            )
        keys = sorted(key for key in self._factors if key[0] == name)
        found = [self._factors[key] for key in keys]
        outputs = [factor.output for factor in found if factor.output is not None]
        inputs = [factor.input for factor in found if factor.input is not None]
        rows = found[0].rows
        output = _stack(outputs)
        shape = tuple(self._parameters[name].shape)
        if isinstance(part, Bias):
            return KroneckerFactors(output, None, self.examples, shape)
        moment = _stack(inputs) / (rows or 1)
        transposed = isinstance(part, Lookup) or part.view.turns(self._parameters[name])
        return KroneckerFactors(output, moment, rows, shape, transposed)


def _input_moment(
    part: Kronecker, place: Place, reduce: bool, weight: Tensor | None
) -> tuple[Tensor, float] | None:
    """As :meth:`Kronecker.input_moment`, every row counting as often as its example."""
    if weight is None:
        return part.input_moment(place, reduce)
    if isinstance(part, Lookup):
        often = _spread_out(weight, part.index, place).expand(part.index.shape)
        given, index = part.arranged(often.unsqueeze(-1), place), part.arranged_index(place)
        counts = given.new_zeros(part.view.size[0]).index_add_(0, index.flatten(), given.flatten())
        return counts, float(counts.sum())
    if isinstance(part, Dense):
        part = replace(part, inputs=part.inputs * _spread_out(weight, part.inputs, place).sqrt())
    elif isinstance(part, Convolution):
        part = replace(part, signal=part.signal * _spread_out(weight, part.signal, place).sqrt())
    found = part.input_moment(place, reduce)
    return None if found is None else (found[0], found[1] / place.examples * float(weight.sum()))


def _spread_out(weight: Tensor, like: Tensor, place: Place) -> Tensor:
    """Those of the examples, broadcasting against a tensor in which they lie at a place."""
    axis = place.layout.axis
    positions = like.shape[axis] // place.examples
    minor = place.layout.split == "minor"
    along = weight.to(like.dtype) if like.is_floating_point() else weight
    along = along.repeat(positions) if minor else along.repeat_interleave(positions)
    return along.view(-1, *(1,) * (like.ndim - axis - 1))


def _stack(moments: Sequence[Tensor]) -> Tensor:
    """One block, or one for each group or projection."""
    if moments[0].ndim == 1:
        return moments[0]
    blocks = torch.cat(list(moments))
    return blocks[0] if len(blocks) == 1 else blocks
