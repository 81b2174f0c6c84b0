"""Watching every operator that a model runs, and undoing what it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which each operator is handed to a function instead of being run.

    Args:
        run: Called with the operator, its positional and its keyword arguments; has to run it and
            to return its result.
    """

    def __init__(self, run: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._run(func, args, kwargs or {})


def arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operator by the names of its schema."""
    named = {a.name: arg for a, arg in zip(func._schema.arguments, args, strict=False)}
    return named | dict(kwargs)


def written(func: Any, given: Mapping[str, Any]) -> list[Tensor]:
    """The arguments of an operator that it writes into."""
    found = [
        given[a.name]
        for a in func._schema.arguments
        if a.alias_info is not None and a.alias_info.is_write and a.name in given
    ]
    if given.get("training") and given.get("running_mean") is not None:
        # The schema of batch normalisation does not say that it updates its statistics.
        found += [given["running_mean"], given["running_var"]]
    return found


@contextmanager
def plain_attention() -> Iterator[None]:
    """Let attention layers run operator by operator, not by their fused inference path."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back every parameter and buffer that the model changes while it runs in this context."""
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (table, dict(table))
        for module in model.modules()
        for table in (module._parameters, module._buffers)
    ]
    own = {
        _memory(tensor): tensor
        for _, held in tables
        for tensor in held.values()
        if tensor is not None
    }
    before: dict[int, Tensor] = {}

    def run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        for tensor in written(func, arguments(func, args, kwargs)):
            memory = _memory(tensor)
            if memory in own and memory not in before:
                before[memory] = own[memory].clone()
        return func(*args, **kwargs)

    try:
        with Watcher(run):
            yield
    finally:
        for table, held in tables:
            table.update(held)
        with torch.no_grad():
            for memory, value in before.items():
                own[memory].copy_(value)


def _memory(tensor: Tensor) -> int:
    """Where a tensor's elements are stored: a view of a parameter writes into the parameter."""
    return tensor.untyped_storage().data_ptr()
