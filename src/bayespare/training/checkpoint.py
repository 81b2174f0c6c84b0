"""A run's state on disk: safetensors and JSON, written aside and renamed, never pickled."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bayespare.errors import BayespareError

log = logging.getLogger(__name__)

PART = ".part"
"""How the name of a temporary file ends."""


class WriteError(BayespareError):
    """A file that cannot be written; what was there before is as it was."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name in the same folder, which takes the place of ``path`` at the end.

    Whatever goes wrong before leaves ``path`` as it was, and nothing beside it; what a kill
    leaves, :func:`clear_parts` removes.

    Raises:
        WriteError: If the file cannot be written: a full disk above all.
    """
    # Its own in every process: two may write the same summary.
    aside = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error
        raise


def clear_parts(folder: Path) -> None:
    """Remove the temporary files of a process that was killed; none of another may be at work."""
    for aside in folder.rglob(f".*{PART}"):
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8 to a temporary name in the same folder, then rename it over ``path``."""
    with replacing(path) as aside:
        # A name may hold half a surrogate pair, which JSON allows and UTF-8 does not.
        aside.write_bytes(text.encode("utf-8", errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON to a temporary name in the same folder, then rename it over ``path``."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, default=_whole) + "\n")


def _whole(value: Any) -> int:
    """A whole number of another library, such as a seed of NumPy's."""
    if isinstance(value, Integral):
        return int(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a temporary name in the same folder, then rename it over ``path``.

    Tied ones are written under each of their names.

    Raises:
        WriteError: If they cannot be written.
    """
    apart, memory = {}, set()
    for name, tensor in tensors.items():
        apart[name] = tensor.contiguous()
        # The format has no two names for the same memory.
        place = apart[name].untyped_storage().data_ptr()
        if place in memory:
            apart[name] = apart[name].clone()
        memory.add(place)
    with replacing(path) as aside:
        try:
            save_file(apart, aside)
        except SafetensorError as error:
            raise WriteError(f"{path}: cannot be written ({error})") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        BayespareError: If it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BayespareError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise BayespareError(f"{path}: not valid JSON ({error}); the file is damaged") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sum(path: Path, written: str) -> None:
    """Make sure that a file is what was written: a flipped bit in a weight is seen nowhere else.

    Raises:
        BayespareError: If it is not.
    """
    if sha256(path) != written:
        raise BayespareError(f"{path}: is damaged: not what was written (its SHA-256 differs)")


def read_tensors(path: Path, written: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: The file.
        written: The SHA-256 it was written with, if that is known.

    Raises:
        BayespareError: If it is missing or damaged.
    """
    if not path.is_file():
        raise BayespareError(f"{path}: no such file")
    try:
        if written is not None:
            check_sum(path, written)
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BayespareError(f"{path}: not a safetensors file, or damaged ({error})") from error


DIGESTS = ("data", "network weights")
"""What of a run is compared by its digest, which nobody wants to read."""


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of tensors, their types and shapes, hex."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def is_plain(name: object) -> bool:
    """Whether a name from a file stays in the folder it is put in."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


class Checkpoint:
    """A folder with the last two states, each a JSON file that names the tensor files it needs.

    Files a state needs are written first, under names no earlier state uses; the rename of
    ``state.json`` makes them valid at once. The state before it stays, in case the newest is
    damaged on disk; files of earlier ones are removed afterwards.

    Args:
        folder: Created when the first state is saved.

    Attributes:
        run: What the run is: its method, settings, network, data, version; JSON-ready. The state
            of another run is refused.
    """

    NEWEST, BEFORE = "state.json", "state-before.json"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run: Mapping[str, Any] = {}
        self._state: dict[str, Any] | None = None

    def exists(self) -> bool:
        """Whether there is a state to resume from."""
        return any((self.folder / name).is_file() for name in (self.NEWEST, self.BEFORE))

    def save(self, tensors: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
        """Save a state.

        Args:
            tensors: Name of a part to its tensors. A part that was saved before and is given as
                an empty mapping is taken over as it lies on disk.
            meta: JSON-ready values.

        Raises:
            WriteError: If a file cannot be written; the states from before are kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._state is None and self.exists():
            self._state, _ = self._newest()
        before = self._state or {"files": {}, "counter": 0}
        counter, files, sums, fresh = int(before["counter"]), {}, {}, []
        try:
            for name, values in tensors.items():
                if not values and name in before["files"]:
                    files[name] = before["files"][name]
                    sums[files[name]] = before["sha256"][files[name]]
                    continue
                counter += 1
                files[name] = f"{name}-{counter:06d}.safetensors"
                fresh.append(self.folder / files[name])
                write_tensors(fresh[-1], values)
                sums[files[name]] = sha256(fresh[-1])
            state = {
                "files": files,
                "sha256": sums,
                "counter": counter,
                "meta": dict(meta),
                "run": dict(self.run),
            }
            if self._state is not None:
                write_json(self.folder / self.BEFORE, self._state)
            write_json(self.folder / self.NEWEST, state)
        except WriteError:
            # Makes room again; after a kill the next state does.
            for path in fresh:
                path.unlink(missing_ok=True)
            raise
        self._state = state
        needed = {*files.values(), *before["files"].values()}
        for stale in self.folder.glob("*.safetensors"):
            if stale.name not in needed:
                stale.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all states and the folder; a kill meanwhile leaves none that seems whole."""
        for name in (self.NEWEST, self.BEFORE):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def load(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Read the newest state back, or the one before it if that is damaged.

        Raises:
            BayespareError: If a file is missing or damaged, in both, or the state is of another
                run.
        """
        self._state, parts = self._newest()
        self._check_run(self._state["run"])
        return parts, dict(self._state["meta"])

    def _check_run(self, began: Mapping[str, Any]) -> None:
        """Refuse the state of a run with another method, other settings, network or data."""
        for key, now in json.loads(json.dumps(self.run)).items():
            if began.get(key) == now:
                continue
            what = (
                f"with other {key} ({key} may not change on resume)"
                if key in DIGESTS
                else f"with {key}={began.get(key)}, not {now}"
            )
            raise BayespareError(
                f"{self.folder}: the run that was stopped there began {what}; give what it began "
                "with, or another folder"
            )

    def _newest(self) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
        """The newest state that can be read whole, with its tensors."""
        try:
            return self._read(self.folder / self.NEWEST)
        except BayespareError as error:
            if not (self.folder / self.BEFORE).is_file():
                raise
            found = self._read(self.folder / self.BEFORE)
            log.warning("%s; going on with the state before it", error)
            return found

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
        state = read_json(path)
        try:
            files, sums = dict(state["files"]), dict(state["sha256"])
            for name in (*files.values(), *files):
                if not is_plain(name):
                    raise BayespareError(
                        f"{self.folder}: refuses to read {name!r} outside its folder"
                    )
            whole = {
                "files": files,
                "sha256": {name: str(sums[name]) for name in files.values()},
                "counter": int(state["counter"]),
                "meta": dict(state["meta"]),
                "run": dict(state["run"]),
            }
        except (KeyError, TypeError, ValueError) as error:
            raise BayespareError(f"{path}: not a checkpoint of this version ({error!r})") from error
        return whole, {
            part: read_tensors(self.folder / name, str(sums[name])) for part, name in files.items()
        }
