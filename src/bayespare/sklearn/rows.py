"""From arrays to the data of a run: rows merged, columns scaled, features grouped."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bayespare.data.moments import settled
from bayespare.errors import BayespareError


class EstimatorError(BayespareError, ValueError):
    """Bad input or settings of an estimator: what scikit-learn's users catch as ValueError."""


def plain(value: Any) -> Any:
    """A label or name as Python has it: NumPy writes its own as ``np.str_('a')``."""
    return value.item() if isinstance(value, np.generic) else value


class Rows(NamedTuple):
    """Distinct rows.

    Attributes:
        x: Inputs, float64, shape ``(N, J)``.
        y: Targets, float64 or int64, shape ``(N,)``.
        weight: How often each row counts, float64, shape ``(N,)``.
    """

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray


def merged(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Rows:
    """Merge rows that are alike in inputs and target, and drop those of weight zero.

    A row of weight two is the same as two rows, and their order says nothing: so it is in the
    likelihood, and with rows in an order of their own it is so for the fit too. Copies of a row
    cannot end up on both sides of the validation split.

    Args:
        x: Inputs, float64, shape ``(N, J)``.
        y: Targets, shape ``(N,)``.
        weight: 0 or more, shape ``(N,)``.

    Raises:
        EstimatorError: If no row has a positive weight.
    """
    there = weight > 0
    if not there.any():
        raise EstimatorError("sample_weight: every row has weight zero")
    x, y, weight = x[there], y[there], weight[there]
    # Adding zero makes -0.0 and 0.0 the same bytes.
    table = np.ascontiguousarray(np.column_stack([x, y]) + 0.0)
    keys = table.view(np.dtype((np.void, table.dtype.itemsize * table.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return Rows(x[first], y[first], np.bincount(inverse, weights=weight))


@dataclass(frozen=True)
class Scaling:
    """Standardisation with the weighted moments of the training rows.

    Attributes:
        mean: Shape ``(J,)``.
        std: Shape ``(J,)``; 1 where a column is constant.
        constant: Which columns are, shape ``(J,)``.
    """

    mean: np.ndarray
    std: np.ndarray
    constant: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, weight: np.ndarray) -> Scaling:
        """Measure the columns.

        Raises:
            EstimatorError: If the values of a column are too large to be squared.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.average(x, axis=0, weights=weight)
            std = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight))
        wrong = ~np.isfinite(mean) | ~np.isfinite(std)
        if wrong.any():
            raise EstimatorError(f"column {int(wrong.argmax())}: its values are too large")
        return cls(*settled(mean, std, lambda i: x[:, i], weight=weight))

    def apply(self, x: np.ndarray) -> Tensor:
        """Scaled inputs, float64, shape ``(N, J)``; constant columns give zeros."""
        scaled = (x - self.mean) / self.std
        scaled[:, self.constant] = 0.0
        return torch.from_numpy(scaled)


def group_numbers(
    groups: Iterable[Any] | None, count: int, names: Sequence[str] | None
) -> tuple[int, ...]:
    """Number the groups of features in the order of their first column.

    Args:
        groups: One label for each feature (equal labels are one group), or lists of names or
            positions; features that are in no list are alone. None: every feature alone.
        count: Number of features.
        names: Of the features, where they have any.

    Raises:
        EstimatorError: If a feature is unknown or in two lists, or the labels do not fit.
    """
    labels: list[Hashable] = [("alone", i) for i in range(count)]
    if groups is not None:
        items = list(groups)
        nested = [isinstance(item, list | tuple | set | frozenset | np.ndarray) for item in items]
        if any(nested) and not all(nested):
            raise EstimatorError("groups: give one label for each feature, or lists of features")
        if items and all(nested):
            _collect(labels, items, names)
        elif len(items) != count:
            raise EstimatorError(f"groups: {len(items)} labels for {count} features")
        else:
            labels = [("label", label) for label in items]
    numbers: dict[Hashable, int] = {}
    return tuple(numbers.setdefault(label, len(numbers)) for label in labels)


def _collect(
    labels: list[Hashable], lists: Sequence[Iterable[Any]], names: Sequence[str] | None
) -> None:
    """Give the members of each list one label, in place."""
    position = {} if names is None else {name: i for i, name in enumerate(names)}
    for number, members in enumerate(lists):
        for member in members:
            column = position.get(member, member) if isinstance(member, str) else member
            if not isinstance(column, int | np.integer) or not 0 <= column < len(labels):
                raise EstimatorError(f"groups: there is no feature {plain(member)!r}")
            if labels[column] != ("alone", column):
                raise EstimatorError(f"groups: feature {plain(member)!r} is named twice")
            labels[column] = ("list", number)
