"""From the text of ``data=`` to raw examples: which reader reads what."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from bayespare.data.bundled import BUNDLED, load_bundled
from bayespare.data.cifar import layout_of, load_cifar_file, load_cifar_folder
from bayespare.data.csv_table import read_csv
from bayespare.data.idx import is_idx_folder, load_idx_file, load_idx_folder
from bayespare.data.npz import load_npz
from bayespare.data.parquet_table import read_parquet
from bayespare.data.place import Place, one_line
from bayespare.data.raw import Examples, Raw, fingerprint_of
from bayespare.data.table import Table
from bayespare.errors import BayespareError, did_you_mean

TABLES: dict[str, Callable[[Path], Table]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".pq": read_parquet,
}

KINDS = ".npz, .csv, .tsv, .parquet, an IDX file, a folder of IDX or CIFAR .bin files"


def is_table(spec: str) -> bool:
    """Whether ``data=`` names a CSV, TSV or Parquet file, which need not be there."""
    return spec not in BUNDLED and Path(spec).suffix.lower() in TABLES


def read(spec: str, *, target: str | None = None, need_labels: bool = True) -> Raw:
    """Read a bundled data set or a path.

    Args:
        spec: Bundled name, or path of a file or folder.
        target: The target column of a table; without ``need_labels`` it may be missing there.
        need_labels: Whether data without targets are an error.

    Raises:
        BayespareError: If there is nothing of that name, or it cannot be read.
    """
    path = Path(spec)
    with suppress(RuntimeError):  # no such user, or no home: then it is a name like any other
        path = path.expanduser()
    suffix = path.suffix.lower()
    if spec not in BUNDLED and not path.exists():
        raise BayespareError(_not_found(spec, path))
    if is_table(spec) and path.is_file():
        return _table(path, TABLES[suffix](path), target, need_labels)
    if target is not None and need_labels:
        raise BayespareError(f"{spec}: target={target} names a column, but this is not a table")
    if spec in BUNDLED:
        return load_bundled(spec)
    if path.is_dir():
        return _folder(path)
    if suffix == ".npz":
        return load_npz(path, need_labels=need_labels)
    if suffix == ".bin":
        return load_cifar_file(path)
    if "idx" in path.name or suffix == ".gz":
        return load_idx_file(path, need_labels=need_labels)
    raise BayespareError(f"{spec}: unknown kind of file (known: {KINDS})")


def _table(path: Path, table: Table, target: str | None, need_labels: bool) -> Raw:
    if need_labels and target is None:
        names = ", ".join(one_line(name, 40) for name in list(table.columns)[:10])
        names += ", ..." if len(table.columns) > 10 else ""
        raise BayespareError(f"{path}: say which column to predict, target=... (columns: {names})")
    whole = Place(str(path), table.lines)
    if target is None or (not need_labels and target not in table.columns):
        examples = Examples(table, None, whole)
    else:
        examples = Examples(table, table.target(target), table.place(target), whole)
    return Raw(str(path), examples, fingerprint_of([path]), column=target or "")


def _folder(path: Path) -> Raw:
    if is_idx_folder(path):
        return load_idx_folder(path)
    layout = layout_of(path)
    if layout is not None:
        return load_cifar_folder(path, layout)
    if (path / "data_batch_1").exists() or (path / "train").is_file():
        raise BayespareError(
            f"{path}: this is the Python version of CIFAR (pickles, which are never read); "
            "get the binary version"
        )
    raise BayespareError(
        f"{path}: the folder holds neither IDX files (train-images-idx3-ubyte[.gz], ...) "
        "nor CIFAR files (data_batch_1.bin, ... or train.bin)"
    )


def _not_found(spec: str, path: Path) -> str:
    folder = path.parent
    siblings = {entry.name: str(entry) for entry in folder.iterdir()} if folder.is_dir() else {}
    close = get_close_matches(path.name, siblings, n=1, cutoff=0.6)
    known = [siblings[name] for name in close] or BUNDLED
    return (
        f"data {spec!r}: there is no such file or folder, nor a bundled data set of that name"
        f"{did_you_mean(spec, known)}"
    )
