"""Arrays to inputs: one mean and deviation for all, per channel, or per feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayespare.data.moments import settled
from bayespare.data.place import Place
from bayespare.data.table import Table
from bayespare.errors import BayespareError


@dataclass(frozen=True)
class Standardize:
    """``(x / divisor - mean) / std`` for arrays: one mean for all, per channel, or per feature.

    Attributes:
        shape: Shape of one example.
        mean: One number, or as many as dimension 1 of the data has.
        std: As ``mean``; 1 where the training data are constant.
        divisor: 255 for pixels in bytes, so that mean and std are those of pixels in [0, 1].
        features: Names of the inputs, ``()`` if they have none.
        constant: Positions in ``mean`` of what varies by no more than rounding: it becomes 0.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    divisor: float = 1.0
    features: tuple[str, ...] = ()
    constant: tuple[int, ...] = ()

    @property
    def feature_groups(self) -> None:
        """Each input stands alone."""
        return None

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        *,
        per_channel: bool,
        divisor: float = 1.0,
        features: tuple[str, ...] = (),
    ) -> Standardize:
        """Measure mean and standard deviation of training data, in float64.

        Args:
            x: Shape ``(N, ...)``, any real type.
            per_channel: One mean for each index of dimension 1; otherwise one for everything.
            divisor: What the values are divided by first.
            features: Names of the inputs.

        Raises:
            BayespareError: If the values are too large for their variance to be a number.
        """
        channels = x.shape[1] if per_channel else 1
        count, mean, square = 0, np.zeros(channels), np.zeros(channels)
        axes = (0, *range(2, x.ndim)) if per_channel else None
        # In blocks, since a float64 copy of all the images would be eight times the data;
        # means and squares of blocks are merged as Chan, Golub and LeVeque (1979) do.
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(x), 4096):
                block = x[start : start + 4096].astype(np.float64) / divisor
                size = block.size // channels
                delta = block.mean(axis=axes) - mean
                square += block.var(axis=axes) * size + delta**2 * (count * size / (count + size))
                mean += delta * (size / (count + size))
                count += size
        if not np.isfinite(square).all():
            raise BayespareError("the training examples have too large values; scale them down")

        def channel(i: int) -> np.ndarray:
            return (x[:, i] if per_channel else x).astype(np.float64) / divisor

        found = settled(mean, np.sqrt(square / count), channel, stored=x.dtype)
        return cls(
            tuple(x.shape[1:]),
            tuple(found.mean.tolist()),
            tuple(found.std.tolist()),
            divisor,
            features,
            tuple(np.flatnonzero(found.constant).tolist()),
        )

    def as_stored(self) -> Standardize:
        """The same without mean and deviation: numbers as they are, pixels in bytes in [0, 1]."""
        zeros = tuple(0.0 for _ in self.mean)
        return replace(self, mean=zeros, std=tuple(1.0 for _ in self.std), constant=())

    def apply(self, x: np.ndarray | Table, place: Place) -> Tensor:
        """Standardise raw examples.

        Args:
            x: Shape ``(N, *shape)``, or a table with a column of numbers for each feature.
            place: Where they came from.

        Returns:
            float32, shape ``(N, *shape)``.

        Raises:
            BayespareError: If the examples have another shape than those the model was fitted
                on or another type, a column is missing, or a value is missing or too large.
        """
        if isinstance(x, Table):
            x = self._from_table(x)
        elif self.divisor != 1 and x.dtype != np.uint8:
            raise BayespareError(
                f"{place}: the model was fitted on bytes (0 to {self.divisor:g}), not on {x.dtype}"
            )
        if x.shape[1:] != self.shape:
            raise BayespareError(
                f"{place}: examples have shape {x.shape[1:]}, the model needs {self.shape}"
            )
        columns = (1, -1) + (1,) * (len(self.shape) - 1)
        mean = torch.tensor(self.mean, dtype=torch.float64).view(columns)
        std = torch.tensor(self.std, dtype=torch.float64).view(columns)
        if x.dtype == np.uint8:  # float32 in place: bytes have no offset that it would lose
            scale, shift = 1 / (self.divisor * std), mean / std
            inputs = torch.from_numpy(x.astype(np.float32))
            return self._silenced(inputs.mul_(scale.float()).sub_(shift.float()))
        exact = torch.from_numpy(x.astype(np.float64))
        inputs = ((exact / self.divisor - mean) / std).float()
        finite = torch.isfinite(inputs).reshape(len(inputs), -1).all(dim=1)
        if not finite.all():
            row = int(finite.to(torch.uint8).argmin())
            raise BayespareError(f"{place.row(row)} has too large values; scale them down")
        return self._silenced(inputs)

    def _silenced(self, inputs: Tensor) -> Tensor:
        """Zero, in place, where nothing could be learnt."""
        if self.constant:
            inputs[:, list(self.constant) if len(self.mean) > 1 else slice(None)] = 0.0
        return inputs

    def _from_table(self, table: Table) -> np.ndarray:
        if not self.features:
            raise BayespareError(
                f"{table.path}: the model was fitted on arrays of shape {self.shape}, not a table"
            )
        columns = []
        for name in self.features:
            numbers = table.numbers(name)
            if np.isnan(numbers).any():
                row = int(np.isnan(numbers).argmax())
                raise BayespareError(f"{table.place(name).row(row)}: the value is missing")
            columns.append(numbers)
        return np.stack(columns, axis=1)

    def to_json(self) -> dict[str, Any]:
        """Return the transform as JSON-ready lists and strings."""
        return {
            "kind": "standardize",
            "shape": list(self.shape),
            "mean": list(self.mean),
            "std": list(self.std),
            "divisor": self.divisor,
            "features": list(self.features),
            "constant": list(self.constant),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Standardize:
        """Rebuild what :meth:`to_json` wrote.

        Raises:
            BayespareError: If a field is missing or makes no sense.
        """
        try:
            made = cls(
                tuple(int(v) for v in data["shape"]),
                tuple(float(v) for v in data["mean"]),
                tuple(float(v) for v in data["std"]),
                float(data["divisor"]),
                tuple(str(v) for v in data["features"]),
                tuple(int(v) for v in data.get("constant", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BayespareError(f"the stored transform is damaged: {error!r}") from error
        numbers = np.array([*made.mean, *made.std, made.divisor])
        fits = bool(made.shape) and len(made.mean) == len(made.std) in (1, made.shape[0])
        fits &= set(made.constant) <= set(range(len(made.mean)))
        if not fits or not np.isfinite(numbers).all() or min(*made.std, made.divisor) <= 0:
            raise BayespareError("the stored transform is damaged: its numbers do not fit together")
        return made
