"""Which module is running: names a failure and a layer without the model's help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class ModuleStack:
    """Modules of a model that are in their forward pass, outermost first.

    A module that raised stays on the stack, so that the innermost one can be named.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self._running: list[nn.Module] = []

    @property
    def top(self) -> nn.Module | None:
        """The innermost module that is running."""
        return self._running[-1] if self._running else None

    @property
    def place(self) -> str:
        """The innermost module in words: ``"layer fc1"`` or ``"the model itself"``."""
        name = self._names[self._running[-1]] if self._running else ""
        return f"layer {name}" if name else "the model itself"

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Keep the stack while the model runs inside this context."""
        handles = []
        for module in self._names:
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _args: Any) -> None:
        self._running.append(module)

    def _leave(self, module: nn.Module, _args: Any, _output: Any) -> None:
        while self._running and self._running.pop() is not module:
            continue


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode and restore each one's own mode afterwards.

    Flags are set directly: ``train()`` and ``eval()`` may be overridden to do more than that.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
