"""Where the examples of a batch lie in the tensors of a running model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


def split(tensor: Tensor, axis: int, *sizes: int) -> Tensor:
    """Cut one dimension into several (``Tensor.unflatten``, which is not typed)."""
    axis %= tensor.ndim
    return tensor.reshape(*tensor.shape[:axis], *sizes, *tensor.shape[axis + 1 :])


@dataclass(frozen=True)
class Layout:
    """The dimension along which examples lie.

    Attributes:
        axis: The dimension.
        split: Empty when the dimension holds the examples and nothing else; ``major`` when it is
            (example, position) flattened, ``minor`` when it is (position, example) flattened.
    """

    axis: int
    split: Literal["", "major", "minor"] = ""

    def spread(self, tensor: Tensor, examples: int) -> Tensor:
        """Return the tensor with the examples first and the old dimension holding the rest.

        Args:
            tensor: Laid out like this.
            examples: How many there are.

        Returns:
            Shape ``(examples, *tensor.shape)`` with ``axis`` (counted without the first dimension)
            of size 1, or of the number of positions that were flattened into it.
        """
        axis = self.axis
        if not self.split:
            return tensor.movedim(axis, 0).unsqueeze(axis + 1)
        if self.split == "major":
            return split(tensor, axis, examples, -1).movedim(axis, 0)
        return split(tensor, axis, -1, examples).movedim(axis + 1, 0)


def candidates(shape: tuple[int, ...], examples: int, leading: int) -> list[Layout]:
    """The layouts that a tensor of this shape can have, the most usual first.

    Args:
        shape: Of the tensor.
        examples: Examples in the batch.
        leading: How many of the first dimensions examples may lie along.
    """
    found = [Layout(axis) for axis in range(leading) if shape[axis] == examples]
    for axis in range(leading):
        if shape[axis] > examples and shape[axis] % examples == 0:
            found += [Layout(axis, "major"), Layout(axis, "minor")]
    return found


@dataclass(frozen=True)
class Place:
    """A layout and the number of examples of one batch."""

    layout: Layout
    examples: int

    def spread(self, tensor: Tensor) -> Tensor:
        """See :meth:`Layout.spread`."""
        return self.layout.spread(tensor, self.examples)
