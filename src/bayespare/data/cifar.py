"""CIFAR-10 and CIFAR-100 in their binary version: label bytes, then 3 x 32 x 32 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bayespare.data.place import Place, reason
from bayespare.data.raw import Examples, Raw, fingerprint_of
from bayespare.errors import BayespareError

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """How a record begins: ``label_bytes`` bytes, the last of which is the (fine) label."""

    label_bytes: int
    classes: int
    train: str
    test: str
    names: str


CIFAR10 = Layout(1, 10, "data_batch_*.bin", "test_batch.bin", "batches.meta.txt")
CIFAR100 = Layout(2, 100, "train.bin", "test.bin", "fine_label_names.txt")


def layout_of(folder: Path) -> Layout | None:
    """Which of the two a folder holds, if any."""
    return next((layout for layout in (CIFAR10, CIFAR100) if any(folder.glob(layout.train))), None)


def load_cifar_folder(folder: Path, layout: Layout) -> Raw:
    """Read the training files and, if it is there, the test file of a folder.

    Raises:
        BayespareError: If a file cannot be read or its size or labels do not fit the format.
    """
    train = sorted(folder.glob(layout.train))
    test = folder / layout.test
    files = [*train, test] if test.is_file() else train
    return Raw(
        source=str(folder),
        train=read_cifar(train, layout),
        test=read_cifar([test], layout) if test.is_file() else None,
        fingerprint=fingerprint_of(files),
        divisor=255.0,
        classes=_class_names(folder / layout.names, layout),
        task="classification",
    )


def load_cifar_file(path: Path) -> Raw:
    """Read one ``.bin`` file; ``train.bin`` and ``test.bin`` are CIFAR-100, others CIFAR-10.

    Raises:
        BayespareError: As :func:`load_cifar_folder`.
    """
    layout = CIFAR100 if path.name in (CIFAR100.train, CIFAR100.test) else CIFAR10
    return Raw(
        source=str(path),
        train=read_cifar([path], layout),
        fingerprint=fingerprint_of([path]),
        divisor=255.0,
        classes=_class_names(path.parent / layout.names, layout),
        task="classification",
    )


def read_cifar(paths: list[Path], layout: Layout) -> Examples:
    """Read binary files one after another.

    Returns:
        Images, uint8, shape ``(N, 3, 32, 32)``, and labels.
    """
    record = layout.label_bytes + PIXELS
    parts = []
    for path in paths:
        try:
            raw = np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise BayespareError(f"{path}: cannot be read ({reason(error)})") from error
        if not len(raw) or len(raw) % record:
            raise BayespareError(
                f"{path}: truncated or not CIFAR-{layout.classes}: {len(raw)} bytes are not a "
                f"whole number of records of {record} bytes"
            )
        records = raw.reshape(-1, record)
        labels = records[:, layout.label_bytes - 1]
        if labels.max() >= layout.classes:
            row = int(np.argmax(labels >= layout.classes))
            raise BayespareError(
                f"{path}: label {labels[row]} in record {row} (counting from 0): "
                f"CIFAR-{layout.classes} has labels below {layout.classes}"
            )
        parts.append(records)
    records = np.concatenate(parts)
    x = np.ascontiguousarray(records[:, layout.label_bytes :]).reshape(-1, 3, 32, 32)
    y = records[:, layout.label_bytes - 1].astype(np.int64)
    return Examples(x, y, Place(f"{paths[0]}: labels"), Place(str(paths[0])))


def _class_names(path: Path, layout: Layout) -> tuple[str, ...]:
    """The names in the file beside the data; ``()`` when it is missing or does not fit."""
    try:
        names = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return ()
    fits = len(set(names)) == len(names) == layout.classes and all(map(str.isprintable, names))
    return tuple(names) if fits else ()
