"""What every reader gives: raw arrays and how they are to be treated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bayespare.data.place import Place, reason
from bayespare.data.table import Table
from bayespare.data.target import Task
from bayespare.errors import BayespareError
from bayespare.machine import machine_memory


@dataclass(frozen=True, eq=False)
class Examples:
    """Raw examples and their raw targets.

    Attributes:
        x: Array of shape ``(N, ...)``, or a table of N rows.
        y: Shape ``(N,)``; None where there are no targets.
        place: Where the targets came from, or the examples if there are no targets.
        inputs_place: Where the examples came from; None: as ``place``.
    """

    x: np.ndarray | Table
    y: np.ndarray | None
    place: Place
    inputs_place: Place | None = None

    @property
    def place_of_x(self) -> Place:
        """Where the examples came from, for what is wrong with them."""
        return self.inputs_place or self.place

    def labelled(self, classes: tuple[str, ...]) -> np.ndarray:
        """The targets, as names of classes if there are such names.

        Raises:
            BayespareError: If there are no targets.
        """
        if self.y is None:
            raise BayespareError(f"{self.place}: there are no labels")
        return np.array(classes)[self.y] if classes else self.y


@dataclass(frozen=True, eq=False)
class Raw:
    """One source as read: its parts, not yet split or standardised.

    Attributes:
        source: Bundled name or path.
        train: All examples, or those that are not in a part of their own.
        valid: Given by the source, or None.
        test: Given by the source, or None.
        fingerprint: SHA-256 of the bytes, hex.
        per_channel: Standardise each channel or feature of an array by itself.
        divisor: 255 for pixels in bytes.
        features: Names of the inputs, ``()`` for images.
        classes: Names of the classes whose labels are 0, 1, ..., if the source has names.
        task: Known from the format, or None.
        column: Name of a table's target column.
    """

    source: str
    train: Examples
    fingerprint: str
    valid: Examples | None = None
    test: Examples | None = None
    per_channel: bool = True
    divisor: float = 1.0
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    task: Task | None = None
    column: str = ""


def check_memory(place: object, size: int) -> None:
    """Refuse data that this machine cannot hold, before memory is taken for them.

    A file of a few bytes may be packed so well that it promises any number of them.

    Raises:
        BayespareError: If they need more bytes than the machine has memory.
    """
    whole = machine_memory()
    if whole is not None and size > whole:
        raise BayespareError(
            f"{place}: promises {size:,} bytes, more than the {whole:,} of this machine's memory"
        )


def fingerprint_of(sources: Sequence[Path | np.ndarray]) -> str:
    """SHA-256 over the bytes of files, or the shape, type and bytes of arrays, in order; hex.

    Raises:
        BayespareError: If a file cannot be read.
    """
    digest = hashlib.sha256()
    for source in sources:
        if isinstance(source, Path):
            try:
                with source.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise BayespareError(f"{source}: cannot be read ({reason(error)})") from error
        else:
            digest.update(f"{source.dtype.str}{source.shape}".encode())
            digest.update(np.ascontiguousarray(source).tobytes())
    return digest.hexdigest()
