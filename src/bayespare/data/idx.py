"""IDX, the format of MNIST and its relatives: big-endian header, then unsigned bytes."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from bayespare.data.place import Place, reason
from bayespare.data.raw import Examples, Raw, check_memory, fingerprint_of
from bayespare.errors import BayespareError

PARTS = {"train": ("train",), "test": ("t10k", "test")}
"""The first word of the file names of each part."""

_BEST_DEFLATE = 1032
"""Deflate never packs better than 1032 to 1: a header that claims more is not true."""


def read_idx(path: Path, dims: int) -> np.ndarray:
    """Read one IDX file of unsigned bytes, gzipped or not.

    Args:
        path: The file; gzip is recognised by its first bytes.
        dims: How many dimensions it must have: 3 for images, 1 for labels.

    Returns:
        uint8 array.

    Raises:
        BayespareError: If the file cannot be read, is not IDX, is truncated, or its header does
            not fit its size; the size is checked before memory is taken.
    """
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            header = file.read(4 + 4 * dims)
            shape = _shape(path, header, dims)
            size = int(np.prod([int(n) for n in shape], dtype=object))
            on_disk = path.stat().st_size
            if size > (on_disk * _BEST_DEFLATE if zipped else on_disk - len(header)):
                raise BayespareError(
                    f"{path}: truncated: its header promises {shape}, {size} bytes, "
                    f"the file has {on_disk}"
                )
            check_memory(path, size)
            body = file.read(size)
            surplus = file.read(1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BayespareError(f"{path}: damaged or truncated gzip file ({reason(error)})") from error
    except OSError as error:
        raise BayespareError(f"{path}: cannot be read ({reason(error)})") from error
    if len(body) != size or surplus:
        raise BayespareError(
            f"{path}: its header promises {size} bytes of data, it has "
            f"{'more' if surplus else len(body)}"
        )
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def _shape(path: Path, header: bytes, dims: int) -> tuple[int, ...]:
    wanted = bytes((0, 0, 8, dims))
    if header[:4] != wanted:
        what = "images" if dims == 3 else "labels"
        raise BayespareError(
            f"{path}: not an IDX file of {what}: it begins with {header[:4].hex() or 'nothing'}, "
            f"not {wanted.hex()}"
        )
    if len(header) < 4 + 4 * dims:
        raise BayespareError(f"{path}: truncated in its header")
    shape = struct.unpack(f">{dims}I", header[4:])
    if 0 in shape:
        raise BayespareError(f"{path}: it is empty (shape {shape})")
    return shape


def find_part(folder: Path, part: str, kind: str) -> Path | None:
    """The file of a part (``train``, ``test``) and kind (``images``, ``labels``) in a folder."""
    dims = 3 if kind == "images" else 1
    for prefix in PARTS[part]:
        for mark in ("-idx", ".idx"):
            for suffix in ("", ".gz"):
                path = folder / f"{prefix}-{kind}{mark}{dims}-ubyte{suffix}"
                if path.is_file():
                    return path
    return None


def is_idx_folder(folder: Path) -> bool:
    """Whether the folder holds image files of the usual names."""
    return any(find_part(folder, part, "images") for part in PARTS)


def load_idx_folder(folder: Path) -> Raw:
    """Read a folder of IDX files; the test part is optional.

    Raises:
        BayespareError: If the training images or the labels of a part are missing or damaged.
    """
    files: list[Path] = []
    parts: dict[str, Examples] = {}
    for part in PARTS:
        images = find_part(folder, part, "images")
        if images is None:
            continue
        labels = find_part(folder, part, "labels")
        if labels is None:
            raise BayespareError(f"{folder}: {images.name} has no labels file beside it")
        parts[part] = read_pair(images, labels)
        files += [images, labels]
    if "train" not in parts:
        raise BayespareError(f"{folder}: there is no train-images-idx3-ubyte[.gz]")
    return _raw(folder, parts["train"], parts.get("test"), files)


def load_idx_file(images: Path, *, need_labels: bool = True) -> Raw:
    """Read one file of images and, beside it, the labels of the same name.

    Raises:
        BayespareError: If a file is missing or damaged.
    """
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    labels = images.with_name(name)
    if name != images.name and labels.is_file():
        return _raw(images, read_pair(images, labels), None, [images, labels])
    x = read_idx(images, 3)[:, None]
    if need_labels:
        raise BayespareError(
            f"{images}: there is no file of labels beside it "
            "(the names must differ in images/labels and idx3/idx1 alone)"
        )
    return _raw(images, Examples(x, None, Place(str(images))), None, [images])


def read_pair(images: Path, labels: Path) -> Examples:
    """Read images, as ``(N, 1, height, width)``, and their labels.

    Raises:
        BayespareError: If the counts differ.
    """
    x, y = read_idx(images, 3), read_idx(labels, 1)
    if len(x) != len(y):
        raise BayespareError(
            f"{images}: {len(x)} images, but {len(y)} labels in {labels.name}; "
            "they are not of one set"
        )
    return Examples(x[:, None], y.astype(np.int64), Place(str(labels)), Place(str(images)))


def _raw(path: Path, train: Examples, test: Examples | None, files: list[Path]) -> Raw:
    return Raw(
        source=str(path),
        train=train,
        test=test,
        fingerprint=fingerprint_of(files),
        per_channel=False,
        divisor=255.0,
        task="classification",
    )
