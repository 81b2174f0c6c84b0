"""What one use of a parameter contributes to its per-example gradients.

A part knows the inputs of the use; given the cotangent of the use's output it gives per-example
gradients (sums over positions), their squares summed over examples, and the rows whose second
moments are the Kronecker factors. Formulas: method card of SpaM, sections 2 and 13 (exact diagonal
under weight sharing ``sum_n (sum_s g_s a_s)^2``; KFAC-expand and KFAC-reduce of Eschenhagen et al.
2023).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Self, final

import torch
from torch import Tensor

from bayespare.bayes.curvature.layout import Place, split
from bayespare.bayes.curvature.patches import Window, columns, patches, weight_gradients
from bayespare.bayes.curvature.views import View

# Entries of a working buffer: small enough for the cache, large enough for the arithmetic.
WORKING = 2**20


@dataclass(frozen=True, eq=False)
class Part(ABC):
    """One use of one parameter.

    Attributes:
        view: The entries of the parameter that are used.
    """

    view: View

    @abstractmethod
    def arranged(self, cotangent: Tensor, place: Place) -> Tensor:
        """The cotangent of the use's output with the examples first."""

    @abstractmethod
    def gradients(self, arranged: Tensor, place: Place, rows: slice) -> Tensor:
        """Gradients of some examples, summed over positions, shape ``(rows, *view.size)``."""

    def hollow(self) -> Self:
        """The same use without its inputs: of them only shapes are left."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        hollow: dict[str, Any] = {
            # Detached: else the graph that made it would stay.
            name: value.detach().to("meta")
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        return replace(self, **hollow)

    @property
    def entries(self) -> int:
        """Entries of working memory that one example needs."""
        size = 1
        for count in self.view.size:
            size *= count
        return size

    def squares(self, arranged: Tensor, place: Place) -> Tensor:
        """Sum over examples of the squared gradients, shape ``view.size``."""
        total: Tensor | None = None
        for rows in chunks(place.examples, self.entries):
            part = self.gradients(arranged, place, rows).square_().sum(0)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total


def chunks(examples: int, entries: int) -> list[slice]:
    """Cut a batch so that no cut needs more than the working memory (or holds one example)."""
    step = max(1, WORKING // max(1, entries))
    return [slice(start, min(start + step, examples)) for start in range(0, examples, step)]


class Kronecker(Part):
    """A part whose curvature has a Kronecker form: second moments of inputs and of cotangents."""

    @abstractmethod
    def input_moment(self, place: Place, reduce: bool) -> tuple[Tensor, int] | None:
        """Sum of outer products of inputs, and of how many; None for a bias, whose input is one.

        Args:
            place: Where the examples lie.
            reduce: The mean over an example's positions instead of one row a position.

        Returns:
            Shape ``(groups, inputs, inputs)``, ``(inputs,)`` where it is diagonal; the rows.
        """

    @abstractmethod
    def output_moment(self, arranged: Tensor, place: Place, reduce: bool) -> Tensor:
        """Sum of outer products of cotangents, summed over positions before to reduce.

        Args:
            arranged: From :meth:`arranged`.
            place: Where the examples lie.
            reduce: As of :meth:`input_moment`.

        Returns:
            Shape ``(groups, outputs, outputs)``.
        """


def _outer(rows: Tensor) -> Tensor:
    """Sum of outer products of rows, shape ``(1, n, n)``."""
    return (rows.t() @ rows).unsqueeze(0)


@final
@dataclass(frozen=True, eq=False)
class Dense(Kronecker):
    """A matrix product: the view is ``(outputs, inputs)``.

    Attributes:
        inputs: What is multiplied, shape ``(*leading, inputs)``.
    """

    inputs: Tensor

    def arranged(self, cotangent: Tensor, place: Place) -> Tensor:
        """Shape ``(examples, positions, outputs)``."""
        return place.spread(cotangent).flatten(1, -2)

    def arranged_inputs(self, place: Place) -> Tensor:
        """Shape ``(examples, positions, inputs)``."""
        return place.spread(self.inputs).flatten(1, -2)

    def gradients(self, arranged: Tensor, place: Place, rows: slice) -> Tensor:
        """See :class:`Part`."""
        return arranged[rows].mT @ self.arranged_inputs(place)[rows]

    def squares(self, arranged: Tensor, place: Place) -> Tensor:
        """See :class:`Part`; one product of squares where each example is one position."""
        if arranged.shape[1] > 1:
            return super().squares(arranged, place)
        return self.squares_of(arranged.square(), place)

    def squares_of(self, squared: Tensor, place: Place) -> Tensor:
        """The same from squared cotangents, summed over several, where positions are single."""
        return squared[:, 0].t() @ self.arranged_inputs(place)[:, 0].square()

    def input_moment(self, place: Place, reduce: bool) -> tuple[Tensor, int]:
        """See :class:`Kronecker`."""
        inputs = self.arranged_inputs(place)
        rows = inputs.mean(1) if reduce else inputs.flatten(0, 1)
        return _outer(rows), len(rows)

    def output_moment(self, arranged: Tensor, place: Place, reduce: bool) -> Tensor:
        """See :class:`Kronecker`."""
        return _outer(arranged.sum(1) if reduce else arranged.flatten(0, 1))


@final
@dataclass(frozen=True, eq=False)
class Convolution(Kronecker):
    """A convolution, in 1 to 3 dimensions, with groups; or a transposed one.

    Attributes:
        signal: Input of a convolution, ``(examples, channels, *space)``.
        window: How the kernel moves.
        transposed: The roles of input and cotangent are exchanged.
    """

    signal: Tensor
    window: Window
    transposed: bool = False

    @property
    def entries(self) -> int:
        """See :class:`Part`: the gradient and the unfolded input."""
        channels, groups = self.signal.shape[1], self.window.groups
        space = self.signal[0, 0].numel()
        outputs = self.view.size[0] if not self.transposed else self.view.size[1] * groups
        kernel = super().entries // max(1, outputs * (channels // groups))
        return super().entries + channels * kernel * space

    def arranged(self, cotangent: Tensor, place: Place) -> Tensor:
        """Shape ``(examples, channels, *space)``, or as many rows as were convolved."""
        return cotangent

    def gradients(self, arranged: Tensor, place: Place, rows: slice) -> Tensor:
        """See :class:`Part`."""
        signal = self.signal
        fold = len(signal) // place.examples
        if fold > 1:
            spread = place.layout.spread
            count = place.examples
            signal = spread(signal, count)[rows].flatten(0, 1)
            arranged = spread(arranged, count)[rows].flatten(0, 1)
        else:
            signal, arranged = signal[rows], arranged[rows]
        first, second = (arranged, signal) if self.transposed else (signal, arranged)
        found = weight_gradients(first, second, self.view.size, self.window)
        return split(found, 0, -1, fold).sum(1) if fold > 1 else found

    def input_moment(self, place: Place, reduce: bool) -> tuple[Tensor, int]:
        """See :class:`Kronecker`; the rows are the unfolded patches."""
        kernel, some = self.view.size[2:], chunks(len(self.signal), self.entries)
        if reduce:
            means = [patches(self.signal[rows], kernel, self.window).mean(-1) for rows in some]
            found = self._of_examples(torch.cat(means), place).mean(1).permute(1, 2, 0)
            return found @ found.mT, found.shape[-1]
        total, number = None, 0
        for rows in some:
            found = columns(self.signal[rows], kernel, self.window)
            number += found.shape[-1]
            moment = found @ found.mT
            total = moment if total is None else total.add_(moment)
        assert total is not None
        return total, number

    def output_moment(self, arranged: Tensor, place: Place, reduce: bool) -> Tensor:
        """See :class:`Kronecker`."""
        found = arranged.flatten(2)
        if reduce:
            found = self._of_examples(found.sum(-1), place).sum(1).t()
        else:
            found = found.transpose(0, 1).flatten(1)
        found = split(found, 0, self.window.groups, -1)
        return found @ found.mT

    @staticmethod
    def _of_examples(rows: Tensor, place: Place) -> Tensor:
        """What was convolved, in a dimension behind the examples: one row, or those folded in."""
        fold = len(rows) // place.examples
        return place.layout.spread(rows, place.examples) if fold > 1 else rows.unsqueeze(1)


@final
@dataclass(frozen=True, eq=False)
class Lookup(Kronecker):
    """Rows of a table, ``(entries, width)``, by index.

    Attributes:
        index: int64, shape ``leading``.
        padding: An index whose row gets no gradient, or -1.
    """

    index: Tensor
    padding: int = -1

    def arranged(self, cotangent: Tensor, place: Place) -> Tensor:
        """Shape ``(examples, positions, width)``, zero where the padding index was."""
        if self.padding >= 0:
            cotangent = cotangent.masked_fill((self.index == self.padding).unsqueeze(-1), 0)
        return place.spread(cotangent).flatten(1, -2)

    def arranged_index(self, place: Place) -> Tensor:
        """Shape ``(examples, positions)``."""
        return place.spread(self.index).flatten(1)

    def gradients(self, arranged: Tensor, place: Place, rows: slice) -> Tensor:
        """See :class:`Part`."""
        given, index = arranged[rows], self.arranged_index(place)[rows]
        found = given.new_zeros(len(given), *self.view.size)
        return found.scatter_add_(1, index.unsqueeze(-1).expand_as(given), given)

    def squares(self, arranged: Tensor, place: Place) -> Tensor:
        """See :class:`Part`; only the rows that were looked up are summed."""
        index, entries = self.arranged_index(place), self.view.size[0]
        offset = torch.arange(place.examples, device=index.device).unsqueeze(1) * entries
        pairs, where = torch.unique(index + offset, return_inverse=True)
        width = arranged.shape[-1]
        summed = arranged.new_zeros(len(pairs), width)
        summed.index_add_(0, where.flatten(), arranged.reshape(-1, width))
        return arranged.new_zeros(entries, width).index_add_(0, pairs % entries, summed.square_())

    def input_moment(self, place: Place, reduce: bool) -> tuple[Tensor, int]:
        """See :class:`Kronecker`: how often each row was looked up, the same to reduce."""
        counts = torch.bincount(self.index.flatten(), minlength=self.view.size[0])
        if self.padding >= 0:
            # Its cotangents are zero: counted, it would thin those of the others.
            counts[self.padding] = 0
        return counts, int(counts.sum())

    def output_moment(self, arranged: Tensor, place: Place, reduce: bool) -> Tensor:
        """See :class:`Kronecker`; positions have different rows, so none are summed."""
        return _outer(arranged.flatten(0, 1))


@dataclass(frozen=True, eq=False)
class Broadcast(Part):
    """An elementwise use: the gradient is the cotangent, times a factor, summed where broadcast.

    Attributes:
        factor: What the parameter is multiplied by, broadcasting against the output; None for 1.
        cut: ``(dimension, start, length)`` of the output that shows the parameter, or None.
    """

    factor: Tensor | float | None = None
    cut: tuple[int, int, int] | None = None

    def arranged(self, cotangent: Tensor, place: Place) -> Tensor:
        """Gradients of all examples: the shape of the view is all that is left of the output."""
        if self.cut is not None:
            cotangent = cotangent.narrow(*self.cut)
        given = place.spread(cotangent if self.factor is None else cotangent * self.factor)
        extra = given.ndim - 1 - len(self.view.size)
        if extra:
            given = given.sum(tuple(range(1, 1 + extra)))
        sizes = self.view.size
        over = [
            axis + 1
            for axis, size in enumerate(sizes)
            if size == 1 and given.ndim > axis + 1 and given.shape[axis + 1] > 1
        ]
        return given.sum(over, keepdim=True) if over else given

    def gradients(self, arranged: Tensor, place: Place, rows: slice) -> Tensor:
        """See :class:`Part`."""
        return arranged[rows].clone()

    def squares(self, arranged: Tensor, place: Place) -> Tensor:
        """See :class:`Part`."""
        return arranged.square().sum(0)


@final
@dataclass(frozen=True, eq=False)
class Bias(Kronecker):
    """A bias of a matrix product or a convolution.

    Attributes:
        axis: The dimension of the output that holds the units; 1 or -1.
        groups: Groups of the convolution it belongs to.
    """

    axis: int = -1
    groups: int = 1

    def arranged(self, cotangent: Tensor, place: Place) -> Tensor:
        """Shape ``(examples, positions, outputs)``."""
        if self.axis == -1:
            return place.spread(cotangent).flatten(1, -2)
        return place.spread(cotangent).movedim(2, -1).flatten(1, -2)

    def gradients(self, arranged: Tensor, place: Place, rows: slice) -> Tensor:
        """See :class:`Part`."""
        return arranged[rows].sum(1)

    def squares(self, arranged: Tensor, place: Place) -> Tensor:
        """See :class:`Part`."""
        return arranged.sum(1).square_().sum(0)

    def squares_of(self, squared: Tensor, place: Place) -> Tensor:
        """As :meth:`Dense.squares_of`."""
        return squared[:, 0].sum(0)

    def input_moment(self, place: Place, reduce: bool) -> None:
        """See :class:`Kronecker`."""

    def output_moment(self, arranged: Tensor, place: Place, reduce: bool) -> Tensor:
        """See :class:`Kronecker`."""
        rows = arranged.sum(1) if reduce else arranged.flatten(0, 1)
        by_group = split(rows, -1, self.groups, -1).movedim(1, 0)
        return by_group.mT @ by_group
