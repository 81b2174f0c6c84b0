"""What can be removed from a network: groups of coupled units, and where each unit sits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bayespare.errors import BayespareError, did_you_mean

Role = Literal["write", "scale", "read"]
UnitKind = Literal["unit", "channel", "head", "feature", "position"]


@dataclass(frozen=True, eq=False)
class Slot:
    """One dimension of one tensor along which the units of a group lie.

    Attributes:
        tensor: Name of the parameter or buffer in the model, ``"fc1.weight"``.
        dim: The dimension the units index.
        role: ``write``: the entries that compute the unit (rows of the weight, the bias);
            ``scale``: entries of a normalisation that act on the unit alone;
            ``read``: the entries of a later layer that multiply the unit's output.
        owner: int64, shape ``(size of dim,)``: the unit that each index belongs to, or -1
            for an index that belongs to no unit of this group.
    """

    tensor: str
    dim: int
    role: Role
    owner: Tensor

    @property
    def layer(self) -> str:
        """Name of the module that holds the tensor (``""`` is the model itself)."""
        return self.tensor.rpartition(".")[0]

    def kept(self, keep: Tensor) -> Tensor:
        """Boolean mask over the dimension, from a boolean keep per unit."""
        kept = keep[self.owner.clamp_min(0)]
        return kept | (self.owner < 0)


@dataclass(frozen=True, eq=False)
class Group:
    """Units that are removed one by one; each unit takes all its slots with it.

    Attributes:
        name: The layer that computes the units (the first one, when several do); ``"input"``
            for the features of the data.
        size: Number of units.
        unit: ``unit`` (neuron), ``channel``, ``head``, ``feature`` (of the data) or ``position``
            (an entry of a flattened feature map). The last two are only read, never written.
        slots: Every place where the units lie. A unit is removed by cutting all of them.
    """

    name: str
    size: int
    unit: UnitKind
    slots: tuple[Slot, ...] = field(repr=False)

    def reads(self) -> Iterator[Slot]:
        """The slots in which later layers read the units."""
        return (slot for slot in self.slots if slot.role == "read")

    def writes(self) -> Iterator[Slot]:
        """The slots that compute the units."""
        return (slot for slot in self.slots if slot.role == "write")


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

    def restrict(self, keep: Mapping[str, Tensor]) -> Plan:
        """Return the plan of the network that is left when only the units in ``keep`` stay.

        Args:
            keep: Group name to a boolean tensor, shape ``(group.size,)``; groups that are not
                named stay whole.
        """
        kept = self.closed(keep)
        # Several groups may lie along one dimension: it loses the indices of all.
        lines = self.lines(kept)
        groups = []
        for group in self.groups:
            number = kept[group.name].cumsum(0) - 1
            slots = []
            for slot in group.slots:
                owner = torch.where(slot.owner < 0, -1, number[slot.owner.clamp_min(0)])
                owner = owner[lines[slot.tensor, slot.dim]]
                slots.append(replace(slot, owner=owner))
            size = int(kept[group.name].sum())
            groups.append(replace(group, size=size, slots=tuple(slots)))
        return Plan(tuple(groups), self.left_alone)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-ready lists and strings."""
        return {
            "groups": [
                {
                    "name": g.name,
                    "size": g.size,
                    "unit": g.unit,
                    "slots": [
                        {"tensor": s.tensor, "dim": s.dim, "role": s.role, "owner": _runs(s.owner)}
                        for s in g.slots
                    ],
                }
                for g in self.groups
            ],
            "left_alone": dict(self.left_alone),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan written by :meth:`to_json`.

        Raises:
            BayespareError: If a field is missing or an owner is out of range.
        """
        try:
            groups = tuple(
                Group(
                    name=str(g["name"]),
                    size=int(g["size"]),
                    unit=g["unit"],
                    slots=tuple(
                        Slot(str(s["tensor"]), int(s["dim"]), s["role"], _unruns(s["owner"]))
                        for s in g["slots"]
                    ),
                )
                for g in data["groups"]
            )
            left_alone = {str(k): str(v) for k, v in data["left_alone"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BayespareError(f"the plan is damaged: {error!r}") from error
        for group in groups:
            for slot in group.slots:
                if len(slot.owner) and int(slot.owner.max()) >= group.size:
                    raise BayespareError(
                        f"the plan is damaged: {slot.tensor} names a unit that group "
                        f"{group.name!r} (size {group.size}) does not have"
                    )
        return cls(groups, left_alone)


def _runs(owner: Tensor) -> list[list[int]]:
    """Compress owners to ``[first unit, step, count]`` runs: most are 0, 1, 2, ... or constant."""
    runs: list[list[int]] = []
    for value in owner.tolist():
        if runs:
            first, step, count = runs[-1]
            if count == 1 and value - first in (0, 1):
                runs[-1] = [first, value - first, 2]
                continue
            if count > 1 and value == first + step * count:
                runs[-1][2] += 1
                continue
        runs.append([value, 0, 1])
    return runs


def _unruns(runs: Any) -> Tensor:
    """Undo :func:`_runs`, refusing sizes that no real layer has."""
    parts = []
    total = 0
    for first, step, count in runs:
        total += int(count)
        if not 0 < int(count) <= total <= 2**26 or step not in (0, 1):
            raise ValueError(f"run {[first, step, count]}")
        parts.append(int(first) + int(step) * torch.arange(int(count)))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


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
