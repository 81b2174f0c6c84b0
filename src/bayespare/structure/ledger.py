"""The book a trace keeps: units born, units that are one, units that must stay, and their slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from bayespare.structure.labels import NOBODY, UNSEEN, Ids
from bayespare.structure.plan import FixtureKind, Role, UnitKind


@dataclass(frozen=True)
class Birth:
    """A run of ids that one layer (or the input) brought into being."""

    start: int
    name: str
    kind: UnitKind


@dataclass(frozen=True)
class Site:
    """A place in a forward that lays units out along a dimension of a given size."""

    layer: str
    ids: Ids
    axis: int


class Ledger:
    """Collects facts while a model runs; :func:`~bayespare.structure.settle.settle` settles them.

    Ids are integers counted from 0 in order of birth; ids of the input come first. Ids that were
    unified are one unit. -1 stands for nobody: an element that is there whatever is removed.

    Attributes:
        named: Parameters and buffers by name.
        births: Runs of ids, in order.
        size: Number of ids.
        input_size: Number of ids that are features of the input.
        pairs: Ids that are one unit.
        pins: Ids that have to stay, with the reason.
        weak_pins: Those that stay because others do.
        grids: Arrays of ids that lie along several dimensions: what is removed must leave a box.
        marks: Ids whose units have a kind and a name of their own (heads).
        sites: Where a forward gives sizes.
        owners: Per dimension of a tensor, the id that each index belongs to.
        roles: Per dimension of a tensor, what the units do there.
        fixtures: Per layer, kind and attribute or dimension, the ids along it.
        lost: Parameters that may not be cut, with the reason.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self.named = named
        self.births: list[Birth] = []
        self.size = 0
        self.input_size = 0
        self.pairs: list[tuple[Ids, Ids]] = []
        self.pins: list[tuple[Ids, str]] = []
        self.weak_pins: list[tuple[Ids, str]] = []
        self.grids: list[Ids] = []
        self.marks: list[tuple[Ids, UnitKind, str]] = []
        self.sites: list[Site] = []
        self.owners: dict[tuple[str, int], Ids] = {}
        self.roles: dict[tuple[str, int], list[Role]] = {}
        self.fixtures: dict[tuple[str, FixtureKind, str], Ids] = {}
        self.lost: dict[str, str] = {}

    def birth(self, name: str, kind: UnitKind, count: int) -> Ids:
        """New ids, shape ``(count,)``, for the outputs of a layer."""
        self.births.append(Birth(self.size, name, kind))
        ids = np.arange(self.size, self.size + count, dtype=np.int64)
        self.size += count
        if kind == "feature":
            self.input_size = self.size
        return ids

    def is_input(self, ids: Ids) -> bool:
        """Whether all ids are features of the data, which are selected late, at their reader."""
        return bool((ids < self.input_size).all())

    def unify(self, first: Ids, second: Ids) -> Ids:
        """Declare elements of two arrays (broadcast against each other) to be the same units."""
        if first is second:
            return first
        first, second = np.broadcast_arrays(first, second)
        both = (first >= 0) & (second >= 0) & (first != second)
        if both.any():
            self.pairs.append((first[both], second[both]))
        alone = (first >= 0) != (second >= 0)
        if alone.any():
            rest = np.maximum(first, second)[alone]
            self.weak_pins.append((rest, "coupled to entries that always stay"))
        return np.where(first >= 0, first, second)

    def coarsen(self, ids: Ids, axis: int) -> Ids:
        """Declare all ids along one dimension to be the same unit; return it with size 1 there."""
        first = ids.take([0], axis)
        return self.unify(first, ids).take([0], axis)

    def collapse(self, ids: Ids, axis: int, size: int) -> Ids:
        """Unify over all dimensions but one; return the ids along it, shape ``(size,)``."""
        table = np.moveaxis(ids, axis, -1).reshape(-1, ids.shape[axis])
        row = table[0]
        if len(table) > 1:
            row = self.unify(table[:1], table)[0]
        return np.broadcast_to(row, (size,))

    def pin(self, ids: Ids, reason: str) -> None:
        """Keep these units for good. The first reason given is the one that is told."""
        self.pins.append((ids.ravel(), reason))

    def mark(self, ids: Ids, kind: UnitKind, name: str) -> None:
        """Give these units a kind, and a name if it is not empty."""
        self.marks.append((ids[ids >= 0], kind, name))

    def site(self, layer: str, ids: Ids, axis: int) -> None:
        """Note that a module lays units out along a dimension, whose size it may hold itself."""
        self.sites.append(Site(layer, ids, axis))

    def lose(self, name: str, reason: str) -> None:
        """Note a use of a parameter that cannot follow removals, so that none may touch it."""
        self.lost.setdefault(name, reason)

    def record(self, name: str, dim: int, role: Role, ids: Ids, start: int = 0) -> None:
        """Note that the units ``ids`` lie along a dimension of a parameter, from ``start`` on."""
        if role != "read":
            # Features are selected where they are read: what acts on them earlier stays whole.
            ids = np.where(ids < self.input_size, NOBODY, ids)
        tensor = self.named[name]
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            self.pin(ids[ids >= 0], f"{name} is frozen")
        key = (name, dim)
        whole = self.owners.setdefault(key, np.full(tensor.shape[dim], UNSEEN)).copy()
        part = slice(start, start + len(ids))
        known = whole[part]
        seen = known != UNSEEN
        known[seen] = self.unify(known[seen], ids[seen])
        known[~seen] = ids[~seen]
        self.owners[key] = whole
        roles = self.roles.setdefault(key, [])
        if role not in roles:
            roles.append(role)

    def fixture(self, layer: str, kind: FixtureKind, name: str, ids: Ids) -> None:
        """Note something that is no tensor and has to follow the removal of the units ``ids``."""
        key = (layer, kind, name)
        if key in self.fixtures:
            ids = self.unify(self.fixtures[key], ids)
        self.fixtures[key] = ids
