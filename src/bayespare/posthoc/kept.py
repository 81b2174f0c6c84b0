"""Steps of a run that are done, on disk as soon as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayespare.training.checkpoint import Checkpoint

_STREAM = "global_stream"


@dataclass(frozen=True, eq=False)
class Step:
    """What a step has left.

    Attributes:
        tensors: By name.
        numbers: JSON-ready.
    """

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


class Kept:
    """The steps of a run: one that goes on takes them from here in place of doing them again.

    With a step PyTorch's global generator is kept, which layers such as dropout draw from.

    Args:
        folder: Of the run; None keeps nothing.
        device: Where the run draws.
        run: What has to be the same when it goes on, JSON-ready.

    Attributes:
        resuming: Whether there are steps of a run that was stopped.

    Raises:
        BayespareError: If they are damaged, or of another run.
    """

    def __init__(
        self, folder: Path | None, device: torch.device, run: Mapping[str, Any] | None = None
    ) -> None:
        self._device = device
        self._found: dict[str, Step] = {}
        self._done: dict[str, Mapping[str, Any]] = {}
        self._checkpoint = None if folder is None else Checkpoint(folder / "checkpoint")
        self.resuming = self._checkpoint is not None and self._checkpoint.exists()
        if self._checkpoint is None:
            return
        self._checkpoint.run = run or {}
        if self.resuming:
            parts, self._done = self._checkpoint.load()
            self._found = {name: Step(parts[name], done) for name, done in self._done.items()}

    def take(self, name: str) -> Step | None:
        """What a step has left, the global generator as it was then; None: it is to be done."""
        step = self._found.get(name)
        if step is not None:
            self._stream(step.tensors[_STREAM])
        return step

    def put(self, name: str, tensors: Mapping[str, Tensor], **numbers: Any) -> None:
        """Keep a step that is done.

        Raises:
            WriteError: If it cannot be written; the steps before are kept.
        """
        if self._checkpoint is None:
            return
        # Tied weights share their memory, which a file of tensors does not.
        own = {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}
        parts: dict[str, Mapping[str, Tensor]] = {done: {} for done in self._done}
        self._done = self._done | {name: numbers}
        self._checkpoint.save(parts | {name: own | {_STREAM: self._stream()}}, self._done)

    def _stream(self, state: Tensor | None = None) -> Tensor:
        """The state of the global generator, set before if one is given."""
        on_gpu = self._device.type == "cuda"
        if state is not None and on_gpu:
            torch.cuda.set_rng_state(state, self._device)
        elif state is not None:
            torch.set_rng_state(state)
        return torch.cuda.get_rng_state(self._device) if on_gpu else torch.get_rng_state()
