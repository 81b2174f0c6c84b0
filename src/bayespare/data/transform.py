"""What turns raw inputs into a network's inputs; fitted on training data, kept with the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from bayespare.data.place import Place
from bayespare.data.standardize import Standardize
from bayespare.data.table import Table
from bayespare.data.table_transform import TableTransform
from bayespare.errors import BayespareError


class Transform(Protocol):
    """A fitted transform: :class:`Standardize` for arrays, ``TableTransform`` for tables."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the flattened inputs; ``()`` for images."""
        ...

    @property
    def feature_groups(self) -> tuple[int, ...] | None:
        """Source column of each input of a table; ``None`` if each input stands alone."""
        ...

    def as_stored(self) -> Transform:
        """The same without means and deviations."""
        ...

    def apply(self, x: np.ndarray | Table, place: Place) -> Tensor:
        """Turn raw examples into float32 inputs, shape ``(N, ...)``."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the transform as JSON-ready lists and strings, with its ``kind``."""
        ...


def transform_from_json(data: Mapping[str, Any]) -> Transform:
    """Rebuild what the ``to_json`` of any transform wrote.

    Raises:
        BayespareError: If it is damaged.
    """
    try:
        kind = data["kind"]
    except (KeyError, TypeError) as error:
        raise BayespareError(f"the stored transform is damaged: {error!r}") from error
    if kind == "standardize":
        return Standardize.from_json(data)
    if kind == "table":
        return TableTransform.from_json(data)
    raise BayespareError(f"the stored transform is damaged: kind {kind!r}")
