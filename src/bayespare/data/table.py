"""Tables as read: named columns, not yet numbers for a network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bayespare.data.place import Place, hint, quote
from bayespare.errors import BayespareError

MISSING = frozenset({"", "NA", "N/A", "na", "n/a", "NaN", "nan", "NULL", "null", "?"})
"""Cells of a text file that stand for a missing value."""

NO_CATEGORIES = {
    re.compile(r"[+-]?\d+(,\d+)?"): "numbers with commas; write them as 1234.5",
    re.compile(
        r"(\d{4}-\d\d-\d\d|\d{4}/\d\d?/\d\d?|\d\d?([./])\d\d?\2\d{4})([ T]\d\d?:\d\d.*)?"
    ): "dates; write what matters of them as numbers",
}
"""Texts that say how much or when, and what to do: as categories each would stand for itself."""


@dataclass(frozen=True, eq=False)
class Table:
    """Named columns of equal length.

    Attributes:
        path: The file, for error messages.
        columns: Name to values: integers, floats (NaN: missing), booleans, or an object array of
            ``str`` and None (missing).
        typed: Whether the file says which columns are text (Parquet does, CSV does not: there a
            column is numeric if all its cells are).
        lines: Line of each row in a text file.
        unread: Why a column cannot be read, by name; its values are None.
    """

    path: str
    columns: Mapping[str, np.ndarray]
    typed: bool
    lines: Sequence[int] | None = None
    unread: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def place(self, name: str) -> Place:
        """Where the values of a column came from."""
        return Place(f"{self.path}: column {name!r}", self.lines)

    def column(self, name: str) -> np.ndarray:
        """The values of a column as they were read.

        Raises:
            BayespareError: If there is no such column, or it is of a type that is not read.
        """
        if name in self.unread:
            raise BayespareError(f"{self.path}: column {name!r} {self.unread[name]}")
        if name not in self.columns:
            raise BayespareError(
                f"{self.path}: there is no column {name!r}{hint(name, self.columns)}"
            )
        return self.columns[name]

    def is_numeric(self, name: str) -> bool:
        """Whether a column holds numbers.

        Raises:
            BayespareError: If it has no values at all, nearly all its cells are numbers and some
                are not (a slip, rather than a category), or all are dates or have decimal commas.
        """
        values = self.column(name)
        if values.dtype.kind != "O":
            return values.dtype.kind in "iuf"
        present = [cell for cell in values if cell is not None]
        if not present:
            raise BayespareError(f"{self.place(name)} has no values")
        wrong = [cell for cell in present if parse_number(cell) is None]
        few = len(wrong) <= 0.1 * len(present) and len(set(present)) > 20
        if wrong and few and not self.typed:
            row = int(np.argmax(values == wrong[0]))
            raise BayespareError(
                f"{self.place(name).row(row)}: {quote(wrong[0])} is not a number, "
                "as nearly all others in the column are"
            )
        for form, are in NO_CATEGORIES.items():
            if wrong and all(form.fullmatch(cell) for cell in present):
                raise BayespareError(
                    f"{self.place(name)}: {quote(wrong[0])} and all others are {are}, or leave "
                    f"the column out (drop={name})"
                )
        return not (wrong or self.typed)

    def numbers(self, name: str) -> np.ndarray:
        """A column as float64, missing values as NaN.

        Raises:
            BayespareError: If a cell is not a number, or is infinite.
        """
        values = self.column(name)
        if values.dtype.kind == "O":
            parsed = [np.nan if cell is None else parse_number(cell) for cell in values]
            if None in parsed:
                row = parsed.index(None)
                raise BayespareError(
                    f"{self.place(name).row(row)}: {quote(values[row])} is not a number"
                )
            values = np.array(parsed, dtype=np.float64)
        numbers = values.astype(np.float64)
        if np.isinf(numbers).any():
            raise BayespareError(
                f"{self.place(name).row(int(np.isinf(numbers).argmax()))}: the value is infinite"
            )
        return numbers

    def words(self, name: str) -> np.ndarray:
        """A column as an object array of ``str``, missing values as None."""
        values = self.column(name)
        if values.dtype.kind == "O":
            return values
        words = np.empty(len(values), dtype=object)
        words[:] = [_word(value) for value in values.tolist()]
        return words

    def target(self, name: str) -> np.ndarray:
        """A column as raw target values: integers, floats, booleans or text, none missing.

        Raises:
            BayespareError: If a value is missing or infinite.
        """
        values = self.column(name)
        missing = is_missing(values)
        if missing.any():
            raise BayespareError(
                f"{self.place(name).row(int(missing.argmax()))}: the target is missing"
            )
        if values.dtype.kind == "O":
            if self.typed or not self.is_numeric(name):
                return values.astype(np.str_)
            whole = [_whole(cell) for cell in values]
            if None not in whole:
                return np.array(whole, dtype=np.int64)
        return self.numbers(name) if values.dtype.kind in "Of" else values


def is_missing(values: np.ndarray) -> np.ndarray:
    """Boolean mask of the None of text and the NaN of floats."""
    if values.dtype.kind == "O":
        return np.array([value is None for value in values], dtype=np.bool_)
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=np.bool_)


def parse_number(cell: str) -> float | None:
    """The number a cell holds, or None."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _whole(cell: str) -> int | None:
    digits = cell[1:] if cell[:1] in "+-" else cell
    return int(cell) if digits.isascii() and digits.isdigit() and len(digits) < 19 else None


def _word(value: float | bool) -> str | None:
    if isinstance(value, float):
        if value != value:
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)
