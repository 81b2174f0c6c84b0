"""Tables in text files: commas, semicolons or tabs, names in the first line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TextIO

import numpy as np

from bayespare.data.place import quote, reason
from bayespare.data.table import MISSING, Table
from bayespare.errors import BayespareError

DELIMITERS = (",", ";", "\t")


def read_csv(path: Path) -> Table:
    """Read a text table; cells are stripped, and those in :data:`MISSING` become None.

    Raises:
        BayespareError: If the file cannot be read, has no rows, a line has too few or too many
            cells, or the names of the columns are not unique.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            names, rows, lines = _parse(path, file, max(DELIMITERS, key=lambda d: _count(first, d)))
    except UnicodeDecodeError as error:
        raise BayespareError(f"{path}: is not text in UTF-8 ({error.reason})") from error
    except OSError as error:
        raise BayespareError(f"{path}: cannot be read ({reason(error)})") from error
    if not rows:
        raise BayespareError(f"{path}: the table has no rows")
    columns = {}
    for name, cells in zip(names, zip(*rows, strict=True), strict=True):
        column = np.empty(len(rows), dtype=object)
        column[:] = [None if (cell := text.strip()) in MISSING else cell for text in cells]
        columns[name] = column
    return Table(str(path), columns, typed=False, lines=lines)


def _count(line: str, delimiter: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=delimiter), []))
    except csv.Error:
        return 0


def _check_names(path: Path, names: list[str]) -> None:
    if not any(names):
        raise BayespareError(f"{path}: the first line does not name the columns")
    for i, name in enumerate(names, start=1):
        if not name:
            raise BayespareError(
                f"{path}: column {i} has no name in the first line (an index? write it without)"
            )
        if name in names[: i - 1]:
            raise BayespareError(f"{path}: two columns are called {quote(name)}")


def _parse(
    path: Path, file: TextIO, delimiter: str
) -> tuple[list[str], list[list[str]], list[int]]:
    """The names of the columns, and the cells and the line of each row."""
    reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        names = [" ".join(name.split()) for name in next(reader, [])]
        _check_names(path, names)
        for row in reader:
            if not row:  # an empty line, usually the last
                continue
            if len(row) != len(names):
                raise BayespareError(
                    f"{path}: row {len(rows) + 1} (line {reader.line_num}) has {len(row)} cells, "
                    f"the first line names {len(names)} columns"
                )
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise BayespareError(f"{path}: line {reader.line_num}: {reason(error)}") from error
    return names, rows, lines
