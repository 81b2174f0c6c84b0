"""Where values came from, in words: so that an error can name the file, the column and the row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from bayespare.errors import did_you_mean


@dataclass(frozen=True)
class Place:
    """A file, array or column, and how its rows are numbered for people.

    Attributes:
        what: ``data.csv: column 'age'``.
        lines: Line of each row in a text file; its rows are then counted from 1. Without it
            they are counted from 0, as Python does.
    """

    what: str
    lines: Sequence[int] | None = None

    def __str__(self) -> str:
        return self.what

    def row(self, index: int) -> str:
        """``data.csv: column 'age', row 17 (line 18)``."""
        if self.lines is None:
            return f"{self.what}, row {index} (counting from 0)"
        return f"{self.what}, row {index + 1} (line {self.lines[index]})"


def one_line(text: str, limit: int = 120) -> str:
    """The text without line breaks and control characters, and not longer than ``limit``."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def quote(value: object, limit: int = 40) -> str:
    """The value as Python would write it, on one line and not longer than ``limit``."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 4]}...{text[-1]}"


def reason(error: Exception) -> str:
    """What an exception of another library says, on one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return one_line(text) or type(error).__name__


def hint(word: str, known: Iterable[str], limit: int = 10) -> str:
    """As :func:`did_you_mean`, but silent instead of listing more than ``limit`` known words."""
    words = [one_line(name, 40) for name in known]
    close = get_close_matches(word, words, n=1, cutoff=0.6)
    return did_you_mean(word, close or words) if close or len(words) <= limit else ""
