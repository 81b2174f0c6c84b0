"""Tables to inputs: numbers standardised, categories one-hot, missing values imputed if asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bayespare.data.moments import settled
from bayespare.data.place import Place, hint, quote
from bayespare.data.table import Table, is_missing
from bayespare.errors import BayespareError, did_you_mean

Impute = Literal["mean", "median"]

MAX_CATEGORIES = 1000


@dataclass(frozen=True)
class NumberColumn:
    """A numeric column: one input, ``(value - mean) / std``, or 0 for a constant column.

    Attributes:
        name: Name of the column.
        mean: Mean of the training rows.
        std: Their standard deviation; 1 for a constant column.
        fill: What stands for a missing value; None refuses it.
        constant: Whether the training rows vary by no more than rounding.
    """

    name: str
    mean: float
    std: float
    fill: float | None
    constant: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """The name of the one input."""
        return (self.name,)

    @classmethod
    def fit(cls, table: Table, name: str, rows: np.ndarray, impute: Impute | None) -> NumberColumn:
        """Measure the training rows (a boolean mask), missing values filled."""
        values = table.numbers(name)
        fill = None
        if impute is not None:
            present = values[rows & ~np.isnan(values)]
            if not len(present):
                raise BayespareError(f"{table.place(name)} has no values in the training rows")
            fill = float(np.mean(present) if impute == "mean" else np.median(present))
        values = _filled(values, fill, table.place(name))[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = float(values.mean()), float(values.std())
        if not np.isfinite([mean, std]).all():
            raise BayespareError(f"{table.place(name)}: the values are too large")
        moments = settled(
            np.array([mean]),
            np.array([std]),
            lambda _: values,
            stored=np.float64 if table.column(name).dtype == object else table.column(name).dtype,
        )
        return cls(
            name, moments.mean.item(), moments.std.item(), fill, bool(moments.constant.item())
        )

    def encode(self, table: Table) -> np.ndarray:
        """Inputs of shape ``(N, 1)``."""
        place = table.place(self.name)
        values = _filled(table.numbers(self.name), self.fill, place)
        with np.errstate(over="ignore"):
            inputs = ((values - self.mean) / self.std).astype(np.float32)
        if not np.isfinite(inputs).all():
            row = int(np.argmin(np.isfinite(inputs)))
            raise BayespareError(f"{place.row(row)}: {values[row]} is too large")
        return np.zeros_like(inputs)[:, None] if self.constant else inputs[:, None]


@dataclass(frozen=True)
class CategoryColumn:
    """A column of text or booleans: one input of 0 or 1 for each category.

    Attributes:
        name: Name of the column.
        categories: All values of the column when the model was fitted, sorted.
        fill: What stands for a missing value; None refuses it.
    """

    name: str
    categories: tuple[str, ...]
    fill: str | None

    @property
    def features(self) -> tuple[str, ...]:
        """``colour=blue``, ``colour=red``, ..."""
        return tuple(f"{self.name}={category}" for category in self.categories)

    @classmethod
    def fit(
        cls, table: Table, name: str, rows: np.ndarray, impute: Impute | None
    ) -> CategoryColumn:
        """List the categories of the whole table; the most frequent training one fills."""
        values = table.words(name)
        missing = is_missing(values)
        categories = sorted(set(values[~missing]))
        many = len(categories) > max(20, len(table) // 2) or len(categories) > MAX_CATEGORIES
        if not categories or many:
            raise BayespareError(
                f"{table.place(name)} has {len(categories)} distinct texts in {len(table)} rows: "
                f"these are no categories; leave it out (drop={name}), or write numbers"
            )
        fill = None
        if impute is not None:
            present = list(values[rows & ~missing])
            if not present:
                raise BayespareError(f"{table.place(name)} has no values in the training rows")
            fill = max(categories, key=Counter(present).__getitem__)
        return cls(name, tuple(categories), fill)

    def encode(self, table: Table) -> np.ndarray:
        """Inputs of shape ``(N, number of categories)``."""
        place = table.place(self.name)
        values = _filled(table.words(self.name), self.fill, place)
        index = {category: i for i, category in enumerate(self.categories)}
        codes = np.array([index.get(value, -1) for value in values], dtype=np.int64)
        if (codes < 0).any():
            row = int(np.argmax(codes < 0))
            raise BayespareError(
                f"{place.row(row)}: {quote(values[row])} is not one of the categories the model "
                f"was fitted on{hint(values[row], self.categories)}"
            )
        return np.eye(len(self.categories), dtype=np.float32)[codes]


def _filled(values: np.ndarray, fill: float | str | None, place: Place) -> np.ndarray:
    missing = is_missing(values)
    if not missing.any():
        return values
    if fill is None:
        raise BayespareError(
            f"{place.row(int(missing.argmax()))}: the value is missing; fill it in, or fit with "
            "impute=mean or impute=median"
        )
    filled = values.copy()
    filled[missing] = fill
    return filled


Column = NumberColumn | CategoryColumn


@dataclass(frozen=True)
class TableTransform:
    """What each column of a table becomes.

    Attributes:
        columns: In the order of the inputs; a new table may have another order, and more columns.
    """

    columns: tuple[Column, ...]

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the inputs: ``age``, ``colour=red``."""
        return tuple(feature for column in self.columns for feature in column.features)

    @property
    def feature_groups(self) -> tuple[int, ...]:
        """For each input the number of its source column."""
        return tuple(i for i, column in enumerate(self.columns) for _ in column.features)

    @classmethod
    def fit(
        cls,
        table: Table,
        rows: np.ndarray,
        *,
        target: str,
        impute: Impute | None = None,
        drop: Sequence[str] = (),
    ) -> TableTransform:
        """Learn from the training rows of a table.

        Means, deviations and fills come from the training rows alone. Which columns are numeric
        and which categories exist is read off the whole table, so that a rare category may lie
        in the test rows only.

        Args:
            table: The whole table.
            rows: Boolean mask of the training rows, shape ``(len(table),)``.
            target: The column that is not an input.
            impute: How missing numbers are filled; missing categories become the most frequent
                one. None refuses missing values.
            drop: Columns that are no inputs either.

        Raises:
            BayespareError: If a value is missing or infinite, a text column has too many
                distinct values, there is nothing but the target, or no such column to drop.
        """
        if impute is not None and impute not in get_args(Impute):
            raise BayespareError(f"unknown impute={impute}{did_you_mean(impute, get_args(Impute))}")
        for name in set(drop) - table.unread.keys():
            table.column(name)
        if target in drop:
            raise BayespareError(f"{table.path}: drop={target}: that is the target")
        names = [name for name in table.columns if name not in {target, *drop}]
        if not names:
            left = f"no column but the target {target!r}" + (" and those dropped" if drop else "")
            raise BayespareError(f"{table.path}: there is {left}")
        return cls(
            tuple(
                (NumberColumn if table.is_numeric(name) else CategoryColumn).fit(
                    table, name, rows, impute
                )
                for name in names
            )
        )

    def as_stored(self) -> TableTransform:
        """The same with the numbers as they are."""
        return TableTransform(
            tuple(
                replace(column, mean=0.0, std=1.0, constant=False)
                if isinstance(column, NumberColumn)
                else column
                for column in self.columns
            )
        )

    def apply(self, x: np.ndarray | Table, place: Place) -> Tensor:
        """Turn a table into inputs.

        Args:
            x: A table with the columns the model was fitted on, in any order.
            place: Where it came from.

        Returns:
            float32, shape ``(N, number of features)``.

        Raises:
            BayespareError: If it is not a table, a column is missing, a value is missing or is
                not a number, or a category is new.
        """
        if not isinstance(x, Table):
            raise BayespareError(
                f"{place}: the model was fitted on a table with columns; give a .csv or .parquet"
            )
        for column in self.columns:
            x.column(column.name)
        inputs = np.empty((len(x), len(self.features)), dtype=np.float32)
        start = 0
        for column in self.columns:
            width = len(column.features)
            inputs[:, start : start + width] = column.encode(x)
            start += width
        return torch.from_numpy(inputs)

    def to_json(self) -> dict[str, Any]:
        """Return the transform as JSON-ready lists and strings."""
        columns: list[dict[str, Any]] = []
        for column in self.columns:
            kind = "number" if isinstance(column, NumberColumn) else "category"
            fields = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(column).items()}
            columns.append({"kind": kind, **fields})
        return {"kind": "table", "columns": columns}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TableTransform:
        """Rebuild what :meth:`to_json` wrote.

        Raises:
            BayespareError: If a field is missing or makes no sense.
        """
        try:
            columns = tuple(_column_from_json(column) for column in data["columns"])
        except (KeyError, TypeError, ValueError) as error:
            raise BayespareError(f"the stored table transform is damaged: {error!r}") from error
        return cls(columns)


def _column_from_json(data: Mapping[str, Any]) -> Column:
    name, fill = str(data["name"]), data["fill"]
    if data["kind"] == "category":
        categories = tuple(str(category) for category in data["categories"])
        if not categories or fill not in (None, *categories):
            raise ValueError(f"the categories of {name!r}")
        return CategoryColumn(name, categories, fill)
    mean, std = float(data["mean"]), float(data["std"])
    fill = None if fill is None else float(fill)
    if data["kind"] != "number" or not np.isfinite([mean, std, fill or 0.0]).all() or std <= 0:
        raise ValueError(f"the numbers of {name!r}")
    return NumberColumn(name, mean, std, fill, data.get("constant") is True)
