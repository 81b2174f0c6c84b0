"""A run's state on disk: safetensors and JSON, written aside and renamed, never pickled."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bayespare.errors import BayespareError

log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name in the same folder, which takes the place of ``path`` at the end.

    Whatever goes wrong before leaves ``path`` as it was, and nothing beside it; what a kill
    leaves, :func:`clear_parts` removes.

    Raises:
        BayespareError: If the file cannot be written: a full disk above all.
    """
    # Its own in every process: two may write the same summary.
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BayespareError(f"{path}: cannot be written ({error.strerror})") from error
        raise


def clear_parts(folder: Path) -> None:
    """Remove the temporary files of a process that was killed; none of another may be at work."""
    for aside in folder.rglob(".*.part"):
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8 to a temporary name in the same folder, then rename it over ``path``."""
    with replacing(path) as aside:
        # A name may hold half a surrogate pair, which JSON allows and UTF-8 does not.
        aside.write_bytes(text.encode("utf-8", errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON to a temporary name in the same folder, then rename it over ``path``."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a temporary name in the same folder, then rename it over ``path``.

    Raises:
        BayespareError: If they cannot be written.
    """
    with replacing(path) as aside:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside)
        except SafetensorError as error:
            raise BayespareError(f"{path}: cannot be written ({error})") from error


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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        BayespareError: If it is missing or damaged.
    """
    if not path.is_file():
        raise BayespareError(f"{path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BayespareError(f"{path}: not a safetensors file, or damaged ({error})") from error


class Checkpoint:
    """A folder with the last two states, each a JSON file that names the tensor files it needs.

    Files a state needs are written first, under names no earlier state uses; the rename of
    ``state.json`` makes them valid at once. The state before it stays, in case the newest is
    damaged on disk; files of earlier ones are removed afterwards.

    Args:
        folder: Created when the first state is saved.
    """

    NEWEST, BEFORE = "state.json", "state-before.json"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._state is None and self.exists():
            self._state, _ = self._newest()
        before = self._state or {"files": {}, "counter": 0}
        counter, files = int(before["counter"]), {}
        for name, values in tensors.items():
            if not values and name in before["files"]:
                files[name] = before["files"][name]
                continue
            counter += 1
            files[name] = f"{name}-{counter:06d}.safetensors"
            write_tensors(self.folder / files[name], values)
        state = {"files": files, "counter": counter, "meta": dict(meta)}
        if self._state is not None:
            write_json(self.folder / self.BEFORE, self._state)
        write_json(self.folder / self.NEWEST, state)
        self._state = state
        needed = {*files.values(), *before["files"].values()}
        for stale in self.folder.glob("*.safetensors"):
            if stale.name not in needed:
                stale.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Read the newest state back, or the one before it if that is damaged.

        Raises:
            BayespareError: If a file is missing or damaged, in both.
        """
        self._state, parts = self._newest()
        return parts, dict(self._state["meta"])

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
            files, meta = dict(state["files"]), dict(state["meta"])
            whole = {"files": files, "counter": int(state["counter"]), "meta": meta}
        except (KeyError, TypeError, ValueError) as error:
            raise BayespareError(f"{path}: not a checkpoint of this version ({error!r})") from error
        for name in files.values():
            if not isinstance(name, str) or Path(name).name != name:
                raise BayespareError(f"{self.folder}: refuses to read {name!r} outside its folder")
        return whole, {part: read_tensors(self.folder / name) for part, name in files.items()}
