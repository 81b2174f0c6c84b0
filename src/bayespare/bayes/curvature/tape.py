"""Watching a running model: every operation that uses a parameter, with its inputs and output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from bayespare.bayes.curvature.parts import Part
from bayespare.bayes.curvature.views import View

Rule: TypeAlias = Callable[..., Any]
RULES: dict[Any, Rule] = {}


def rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Register what a tape does at the named functions when a parameter is among the arguments."""

    def register(handler: Rule) -> Rule:
        RULES.update(dict.fromkeys(functions, handler))
        return handler

    return register


@dataclass(frozen=True, eq=False)
class Site:
    """One operation that used parameters.

    Attributes:
        number: How many sites ran before it.
        parts: What each parameter contributes.
        shape: Of the output.
        leading: How many of the output's first dimensions may hold the examples.
    """

    number: int
    parts: tuple[Part, ...]
    shape: tuple[int, ...]
    leading: int


class Listener(ABC):
    """Who is told of the sites of a running model."""

    @abstractmethod
    def visit(self, site: Site, output: Tensor) -> Tensor:
        """A site has run; return its output, to go on with."""

    def refuse(self, name: str, why: str) -> None:  # noqa: B027  # nothing to do by default
        """A parameter is used in a way that no rule follows."""


class Tape(TorchFunctionMode):
    """A context in which a model runs and a listener is told of every use of its parameters.

    It sees functions, not modules: functional code, attention with raw weights, GPT-2's transposed
    linear layers and tied weights need nothing special.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        listener: Listener,
        *,
        examples: int,
        detach: bool = False,
        lookups: frozenset[int] | None = None,
    ) -> None:
        """Prepare to watch.

        Args:
            parameters: The parameters to watch, by name.
            listener: Who is told.
            examples: Examples in the batch.
            detach: Let gradients flow to activations only.
            lookups: Sites at which all examples look up the same rows of a table, where that is
                known; if not, the shapes tell, and :attr:`lookups` has those that were found.
        """
        super().__init__()
        self.examples = examples
        self.lookups = lookups or frozenset()
        self._known = lookups is not None
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._parameters = parameters
        self._listener = listener
        self._detach = detach
        self._count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run a function; tell the listener if it used a parameter."""
        kwargs = kwargs or {}
        used = self._used((*args, *kwargs.values()))
        if not used:
            return func(*args, **kwargs)
        handler = RULES.get(func)
        if handler is not None:
            return handler(self, func, *args, **kwargs)
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.requires_grad and not self.watched(tensor):
                for name in used:
                    self.refuse(name, func)
        return result

    def _used(self, args: Sequence[Any]) -> list[str]:
        """Names of the parameters among arguments, in lists too."""
        found = []
        for arg in args:
            for item in arg if isinstance(arg, (tuple, list)) else (arg,):
                name = self._name(item) if isinstance(item, Tensor) else None
                if name is not None:
                    found.append(name)
        return found

    def _name(self, tensor: Tensor) -> str | None:
        name = self._names.get(id(tensor))
        if name is None and tensor._base is not None:
            name = self._names.get(id(tensor._base))
        return name

    def watched(self, tensor: Any) -> bool:
        """Whether this is a watched parameter or a view of one."""
        return isinstance(tensor, Tensor) and self._name(tensor) is not None

    def view(self, tensor: Tensor) -> View:
        """Which entries of which parameter a watched tensor shows."""
        name = self._name(tensor)
        assert name is not None
        return View.of(name, self._parameters[name], tensor)

    def plain(self, tensor: Tensor | None) -> Any:
        """The tensor to compute with."""
        return tensor.detach() if self._detach and tensor is not None else tensor

    def refuse(self, name: str, func: Any, why: str = "") -> None:
        """Tell that a parameter goes into a function that is not followed."""
        called = resolve_name(func) or getattr(func, "__name__", repr(func))
        self._listener.refuse(name, f"goes into {called}{why and ', '}{why}")

    def unfollowed(self, func: Any, why: str, *args: Any, **kwargs: Any) -> Any:
        """Run a function of which some use cannot be followed, and say so."""
        for name in self._used((*args, *kwargs.values())):
            self.refuse(name, func, why)
        return func(*args, **kwargs)

    def shares(self, index: Tensor) -> bool:
        """Whether the lookup to be visited next is of positions that all examples share.

        Shapes cannot tell where there are as many positions as examples, or one example.
        """
        if self._known:
            return self._count in self.lookups
        alone = self.examples > 1 and self.examples not in index.shape
        found = alone and (index.ndim == 1 or index.shape[0] == 1)
        if found:
            self.lookups |= {self._count}
        return found

    def visit(self, output: Tensor, parts: Sequence[Part | None], leading: int) -> Tensor:
        """Tell of a site; return the output to go on with."""
        kept = tuple(part for part in parts if part is not None)
        site = Site(self._count, kept, tuple(output.shape), leading)
        self._count += 1
        return self._listener.visit(site, output)
