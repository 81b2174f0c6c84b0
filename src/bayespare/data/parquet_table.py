"""Tables in Parquet files."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from bayespare.data.place import reason
from bayespare.data.raw import check_memory
from bayespare.data.table import Table
from bayespare.errors import BayespareError


def read_parquet(path: Path) -> Table:
    """Read a Parquet table of numbers, booleans and text; nulls and NaN are missing values.

    Raises:
        BayespareError: If pyarrow is not installed, the file is damaged, or a column is of
            another type.
    """
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise BayespareError(
            f"{path}: reading Parquet needs pyarrow, which is not installed: "
            "pip install 'bayespare[tables]'"
        ) from error
    try:
        # One file, opened here: a path would let Arrow look for a whole partitioned folder.
        with path.open("rb") as file:
            table = parquet.ParquetFile(file)
            check_memory(path, 8 * table.metadata.num_rows * table.metadata.num_columns)
            columns, unread = _columns(arrow, path, table.read())
            return Table(str(path), columns, typed=True, unread=unread)
    except OSError as error:
        # Arrow's own input errors are of this class, too.
        what = "damaged or not Parquet" if error.errno is None else "cannot be read"
        raise BayespareError(f"{path}: {what} ({reason(error)})") from error
    except (arrow.ArrowException, ValueError, OverflowError, MemoryError) as error:
        raise BayespareError(f"{path}: damaged or not Parquet ({reason(error)})") from error


def _columns(arrow: Any, path: Path, table: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The values of every column, and why some are not read: those are refused where used."""
    if not table.num_rows or not table.num_columns:
        raise BayespareError(f"{path}: the table has no rows")
    columns: dict[str, np.ndarray] = {}
    unread: dict[str, str] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in columns:
            raise BayespareError(f"{path}: two columns are called {name!r}")
        values = _values(arrow, column)
        if values is None:
            unread[name] = (
                f"is of type {column.type}: write it as numbers, text or booleans, or leave it out "
                f"(drop={name})"
            )
        columns[name] = np.full(len(column), None, dtype=object) if values is None else values
    return columns, unread


def _values(arrow: Any, column: Any) -> np.ndarray | None:
    types = arrow.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if types.is_decimal(kind):
        column = column.cast(arrow.float64())
        kind = column.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind):
        if types.is_boolean(kind) and not column.null_count:
            return np.asarray(column.to_pylist(), dtype=np.bool_)
        values = np.empty(len(column), dtype=object)
        values[:] = [None if value is None else str(value) for value in column.to_pylist()]
        return values
    if types.is_integer(kind) and not column.null_count:
        return np.asarray(column.to_numpy())
    if types.is_integer(kind) or types.is_floating(kind):
        return np.asarray(column.cast(arrow.float64(), safe=False).to_numpy(), dtype=np.float64)
    return None
