"""Peak memory of a forward pass: the most bytes that tensors hold at one time."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bayespare.errors import BayespareError
from bayespare.measure.latency import batch_of
from bayespare.measure.predictions import device_of, evaluating


def peak_memory(model: nn.Module, example: Tensor, *, batch: int = 256) -> int:
    """Peak bytes of one forward pass: parameters, buffers, input and live activations together.

    On the CPU every tensor made by an operation is followed from its birth to its death; scratch
    space inside an operation is not seen. On a GPU the number is the allocator's.

    Args:
        model: The model, run in eval mode without gradients.
        example: Rows of input, shape ``(rows, ...)``, repeated to fill the batch.
        batch: Rows in the pass.

    Raises:
        BayespareError: If there is no row of input, or the batch is below 1.
    """
    if example.dim() < 1 or len(example) == 0 or batch < 1:
        raise BayespareError(
            "peak_memory: needs at least one row of input and a batch of 1 or more"
        )
    device = device_of(model)
    inputs = batch_of(example, batch).to(device)
    held = [*model.parameters(), *model.buffers(), inputs]
    with evaluating(model):
        if device.type == "cuda":
            return _peak_on_gpu(model, inputs, held)
        live = LiveBytes(held)
        with live:
            model(inputs)
        return live.peak


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Follows the storages that operations make, and remembers the most bytes alive at a time.

    Views share a storage and count once.

    Attributes:
        now: Bytes alive.
        peak: The most bytes that were alive at a time.
    """

    now: int
    peak: int

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        """Start from the tensors that are alive all the time."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes = _storages(held)
        self.now = self.peak = sum(self._sizes.values())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and follow the storages of what it returns until they die."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return made

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address of each distinct storage to its bytes."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage._cdata: storage.nbytes() for storage in storages}


def _peak_on_gpu(model: nn.Module, inputs: Tensor, held: Iterable[Tensor]) -> int:
    """What the pass adds to the allocator's level at its peak, plus the model and its input."""
    torch.cuda.synchronize(inputs.device)
    before = torch.cuda.memory_allocated(inputs.device)
    torch.cuda.reset_peak_memory_stats(inputs.device)
    model(inputs)
    torch.cuda.synchronize(inputs.device)
    added: int = torch.cuda.max_memory_allocated(inputs.device) - before
    return added + sum(_storages(held).values())
