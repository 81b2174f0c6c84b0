"""The state of a trace: what each live tensor carries, and one call of an operator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from bayespare.structure.labels import NOBODY, Ids, Ref, Value, varying
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

    A use of units that a rule does not understand is a debt: it rests on the tensors that come out
    of it, passes to whatever is computed from them, and the units are pinned only when such a
    tensor matters (:meth:`pay`). What nobody reads, as the averaged attention weights that
    ``nn.MultiheadAttention`` returns beside its output, costs nothing.

    Attributes:
        ledger: Where the rules note what they learn.
        stack: The modules that are running.
        widths: Whether units may be removed from under a norm that keeps its old width.
        opaque: The module, followed as a whole, that is running; None when there is none.
        given: The tensors it was called with.
    """

    def __init__(self, ledger: Ledger, stack: ModuleStack, *, widths: bool = False) -> None:
        self.ledger = ledger
        self.stack = stack
        self.widths = widths
        self.opaque: nn.Module | None = None
        self.given: tuple[Tensor, ...] = ()
        self._makers: dict[int, tuple[Tensor, str]] = {}
        self._pads: list[tuple[nn.Module | None, Ids, int, Ids]] = []
        # The tensor is kept beside its value: an id is only unique while its object lives.
        self._values: dict[int, tuple[Tensor, Ids | Ref]] = {}
        self._debts: list[tuple[list[Value], str]] = []
        self._owed: dict[int, tuple[Tensor, frozenset[int]]] = {}
        # The flag tells values from whole numbers (token ids, masks), whose path is no surprise.
        self._data: dict[int, tuple[Tensor, bool]] = {}
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

    def make(self, tensor: Tensor, weight: str) -> None:
        """Note that a product with a weight returned a tensor."""
        self._makers[id(tensor)] = (tensor, weight)

    def maker(self, tensor: Tensor) -> str | None:
        """Name of the weight whose product a tensor is; None when it is something else."""
        found = self._makers.get(id(tensor))
        return found[1] if found else None

    def add_data(self, tensor: Tensor) -> None:
        """Note that a tensor holds data: what is computed from it depends on the input."""
        self._data[id(tensor)] = (tensor, tensor.is_floating_point())

    def is_data(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on values of the input, not only on token ids or masks."""
        return self._data.get(id(tensor), (None, False))[1]

    def derive(self, out: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
        """Let what comes out depend on the data, and owe, as what went in does."""
        sources = list(sources)
        owed = frozenset[int]().union(*(self._owes(tensor) for tensor in sources))
        data = any(id(tensor) in self._data for tensor in sources)
        values = any(self.is_data(tensor) for tensor in sources)
        for tensor in out:
            if owed:
                self._owed[id(tensor)] = (tensor, owed | self._owes(tensor))
            if data:
                self._data[id(tensor)] = (tensor, values or tensor.is_floating_point())

    def _owes(self, tensor: Tensor) -> frozenset[int]:
        found = self._owed.get(id(tensor))
        return found[1] if found else frozenset()

    def refuse(self, call: Call, reason: str | None = None) -> None:
        """Pin every unit that meets this call as soon as what comes out of it matters."""
        values = [self.get(tensor) for tensor in call.tensors()]
        self.owe(values, reason or self.where(call, "is not understood"), call.out)

    def owe(self, values: list[Value], reason: str, out: Iterable[Tensor]) -> None:
        """Put a debt on tensors: these units have to stay if one of the tensors matters."""
        self._debts.append((values, reason))
        number = frozenset([len(self._debts) - 1])
        paid = True
        for tensor in out:
            self._owed[id(tensor)] = (tensor, self._owes(tensor) | number)
            paid = False
        if paid:
            self._pin(values, reason)

    def pay(self, tensors: Iterable[Tensor]) -> None:
        """Pin what these tensors owe: they matter, or nobody can say what they go into."""
        for number in sorted(frozenset[int]().union(*(self._owes(tensor) for tensor in tensors))):
            self._pin(*self._debts[number])

    def why(self, tensor: Tensor) -> str | None:
        """Why a tensor carries no units although it was made of some; None when it was not."""
        for number in sorted(self._owes(tensor)):
            values, reason = self._debts[number]
            if any(isinstance(value, np.ndarray) for value in values):
                return reason
        return None

    def pin(self, tensors: Iterable[Tensor], reason: str) -> None:
        """Pin the units that these tensors carry; the parameters among them may not be cut."""
        self._pin([self.get(tensor) for tensor in tensors], reason)

    def _pin(self, values: Iterable[Value], reason: str) -> None:
        for value in values:
            if isinstance(value, Ref):
                self.ledger.lose(value.name, reason)
            elif value is not None:
                self.ledger.pin(value[value >= 0], reason)

    def coarsen(self, ids: Ids, axis: int, call: Call, what: str) -> Ids | None:
        """Make one dimension free of units: those along it become one, or all are pinned.

        When units lie along another dimension too (heads beside the channels of each), what lies
        along this one goes together. When they lie along this dimension alone there is no unit
        left to remove: they are pinned.

        Returns:
            The ids, of size 1 along the dimension; None when no unit may go.
        """
        if ids.shape[axis] == 1:
            return ids
        if set(varying(ids)) == {axis}:
            self.owe([ids], self.where(call, what), call.out)
            return None
        return self.ledger.coarsen(ids, axis)

    def fits(self, ids: Ids, call: Call) -> None:
        """Note that the running module gives sizes by which units are laid out in this call."""
        if self.stack.top is not None:
            for axis in varying(ids):
                self.ledger.site(self.stack.name, ids, axis)

    def counts(self, attribute: str, ids: Ids) -> None:
        """Note that an attribute of the running module, if it has it, counts these entries."""
        if type(getattr(self.stack.top, attribute, None)) is int:
            self.ledger.fixture(self.stack.name, "count", attribute, ids)

    def padded(self, units: Ids, axis: int, ids: Ids) -> None:
        """Note that the running module fills entries with zeros; ``ids`` are those of all."""
        self._pads.append((self.stack.top, units, axis, ids))

    def left(self, module: nn.Module, output: Any) -> None:
        """Settle the zeros a module has added, now that it is known whether it returns them.

        What a module returns that does nothing else can be selected from. Where zeros are added on
        the way it depends on the forward, and only a proof can tell, whether it adds fewer of them.
        """
        pads = [pad for pad in self._pads if pad[0] is module]
        self._pads = [pad for pad in self._pads if pad[0] is not module]
        bare = not any(True for _ in (*module.parameters(), *module.buffers()))
        returned = self.ids(output)
        for _, units, axis, ids in pads:
            if bare and returned is ids:
                row = ids.ravel()
                added = np.isin(row, units)
                name, place = self.stack.name, str(axis)
                self.ledger.fixture(name, "padded", place, np.where(added, row, NOBODY))
                self.ledger.fixture(name, "passed", place, np.where(added, NOBODY, row))

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
