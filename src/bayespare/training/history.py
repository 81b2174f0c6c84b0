"""The rows of a run's history, on disk as soon as they are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bayespare.errors import BayespareError
from bayespare.training.checkpoint import WriteError, write_text

Row = dict[str, Any]


class History:
    """A list of rows that is also a file with one JSON object per line.

    Args:
        path: The file; None keeps the rows in memory alone.
        resume: Go on after the rows that are in the file; otherwise it is begun anew.
    """

    def __init__(self, path: Path | None, *, resume: bool) -> None:
        self.path = path
        self.rows: list[Row] = read_history(path) if resume and path is not None else []
        self._write()

    def add(self, row: Row) -> None:
        """Add the row of an epoch.

        An epoch that is there already is done again after a resume: the row replaces the earlier
        one and all that came after it.
        """
        key = (row.get("phase"), row.get("epoch"))
        for i, earlier in enumerate(self.rows):
            if (earlier.get("phase"), earlier.get("epoch")) == key:
                del self.rows[i:]
                self._write()
                break
        self.rows.append(row)
        if self.path is not None:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            except OSError as error:
                raise WriteError(f"{self.path}: cannot be written ({error.strerror})") from error

    def _write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))


def read_history(path: Path) -> list[Row]:
    """Read the rows of a file; a last line that a kill cut short is passed over.

    Raises:
        BayespareError: If another line is damaged.
    """
    if not path.is_file():
        return []
    rows: list[Row] = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise BayespareError(f"{path} line {number}: not valid JSON; it is damaged") from error
        rows.append(row)
    return rows
