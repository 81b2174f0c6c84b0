"""Curvature as blocks keyed by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Tensor

from bayespare.bayes.sharded import is_sharded
from bayespare.errors import BayespareError


@dataclass(frozen=True, eq=False)
class KroneckerFactors:
    """A block ``output (x) input`` of the curvature of one parameter.

    A weight is read as a matrix ``(outputs, inputs)``, a convolution's kernel flattened into its
    inputs; with groups each group has its own block and all factors have a leading dimension.

    Attributes:
        output: Second moments of output cotangents, summed over data, ``([groups,] o, o)``.
        input: Second moments of inputs, mean over rows, ``([groups,] i, i)``; one-dimensional when
            diagonal (an embedding's token frequencies); None for a bias.
        rows: Rows of inputs the mean was taken over; weighted ones count by their weights.
        shape: Of the parameter.
        transposed: Whether the parameter is stored as ``(inputs, outputs)``.
    """

    output: Tensor
    input: Tensor | None
    rows: float
    shape: tuple[int, ...]
    transposed: bool = False

    def diagonal(self) -> Tensor:
        """The diagonal of the block, in the parameter's shape."""
        outputs = self.output.diagonal(dim1=-2, dim2=-1)
        if self.input is None:
            return outputs.reshape(self.shape)
        inputs = self.input if self._listed else self.input.diagonal(dim1=-2, dim2=-1)
        found = outputs.unsqueeze(-1) * inputs.unsqueeze(-2)
        return (found.mT if self.transposed else found).reshape(self.shape)

    @property
    def _listed(self) -> bool:
        return self.input is not None and self.input.ndim == 1

    def dense(self) -> Tensor:
        """The block, square over the parameter's entries in their stored order; for small ones."""
        outputs = self.output if self.output.ndim == 3 else self.output.unsqueeze(0)
        if self.input is None:
            inputs = outputs.new_ones(len(outputs), 1, 1)
        elif self._listed:
            inputs = self.input.diag().unsqueeze(0)
        else:
            inputs = self.input if self.input.ndim == 3 else self.input.unsqueeze(0)
        pairs = zip(outputs, inputs, strict=True)
        blocks = [torch.kron(a, b) if self.transposed else torch.kron(b, a) for b, a in pairs]
        found: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
        return found


@dataclass(frozen=True, eq=False)
class Curvature:
    """Curvature of the summed negative log likelihood; every trainable parameter has one block.

    Attributes:
        diagonal: Parameter name to its exact diagonal, the parameter's shape.
        factors: Parameter name to its Kronecker factors.
        examples: N, the examples summed over.
        unused: Parameters that the network does not use: their curvature is zero.
    """

    diagonal: Mapping[str, Tensor] = field(repr=False)
    factors: Mapping[str, KroneckerFactors] = field(repr=False)
    examples: int
    unused: tuple[str, ...] = ()

    def diagonals(self) -> dict[str, Tensor]:
        """The diagonal of every block, by parameter name."""
        return dict(self.diagonal) | {n: block.diagonal() for n, block in self.factors.items()}

    def scaled(self, by: float) -> Curvature:
        """The curvature of ``by`` times as many examples of the same kind."""
        diagonal = {name: block * by for name, block in self.diagonal.items()}
        outputs: dict[int, Tensor] = {}  # a bias has its weight's factor, and keeps it
        factors = {}
        for name, block in self.factors.items():
            output = outputs.setdefault(id(block.output), block.output * by)
            factors[name] = replace(block, output=output)
        return Curvature(diagonal, factors, round(by * self.examples), self.unused)

    def plus(self, other: Curvature) -> Curvature:
        """Curvature of both sets of examples.

        Raises:
            BayespareError: If the two do not have the same blocks.
        """
        if self.diagonal.keys() != other.diagonal.keys() or (
            self.factors.keys() != other.factors.keys()
        ):
            raise BayespareError("curvature: the two sums have blocks of different parameters")
        diagonal = {name: block + other.diagonal[name] for name, block in self.diagonal.items()}
        factors = {
            name: _joined(block, other.factors[name]) for name, block in self.factors.items()
        }
        unused = tuple(name for name in self.unused if name in other.unused)
        return Curvature(diagonal, factors, self.examples + other.examples, unused)


def _joined(first: KroneckerFactors, second: KroneckerFactors) -> KroneckerFactors:
    rows = first.rows + second.rows
    inputs = None
    if first.input is not None and second.input is not None:
        # An embedding may have seen padding alone.
        share = first.rows / rows if rows else 0.0
        inputs = first.input * share + second.input * (1 - share)
    output = first.output + second.output
    return KroneckerFactors(output, inputs, rows, first.shape, first.transposed)


def all_reduce(curvature: Curvature) -> Curvature:
    """Sum the curvature over the ranks of ``torch.distributed``; unchanged where there are none.

    Each rank gives the sum over its own examples and gets the sum over all. The blocks of a sharded
    model are such sums already.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return curvature
    if any(is_sharded(block) for block in curvature.diagonal.values()):
        return _counted(curvature)
    diagonal = {name: _summed(block) for name, block in curvature.diagonal.items()}
    factors = {}
    for name, block in curvature.factors.items():
        rows = _number(block.rows, block.output)
        inputs = block.input
        if inputs is not None:
            inputs = _summed(inputs * (block.rows / rows if rows else 0.0))
        factors[name] = KroneckerFactors(
            _summed(block.output), inputs, rows, block.shape, block.transposed
        )
    some = next(iter([*diagonal.values(), *(block.output for block in factors.values())]))
    unused = tuple(name for name in curvature.unused if not bool(diagonal[name].any()))
    return Curvature(diagonal, factors, round(_number(curvature.examples, some)), unused)


def _counted(curvature: Curvature) -> Curvature:
    """The curvature of a sharded model: its blocks are sums already, its examples one rank's."""
    some = next(iter(curvature.diagonal.values()))
    return replace(curvature, examples=round(_number(curvature.examples, some)))


def _summed(block: Tensor) -> Tensor:
    total = block.clone()
    dist.all_reduce(total)
    return total


def _number(number: float, like: Tensor) -> float:
    total = torch.tensor(number, dtype=torch.float64, device=like.device)
    dist.all_reduce(total)
    return float(total)
