"""The book a trace keeps: units born, units that are one, units that must stay, and their slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bayespare.structure.labels import NOBODY, Ids
from bayespare.structure.plan import Group, Plan, Role, Slot, UnitKind


@dataclass(frozen=True)
class _Birth:
    """A run of ids that one layer (or the input) brought into being."""

    start: int
    name: str
    kind: UnitKind


class Ledger:
    """Collects facts while a model runs; :meth:`plan` settles them.

    Ids are integers counted from 0 in order of birth; ids of the input come first. Ids that were
    unified are one unit. -1 stands for nobody: an element that is there whatever is removed.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self.named = named
        self.births: list[_Birth] = []
        self.size = 0
        self.input_size = 0
        self._pairs: list[tuple[Ids, Ids]] = []
        self._pins: list[tuple[Ids, str]] = []
        self._owners: dict[tuple[str, int], Ids] = {}
        self._roles: dict[tuple[str, int], list[Role]] = {}
        self._lost: dict[str, str] = {}

    def birth(self, name: str, kind: UnitKind, count: int) -> Ids:
        """New ids, shape ``(count,)``, for the outputs of a layer."""
        self.births.append(_Birth(self.size, name, kind))
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
            self._pairs.append((first[both], second[both]))
        alone = (first >= 0) != (second >= 0)
        if alone.any():
            self.pin(np.maximum(first, second)[alone], "coupled to entries that always stay")
        return np.where(first >= 0, first, second)

    def collapse(self, ids: Ids, axis: int, size: int) -> Ids:
        """Unify over all dimensions but one; return the ids along it, shape ``(size,)``."""
        table = np.moveaxis(ids, axis, -1).reshape(-1, ids.shape[axis])
        row = table[0]
        if len(table) > 1:
            row = self.unify(table[:1], table)[0]
        return np.broadcast_to(row, (size,))

    def pin(self, ids: Ids, reason: str) -> None:
        """Keep these units for good. The first reason given is the one that is told."""
        self._pins.append((ids.ravel(), reason))

    def lose(self, name: str, reason: str) -> None:
        """Note a use of a parameter that cannot follow removals, so that none may touch it."""
        self._lost.setdefault(name, reason)

    def record(self, name: str, dim: int, role: Role, ids: Ids) -> None:
        """Note that the units ``ids`` lie along one dimension of a parameter or buffer."""
        if role != "read":
            # Features are selected where they are read: what acts on them earlier stays whole.
            ids = np.where(ids < self.input_size, NOBODY, ids)
        tensor = self.named[name]
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            self.pin(ids[ids >= 0], "frozen")
        key = (name, dim)
        if key in self._owners:
            ids = self.unify(self._owners[key], ids)
        self._owners[key] = ids
        roles = self._roles.setdefault(key, [])
        if role not in roles:
            roles.append(role)

    def plan(self) -> Plan:
        """Settle what was noted: one group per layer and set of slots, all else left alone."""
        for (name, _), ids in self._owners.items():
            if name in self._lost:
                self.pin(ids[ids >= 0], self._lost[name])
        root = _components(self.size, self._pairs)
        reasons = self._reasons(root)
        owners = {key: np.where(ids >= 0, root[ids], NOBODY) for key, ids in self._owners.items()}
        free = np.ones(self.size, dtype=bool)
        free[list(reasons)] = False
        unit_of = np.full(self.size, NOBODY)
        group_of = np.full(self.size, NOBODY)
        heads: list[tuple[str, UnitKind, int]] = []
        names: dict[str, int] = {}
        for members in self._members(root, owners, free):
            birth = self.births[self._birth_of(members[:1])[0]]
            names[birth.name] = names.get(birth.name, 0) + 1
            suffix = f"#{names[birth.name]}" if names[birth.name] > 1 else ""
            unit_of[members] = np.arange(len(members))
            group_of[members] = len(heads)
            heads.append((birth.name + suffix, birth.kind, len(members)))
        slots: list[list[Slot]] = [[] for _ in heads]
        for (name, dim), ids in owners.items():
            group_at = np.where(ids >= 0, group_of[ids], NOBODY)
            for number in np.unique(group_at[group_at >= 0]):
                owner = torch.from_numpy(np.where(group_at == number, unit_of[ids], NOBODY))
                slots[number] += [Slot(name, dim, role, owner) for role in self._roles[name, dim]]
        groups = tuple(
            Group(name, size, kind, tuple(of_group))
            for (name, kind, size), of_group in zip(heads, slots, strict=True)
        )
        return Plan(groups, self._left_alone(groups, owners, reasons))

    def _birth_of(self, ids: Ids) -> Ids:
        starts = np.array([birth.start for birth in self.births])
        return np.asarray(np.searchsorted(starts, ids, side="right") - 1, dtype=np.int64)

    def _reasons(self, root: Ids) -> dict[int, str]:
        """Root id to why its unit stays."""
        reasons: dict[int, str] = {}
        for ids, reason in self._pins:
            for unit in np.unique(root[ids[ids >= 0]]).tolist():
                reasons.setdefault(unit, reason)
        # A root is the smallest id of its unit: a feature when any member is one.
        mixed = np.unique(root[self.input_size :])
        for unit in mixed[mixed < self.input_size].tolist():
            reasons.setdefault(unit, "combined with the input of the network")
        return reasons

    def _members(
        self, root: Ids, owners: Mapping[tuple[str, int], Ids], free: npt.NDArray[np.bool_]
    ) -> list[Ids]:
        """Root ids of the units of each group, in order of birth."""
        found: list[Ids] = []
        read = np.concatenate([*owners.values(), np.zeros(0, dtype=np.int64)])
        features = np.unique(root[: self.input_size])
        source = self._birth_of(features)
        for number in np.unique(source):
            of_source = features[source == number]
            if free[of_source].all() and np.isin(of_source, read).any():
                found.append(of_source)
        units = np.unique(root[self.input_size :])
        units = units[free[units] & (units >= self.input_size)]
        if not len(units):
            return found
        row_of = np.full(self.size, NOBODY)
        row_of[units] = np.arange(len(units))
        signature = np.zeros((len(units), len(owners) + 1), dtype=np.int64)
        signature[:, 0] = self._birth_of(units)
        for column, ids in enumerate(owners.values(), start=1):
            rows = row_of[ids[ids >= 0]]
            signature[rows[rows >= 0], column] = 1
        _, first, kind = np.unique(signature, axis=0, return_index=True, return_inverse=True)
        return found + [units[kind.ravel() == number] for number in np.argsort(first)]

    def _left_alone(
        self,
        groups: tuple[Group, ...],
        owners: Mapping[tuple[str, int], Ids],
        reasons: Mapping[int, str],
    ) -> dict[str, str]:
        """Name to reason for every parameter, and the input, that no unit's removal shortens."""
        gated = {s.tensor for group in groups for s in group.slots if s.role != "read"}
        told: dict[str, str] = {}
        ends = [*(birth.start for birth in self.births), self.size][1:]
        for birth, end in zip(self.births, ends, strict=True):
            if birth.kind == "feature" and birth.name not in {group.name for group in groups}:
                known = (reasons[unit] for unit in range(birth.start, end) if unit in reasons)
                told[birth.name] = next(known, "not read by a linear layer")
        for name, tensor in self.named.items():
            if isinstance(tensor, nn.Parameter) and name not in gated:
                told[name] = self._lost.get(name, "not used when the model runs")
        for (name, dim), ids in owners.items():
            if name in told and name not in self._lost and self._roles[name, dim] != ["read"]:
                pinned = (unit for unit in ids.tolist() if unit in reasons)
                told[name] = next((reasons[unit] for unit in pinned), "acts on no removable unit")
        return told


def _components(size: int, pairs: list[tuple[Ids, Ids]]) -> Ids:
    """Smallest id of the connected component of every id."""
    root = np.arange(size, dtype=np.int64)
    if not pairs:
        return root
    left = np.concatenate([a.ravel() for a, _ in pairs])
    right = np.concatenate([b.ravel() for _, b in pairs])
    while True:
        a, b = root[left], root[right]
        if (a == b).all():
            return root
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root[root] != root).any():
            root = root[root]
