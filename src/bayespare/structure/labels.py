"""What a traced tensor carries: which unit each of its elements belongs to.

A tensor of shape ``(N, C, H, W)`` whose channels are units carries an int64 array of shape
``(1, C, 1, 1)``: one id per channel, size 1 along every dimension on which the owner does not
depend. Only the dimensions that matter are stored, so labels stay small whatever the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int64]
NOBODY = -1
UNSEEN = -2


@dataclass(frozen=True)
class Ref:
    """A parameter or buffer, or a rearranged view of one or of a part of one.

    Attributes:
        name: Its name in the model.
        dims: For each dimension of the view the dimension of the stored tensor it shows, or
            None for a dimension that shows none of them in order.
        starts: For each dimension of the view where in the stored dimension it begins; ``()``
            when all begin at 0.
    """

    name: str
    dims: tuple[int | None, ...]
    starts: tuple[int, ...] = ()

    def start(self, axis: int) -> int:
        """Where in the stored dimension a dimension of the view begins."""
        return self.starts[axis] if self.starts else 0

    def pick(self, order: Sequence[int | None]) -> Ref:
        """The view whose dimensions are those of this one, in that order; None is a new one."""
        dims = tuple(None if axis is None else self.dims[axis] for axis in order)
        return self._at(dims, tuple(0 if axis is None else self.start(axis) for axis in order))

    def part(self, axis: int, begin: int) -> Ref:
        """The view that begins so much later along one dimension."""
        starts = [self.start(a) + begin * (a == axis) for a in range(len(self.dims))]
        return self._at(self.dims, tuple(starts))

    def without_order(self, axis: int) -> Ref:
        """The view in which one dimension no longer shows stored entries one by one."""
        return self.pick([None if a == axis else a for a in range(len(self.dims))])

    def _at(self, dims: tuple[int | None, ...], starts: tuple[int, ...]) -> Ref:
        return Ref(self.name, dims, starts if any(starts) else ())


Value: TypeAlias = Ids | Ref | None


def varying(ids: Ids) -> list[int]:
    """Dimensions along which the owner changes."""
    return [axis for axis, size in enumerate(ids.shape) if size > 1]


def align(ids: Ids, ndim: int) -> Ids:
    """Add leading dimensions, as broadcasting does."""
    return ids if ids.ndim == ndim else ids.reshape((1,) * (ndim - ids.ndim) + ids.shape)


def along(ids: Ids, axis: int, size: int) -> Ids:
    """Spell the ids out along one dimension of the given size."""
    shape = list(ids.shape)
    shape[axis] = size
    return np.broadcast_to(ids, shape)


def compress(ids: Ids) -> Ids:
    """Reduce to size 1 every dimension along which the ids do not change."""
    for axis in varying(ids):
        first = ids.take([0], axis)
        if (ids == first).all():
            ids = first
    return ids


def reshape(ids: Ids, old: Sequence[int], new: Sequence[int]) -> Ids:
    """Follow a view from shape ``old`` to shape ``new``.

    Dimensions that merge with an owned one are spelt out first, so that a channel of
    ``(C, H, W)`` becomes ``H * W`` columns; a split along which nothing changes undoes that.
    """
    spelt = [1] * len(old)
    shape = [1] * len(new)
    for before, after in _blocks(old, new):
        if any(ids.shape[axis] > 1 for axis in before):
            for axis in before:
                spelt[axis] = old[axis]
            for axis in after:
                shape[axis] = new[axis]
    return compress(np.broadcast_to(ids, spelt).reshape(shape))


def reshape_ref(ref: Ref, old: Sequence[int], new: Sequence[int]) -> Ref:
    """Follow a view of a parameter; dimensions that merge or split are no longer shown."""
    order: list[int | None] = [None] * len(new)
    for before, after in _blocks(old, new):
        wide_before = [axis for axis in before if old[axis] > 1]
        wide_after = [axis for axis in after if new[axis] > 1]
        if len(wide_before) == len(wide_after) == 1:
            order[wide_after[0]] = wide_before[0]
    return ref.pick(order)


def _blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Smallest runs of dimensions of equal product on both sides of a view."""
    i = j = 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        yield range(start_i, i), range(start_j, j)
