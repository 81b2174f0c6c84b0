"""What can be removed from a network: groups of coupled units, and where each unit sits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bayespare.errors import BayespareError, did_you_mean
from bayespare.structure.parts import (
    Fixture,
    FixtureKind,
    Group,
    Role,
    Slot,
    UnitKind,
    inside,
)

__all__ = ["Fixture", "FixtureKind", "Group", "Plan", "Role", "Slot", "UnitKind", "Verdict"]

KEPT_WHOLE, NOT_TOUCHED = "kept whole, as asked", "not touched, as asked"
OUTPUT = "network output"
"""Reasons why a parameter is left alone, of the user and of what it is for."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What can be removed from a model, and what is left alone, because of what.

    Attributes:
        groups: The removable groups, in the order the network computes them.
        left_alone: Parameter or layer name to the reason why it is not gated on its output side.
    """

    groups: tuple[Group, ...]
    left_alone: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Group:
        """Return the group of that name, or raise with a did-you-mean."""
        for group in self.groups:
            if group.name == name:
                return group
        known = [group.name for group in self.groups]
        raise BayespareError(f"the plan has no group {name!r}{did_you_mean(name, known)}")

    @property
    def size(self) -> int:
        """Number of removable units in all groups."""
        return sum(group.size for group in self.groups)

    def is_output(self, layer: str) -> bool:
        """Whether a layer's outputs are the network's."""
        return self.left_alone.get(f"{layer}.weight") == OUTPUT

    def as_asked(self, layer: str) -> bool:
        """Whether a layer's outputs stay because the user said so."""
        return self.left_alone.get(f"{layer}.weight") in (KEPT_WHOLE, NOT_TOUCHED)

    def keep_whole(self, *names: str) -> Plan:
        """Return the plan in which the outputs of these layers stay whole.

        Args:
            *names: Groups, layers, or parts of the model (``"layer1"`` is all of it).

        Raises:
            BayespareError: If the plan knows no such name; the message has the nearest one.
        """
        return self._without(names, KEPT_WHOLE, lambda group: group.computed_by())

    def never_touch(self, *names: str) -> Plan:
        """Return the plan in which no parameter of these layers is cut, on either side.

        Args:
            *names: As in :meth:`keep_whole`.

        Raises:
            BayespareError: If the plan knows no such name; the message has the nearest one.
        """
        return self._without(names, NOT_TOUCHED, lambda group: group.layers())

    def only(self, *names: str, unit: UnitKind | None = None) -> Plan:
        """Return the plan in which only the units of these layers can be removed.

        Args:
            *names: As in :meth:`keep_whole`; none means all.
            unit: Only units of this kind, ``"head"``.

        Raises:
            BayespareError: If the plan knows no such name, or no unit of that kind.
        """
        self._check(names)
        kept = [
            group
            for group in self.groups
            if (not names or group.named(names, group.computed_by())) and unit in (None, group.unit)
        ]
        if not kept:
            kinds = ", ".join(sorted({group.unit for group in self.groups}))
            raise BayespareError(f"the plan has no such units of kind {unit!r} (kinds: {kinds})")
        return self._with(tuple(kept), KEPT_WHOLE)

    def _without(
        self, names: Sequence[str], why: str, layers: Callable[[Group], frozenset[str]]
    ) -> Plan:
        self._check(names)
        return self._with(tuple(g for g in self.groups if not g.named(names, layers(g))), why)

    def _check(self, names: Sequence[str]) -> None:
        """Raise for a name that is no group, no layer and no part of the model."""
        known = frozenset().union(*(group.layers() | {group.name} for group in self.groups))
        for name in names:
            if not any(inside(place, name) for place in known):
                raise BayespareError(f"the plan has no {name!r}{did_you_mean(name, known)}")

    def _with(self, groups: tuple[Group, ...], why: str) -> Plan:
        """The plan of fewer groups, with the reason for what is no longer gated."""
        gated = {slot.tensor for group in groups for slot in group.slots if slot.role != "read"}
        left_alone = dict(self.left_alone)
        for group in self.groups:
            if group in groups:
                continue
            if next(group.writes(), None) is None:
                left_alone[group.name] = why
            for slot in group.slots:
                if slot.role != "read" and slot.tensor not in gated:
                    left_alone[slot.tensor] = why
        return Plan(groups, left_alone)

    def closed(self, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``keep`` without the units that nobody would read any more.

        Where two groups lie along one dimension (a channel and its positions after a flatten),
        removing units of one can leave a unit of the other with nothing that reads it.

        Args:
            keep: Group name to a boolean tensor, shape ``(group.size,)``; groups that are not
                named stay whole.

        Returns:
            Keep per group, all groups named.
        """
        verdict = Verdict(self, keep)
        kept = {group.name: verdict.of(group).clone() for group in self.groups}
        crowded: dict[tuple[str, int], int] = {}
        for group in self.groups:
            for slot in group.reads():
                key = (slot.tensor, slot.dim)
                crowded[key] = crowded.get(key, 0) + 1
        shared = [g for g in self.groups if any(crowded[s.tensor, s.dim] > 1 for s in g.reads())]
        changed = bool(shared)
        while changed:
            changed = False
            lines = self.lines(kept)
            for group in shared:
                read = torch.zeros(group.size, dtype=torch.bool)
                for slot in group.reads():
                    read[slot.owner[lines[slot.tensor, slot.dim] & (slot.owner >= 0)]] = True
                if bool((kept[group.name] & ~read).any()):
                    kept[group.name] &= read
                    changed = True
        return kept

    @property
    def all_units(self) -> dict[str, Tensor]:
        """Every unit of every group, boolean: what is there before anything is removed."""
        return {group.name: torch.ones(group.size, dtype=torch.bool) for group in self.groups}

    def surviving(
        self, keep: Mapping[str, Tensor], odds: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return ``keep`` closed, with one path left where it would empty a group.

        Args:
            keep: As in :meth:`closed`.
            odds: Log-odds per unit, for the groups that have any: the path with the highest sum
                is the one that stays.

        Returns:
            Keep per group, all groups named, none empty.
        """
        kept = {group.name: Verdict(self, keep).of(group).clone() for group in self.groups}
        for group in self.groups:
            if bool(self.closed(kept)[group.name].any()):
                continue
            place = next((slot.tensor, slot.dim) for slot in group.reads())
            owners = [
                (other.name, slot.owner)
                for other in self.groups
                for slot in other.reads()
                if (slot.tensor, slot.dim) == place
            ]
            total = torch.zeros(len(owners[0][1]))
            for name, owner in owners:
                if name in odds:
                    total += odds[name].float()[owner.clamp_min(0)]
                if name == group.name:
                    total[owner < 0] = -torch.inf
            best = int(total.argmax())
            for name, owner in owners:
                if owner[best] >= 0:
                    kept[name][owner[best]] = True
        return self.closed(kept)

    def lines(self, kept: Mapping[str, Tensor]) -> dict[tuple[str, int], Tensor]:
        """For each dimension that units lie along, the indices that are left."""
        lines: dict[tuple[str, int], Tensor] = {}
        for group in self.groups:
            for slot in group.slots:
                line = slot.kept(kept[group.name])
                key = (slot.tensor, slot.dim)
                lines[key] = lines[key] & line if key in lines else line
        return lines

    def entries(self, kept: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
        """For each fixture (its layer, its name) which of its entries are left."""
        entries: dict[tuple[str, str], Tensor] = {}
        for group in self.groups:
            for fixture in group.fixtures:
                line = fixture.kept(kept[group.name])
                key = fixture.place
                entries[key] = entries[key] & line if key in entries else line
        return entries

    def restrict(self, keep: Mapping[str, Tensor]) -> Plan:
        """Return the plan of the network that is left when only the units in ``keep`` stay.

        Args:
            keep: Group name to a boolean tensor, shape ``(group.size,)``; groups that are not
                named stay whole.
        """
        kept = self.closed(keep)
        # Several groups may lie along one dimension: it loses the indices of all.
        lines, entries = self.lines(kept), self.entries(kept)
        groups = []
        for group in self.groups:
            number = kept[group.name].cumsum(0) - 1
            slots = []
            for slot in group.slots:
                owner = torch.where(slot.owner < 0, -1, number[slot.owner.clamp_min(0)])
                owner = owner[lines[slot.tensor, slot.dim]]
                slots.append(replace(slot, owner=owner))
            fixtures = []
            for fixture in group.fixtures:
                owner = torch.where(fixture.owner < 0, -1, number[fixture.owner.clamp_min(0)])
                owner = owner[entries[fixture.place]]
                fixtures.append(replace(fixture, owner=owner))
            size = int(kept[group.name].sum())
            groups.append(replace(group, size=size, slots=tuple(slots), fixtures=tuple(fixtures)))
        return Plan(tuple(groups), self.left_alone)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-ready lists and strings."""
        return {
            "groups": [group.to_json() for group in self.groups],
            "left_alone": dict(self.left_alone),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan written by :meth:`to_json`.

        Raises:
            BayespareError: If a field is missing or an owner is out of range.
        """
        try:
            groups = tuple(Group.from_json(g) for g in data["groups"])
            left_alone = {str(k): str(v) for k, v in data["left_alone"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BayespareError(f"the plan is damaged: {error!r}") from error
        for group in groups:
            named = [(s.tensor, s.owner) for s in group.slots]
            for name, owner in named + [(f.layer, f.owner) for f in group.fixtures]:
                if len(owner) and int(owner.max()) >= group.size:
                    raise BayespareError(
                        f"the plan is damaged: {name} names a unit that group "
                        f"{group.name!r} (size {group.size}) does not have"
                    )
        return cls(groups, left_alone)


@dataclass(frozen=True, eq=False)
class Verdict:
    """Which units stay.

    Attributes:
        plan: The plan the verdict is about.
        keep: Group name to a boolean tensor, shape ``(group.size,)``. Groups that are not
            named stay whole.
    """

    plan: Plan
    keep: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, keep in self.keep.items():
            group = self.plan[name]
            if keep.dtype != torch.bool or keep.shape != (group.size,):
                raise BayespareError(
                    f"verdict for {name!r}: needs a boolean tensor of shape ({group.size},), "
                    f"got {keep.dtype} {tuple(keep.shape)}"
                )

    def of(self, group: Group) -> Tensor:
        """Boolean keep per unit of a group (all true when the verdict does not name it)."""
        keep = self.keep.get(group.name)
        return torch.ones(group.size, dtype=torch.bool) if keep is None else keep

    @property
    def kept(self) -> dict[str, tuple[int, int]]:
        """Group name to (units kept, units in all)."""
        return {g.name: (int(self.of(g).sum()), g.size) for g in self.plan.groups}
