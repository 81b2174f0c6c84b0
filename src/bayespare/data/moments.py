"""Which columns vary at all: a deviation that is no more than rounding is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

COMPUTED = 16 * float(np.finfo(np.float64).eps)
"""Share of the mean by which numbers that should be alike differ after some arithmetic."""

DOUBTFUL = 1e-9
"""A deviation below this share of the mean may owe much to the rounding of the mean itself."""


class Moments(NamedTuple):
    """Means and deviations of columns.

    Attributes:
        mean: Shape ``(J,)``.
        std: Shape ``(J,)``; 1 where a column is constant.
        constant: Which columns vary by no more than rounding, shape ``(J,)``.
    """

    mean: np.ndarray
    std: np.ndarray
    constant: np.ndarray


def settled(
    mean: np.ndarray,
    std: np.ndarray,
    column: Callable[[int], np.ndarray],
    *,
    stored: np.dtype | type = np.float64,
    weight: np.ndarray | None = None,
) -> Moments:
    """Tell constant columns from those that vary little beside a large offset.

    Columns in doubt are measured again as differences from their first value, which are exact: so
    timestamps of one hour vary, and a constant whose mean cannot be written does not.

    Args:
        mean: Of each column, shape ``(J,)``.
        std: Of each column, shape ``(J,)``.
        column: Gives the values of a column, float64, by its number.
        stored: Type that the values had where they came from: differences by its rounding are none.
        weight: How often each value counts.
    """
    mean, std = mean.copy(), std.copy()
    for i in np.flatnonzero(std <= DOUBTFUL * np.abs(mean)):
        values = column(int(i)).ravel()
        rest = values - values[0]
        scale = np.abs(rest).max() or 1.0  # squares of very small numbers would be zero
        rest /= scale
        shift = np.average(rest, weights=weight)
        std[i] = scale * np.sqrt(np.average((rest - shift) ** 2, weights=weight))
        mean[i] = values[0] + scale * shift
    kind = np.dtype(stored)
    rounding = max(COMPUTED, float(np.finfo(kind).eps) if kind.kind == "f" else 0.0)
    constant = std <= rounding * np.abs(mean)
    return Moments(mean, np.where(constant, 1.0, std), constant)
