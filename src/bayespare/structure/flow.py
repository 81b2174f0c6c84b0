"""The state of a trace: what each live tensor carries, and one call of an operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from bayespare.structure.labels import Ids, Ref, Value
from bayespare.structure.ledger import Ledger
from bayespare.structure.stack import ModuleStack


@dataclass(frozen=True)
class Call:
    """One operator as it ran.

    Attributes:
        name: Its name without overload, ``"addmm"``.
        args: Its arguments by the names of its schema.
        out: The tensors it returned.
    """

    name: str
    args: Mapping[str, Any]
    out: tuple[Tensor, ...]

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor among the arguments, those in lists too."""
        for arg in self.args.values():
            if isinstance(arg, Tensor):
                yield arg
            elif isinstance(arg, (list, tuple)):
                yield from (item for item in arg if isinstance(item, Tensor))


class Flow:
    """What the tensors of a running model carry.

    Attributes:
        ledger: Where the rules note what they learn.
        stack: The modules that are running.
    """

    def __init__(self, ledger: Ledger, stack: ModuleStack) -> None:
        self.ledger = ledger
        self.stack = stack
        # The tensor is kept beside its value: an id is only unique while its object lives.
        self._values: dict[int, tuple[Tensor, Ids | Ref]] = {}
        for name, tensor in ledger.named.items():
            self.set(tensor, Ref(name, tuple(range(tensor.ndim))))

    def get(self, tensor: Any) -> Value:
        """What a tensor carries, None when it carries nothing (or is no tensor)."""
        found = self._values.get(id(tensor))
        return found[1] if found else None

    def ids(self, tensor: Any) -> Ids | None:
        """The ids a tensor carries, None when there are none."""
        value = self.get(tensor)
        return value if isinstance(value, np.ndarray) else None

    def ref(self, tensor: Any) -> Ref | None:
        """The parameter or buffer a tensor shows, None when it shows none."""
        value = self.get(tensor)
        return value if isinstance(value, Ref) else None

    def set(self, tensor: Tensor, value: Value) -> None:
        """Let a tensor carry a value."""
        if value is None:
            self._values.pop(id(tensor), None)
        else:
            self._values[id(tensor)] = (tensor, value)

    def refuse(self, call: Call, reason: str | None = None) -> None:
        """Pin every unit that meets this call; the parameters in it may not be cut either."""
        self.pin(call.tensors(), reason or self.where(call, "is not understood"))

    def pin(self, tensors: Iterator[Tensor], reason: str) -> None:
        """Pin the units that these tensors carry."""
        for tensor in tensors:
            value = self.get(tensor)
            if isinstance(value, Ref):
                self.ledger.lose(value.name, reason)
            elif value is not None:
                self.ledger.pin(value[value >= 0], reason)

    def where(self, call: Call, what: str) -> str:
        """Return ``"<operator> (in layer <name>) <what>"``."""
        return f"{call.name} (in {self.stack.place}) {what}"

    def group_name(self, weight: str) -> str:
        """Name of the group that a weight writes: its layer, or itself when it has none."""
        layer, _, leaf = weight.rpartition(".")
        return layer if layer and leaf == "weight" else weight

    def reads_plainly(self, weight: str) -> bool:
        """Whether a Linear layer is running that multiplies its own input with this weight."""
        top = self.stack.top
        return isinstance(top, nn.Linear) and top.weight is self.ledger.named[weight]
