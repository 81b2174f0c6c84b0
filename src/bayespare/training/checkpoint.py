"""A run's state on disk: safetensors and JSON, written aside and renamed, never pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bayespare.errors import BayespareError


def write_json(path: Path, value: Any) -> None:
    """Write JSON to a temporary name in the same folder, then rename it over ``path``."""
    aside = path.with_name(f".{path.name}.part")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a temporary name in the same folder, then rename it over ``path``."""
    aside = path.with_name(f".{path.name}.part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)


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
    """A folder with one ``state.json`` that names the tensor files which belong to it.

    Files a state needs are written first, under names no earlier state uses; the rename of
    ``state.json`` makes them valid at once. Files of earlier states are removed afterwards.

    Args:
        folder: Created when the first state is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._counter = 0

    def exists(self) -> bool:
        """Whether there is a state to resume from."""
        return (self.folder / "state.json").is_file()

    def save(self, tensors: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
        """Save a state.

        Args:
            tensors: Name of a part to its tensors. A part that was saved before and is given as
                an empty mapping is taken over as it lies on disk.
            meta: JSON-ready values.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self._files()
        if not self._counter and before:
            self._counter = int(read_json(self.folder / "state.json")["counter"])
        files = {}
        for name, values in tensors.items():
            if not values and name in before:
                files[name] = before[name]
                continue
            self._counter += 1
            files[name] = f"{name}-{self._counter:06d}.safetensors"
            write_tensors(self.folder / files[name], values)
        write_json(
            self.folder / "state.json", {"files": files, "counter": self._counter, "meta": meta}
        )
        for stale in self.folder.glob("*.safetensors"):
            if stale.name not in files.values():
                stale.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Read the state back.

        Raises:
            BayespareError: If a file is missing or damaged.
        """
        state = read_json(self.folder / "state.json")
        try:
            files, meta = dict(state["files"]), dict(state["meta"])
            self._counter = int(state["counter"])
        except (KeyError, TypeError, ValueError) as error:
            raise BayespareError(
                f"{self.folder / 'state.json'}: not a checkpoint of this version ({error!r})"
            ) from error
        for name in files.values():
            if not isinstance(name, str) or Path(name).name != name:
                raise BayespareError(f"{self.folder}: refuses to read {name!r} outside its folder")
        return {part: read_tensors(self.folder / name) for part, name in files.items()}, meta

    def _files(self) -> dict[str, str]:
        if not self.exists():
            return {}
        files: dict[str, str] = read_json(self.folder / "state.json")["files"]
        return files
