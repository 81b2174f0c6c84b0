"""Which module is running: names a failure and a layer without the model's help."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

Entered: TypeAlias = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
Left: TypeAlias = Callable[[nn.Module, Any], None]


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
    def name(self) -> str:
        """The innermost module's name, ``""`` for the model itself."""
        return self._names[self._running[-1]] if self._running else ""

    @property
    def place(self) -> str:
        """The innermost module in words: ``"layer fc1"`` or ``"the model itself"``."""
        return f"layer {self.name}" if self.name else "the model itself"

    @contextmanager
    def watch(self, entered: Entered | None = None, left: Left | None = None) -> Iterator[None]:
        """Keep the stack while the model runs inside this context.

        Args:
            entered: Called with a module and its arguments, when it is on top.
            left: Called with a module and its output, while it is still on top.
        """

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._running.append(module)
            if entered is not None:
                entered(module, args, kwargs)

        def leave(module: nn.Module, _args: Any, output: Any) -> None:
            while self._running and self.top is not module:
                self._running.pop()
            if left is not None and self._running:
                left(module, output)
            if self._running:
                self._running.pop()

        handles = []
        for module in self._names:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode and restore each one's own mode afterwards.

    Flags are set directly: ``train()`` and ``eval()`` may be overridden to do more than that.
    """
    with _in_mode(model.modules(), training=False):
        yield


@contextmanager
def layers_in_training(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Put these layers, not what is inside them, in training mode and restore it afterwards."""
    with _in_mode(layers, training=True):
        yield


@contextmanager
def _in_mode(modules: Iterable[nn.Module], *, training: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in modules]
    for module, _ in modes:
        module.training = training
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
