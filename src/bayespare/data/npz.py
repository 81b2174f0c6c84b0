"""Arrays in ``.npz`` files: ``x`` and ``y``, optionally in parts."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from bayespare.data.place import Place, one_line, reason
from bayespare.data.raw import Examples, Raw, check_memory, fingerprint_of
from bayespare.errors import BayespareError

PARTS = {
    "train": (("x", "y"), ("x_train", "y_train")),
    "valid": (("x_valid", "y_valid"), ("x_val", "y_val")),
    "test": (("x_test", "y_test"),),
}
"""Names of the arrays of each part, in lower case."""

_BEST_DEFLATE = 1032
"""Deflate never packs better than 1032 to 1."""


def load_npz(path: Path, *, need_labels: bool = True) -> Raw:
    """Read ``x`` and ``y`` (or ``x_train``, ``y_train``) and the parts that are there.

    Bytes (uint8) are taken for pixels: divided by 255, ``(N, H, W)`` given a channel and
    ``(N, H, W, C)`` turned to ``(N, C, H, W)``, standardised by channel. ``(N, D)`` of another
    type is standardised by column. ``feature_names`` may name the columns.

    Args:
        path: The file.
        need_labels: Whether a part without ``y`` is an error.

    Raises:
        BayespareError: If the file is damaged, holds pickled objects, lacks an array, or the
            arrays do not fit together or are not finite.
    """
    arrays, names = _read(path)
    found = {
        part: (x, _examples(path, x, y, arrays, need_labels))
        for part, pairs in PARTS.items()
        for x, y in pairs
        if x in arrays
    }
    # New data may come as a test part alone.
    first = "train" if need_labels or "train" in found else next(iter(found), "train")
    if first not in found:
        others = (
            f" (it has {', '.join(one_line(name, 40) for name in names[:10])})" if names else ""
        )
        raise BayespareError(f"{path}: there is no array 'x' or 'x_train'{others}")
    x = arrays[found[first][0]]
    is_bytes = x.dtype == np.uint8
    return Raw(
        source=str(path),
        train=found[first][1],
        valid=found["valid"][1] if "valid" in found else None,
        test=found["test"][1] if "test" in found else None,
        fingerprint=fingerprint_of([path]),
        per_channel=not (is_bytes and x.ndim == 2),
        divisor=255.0 if is_bytes else 1.0,
        features=_feature_names(path, arrays, x),
    )


def _examples(
    path: Path, x_name: str, y_name: str, arrays: dict[str, np.ndarray], need_labels: bool
) -> Examples:
    x_place = Place(f"{path}: array {x_name!r}")
    x = _inputs(x_place, arrays[x_name])
    if y_name not in arrays:
        if need_labels:
            raise BayespareError(
                f"{path}: there is {x_name!r} but no {y_name!r}; add its labels or numbers under "
                "that name"
            )
        return Examples(x, None, x_place)
    place = Place(f"{path}: array {y_name!r}")
    y = _targets(place, arrays[y_name])
    if len(x) != len(y):
        raise BayespareError(f"{path}: {x_name!r} has {len(x)} rows, {y_name!r} has {len(y)}")
    return Examples(x, y, place, x_place)


def _inputs(place: Place, x: np.ndarray) -> np.ndarray:
    if x.dtype.kind not in "buif" or x.ndim < 2 or not x.size:
        raise BayespareError(
            f"{place} is {x.dtype} of shape {x.shape}: it must hold numbers, shape (N, ...), such "
            "as (N, 1) for one column"
        )
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        row, *column = (int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise BayespareError(
            f"{place}, row {row}, column {', '.join(map(str, column))} (counting from 0): "
            f"the value is {x[(row, *column)]}; fill it in, or leave the row out"
        )
    if x.dtype == np.uint8 and x.ndim == 3:
        return x[:, None]
    if x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] > 4:
        return np.ascontiguousarray(np.moveaxis(x, 3, 1))
    return x


def _targets(place: Place, y: np.ndarray) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "biufUS":
        raise BayespareError(
            f"{place} is {y.dtype} of shape {y.shape}: it must hold one label or number for each "
            "row, shape (N,); several targets are fitted one by one"
        )
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        row = int(np.argmin(np.isfinite(y)))
        raise BayespareError(f"{place.row(row)}: the value is {y[row]}; leave the row out")
    return np.char.decode(y, "utf-8", "replace") if y.dtype.kind == "S" else y


def _feature_names(path: Path, arrays: dict[str, np.ndarray], x: np.ndarray) -> tuple[str, ...]:
    if x.ndim > 2:
        return ()
    if "feature_names" not in arrays:
        return tuple(f"x{i}" for i in range(x.shape[1]))
    names = tuple(str(name) for name in arrays["feature_names"].ravel())
    if len(names) != x.shape[1] or len(set(names)) != len(names):
        raise BayespareError(
            f"{path}: 'feature_names' must be {x.shape[1]} different names, one for each column"
        )
    return names


def _read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that this module knows, by name in lower case, and the names of all arrays."""
    wanted = {name for pairs in PARTS.values() for pair in pairs for name in pair}
    arrays: dict[str, np.ndarray] = {}
    names: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                names.append(name)
                if name.lower() in arrays:
                    raise BayespareError(f"{path}: has the array {name!r} twice")
                if name.lower() in wanted | {"feature_names"}:
                    with archive.open(member) as file:
                        arrays[name.lower()] = _array(path, name, file, member)
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise BayespareError(f"{path}: truncated or not an .npz file ({reason(error)})") from error
    except (EOFError, zlib.error, NotImplementedError, RuntimeError, MemoryError) as error:
        raise BayespareError(f"{path}: damaged .npz file ({reason(error)})") from error
    except OSError as error:
        raise BayespareError(f"{path}: cannot be read ({reason(error)})") from error
    return arrays, names


def _array(path: Path, name: str, file: IO[bytes], member: zipfile.ZipInfo) -> np.ndarray:
    """Read one array, after its header has been checked against the size of the member."""
    try:
        version = npy.read_magic(file)
        read_header = {
            (1, 0): npy.read_array_header_1_0,
            (2, 0): npy.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"format version {version}")
        shape, fortran, dtype = read_header(file)
        if not dtype.itemsize:
            raise ValueError(f"values of type {dtype}")
    except (ValueError, SyntaxError, tokenize.TokenError) as error:
        raise BayespareError(f"{path}: array {name!r} is damaged ({reason(error)})") from error
    if dtype.hasobject:
        raise BayespareError(f"{path}: array {name!r} holds pickled objects, which are never read")
    size = math.prod(shape) * dtype.itemsize
    stored = min(member.file_size, member.compress_size * _BEST_DEFLATE)
    if min(shape, default=0) < 0 or size > stored:
        raise BayespareError(
            f"{path}: array {name!r} is truncated: its header promises {dtype} of shape {shape}"
        )
    check_memory(f"{path}: array {name!r}", size)
    data = file.read(size)
    if len(data) != size:
        raise BayespareError(f"{path}: array {name!r} is truncated")
    array = np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)
