"""The parts of a plan: groups of coupled units, and the places where each unit sits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from bayespare.structure.runs import runs, unruns

Role = Literal["write", "scale", "read"]
UnitKind = Literal["unit", "channel", "head", "feature", "position"]
FixtureKind = Literal["count", "padded", "passed", "norm", "flat", "gain"]


def _kept(owner: Tensor, keep: Tensor) -> Tensor:
    """Whether each entry stays: its unit does, or it belongs to none."""
    return keep[owner.clamp_min(0)] | (owner < 0)


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
        return _kept(self.owner, keep)


@dataclass(frozen=True, eq=False)
class Fixture:
    """Something in a forward that is no tensor and has to follow the removal of units.

    Attributes:
        layer: Name of the module.
        kind: ``count``: an integer attribute that says how many entries there are (``num_heads``,
            ``groups``);
            ``padded`` and ``passed``: entries of the module's output that it fills with zeros
            whatever is removed, and entries that pass through it;
            ``norm``: a normalisation over the units, which keeps its old width;
            ``flat``: a linear layer that reads each unit several times, as of a flattened map;
            ``gain``: a norm straight behind the weight that computes the units, which cancels a
            factor of its rows.
        name: The attribute; for entries of an output the dimension they lie along; for a gain the
            name of the weight.
        owner: int64: the unit that each of the entries belongs to, or -1.
    """

    layer: str
    kind: FixtureKind
    name: str
    owner: Tensor

    @property
    def place(self) -> tuple[str, str]:
        """Layer and name: fixtures of several groups may be at one place."""
        return self.layer, self.name

    def kept(self, keep: Tensor) -> Tensor:
        """Boolean mask over the entries, from a boolean keep per unit."""
        return _kept(self.owner, keep)


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
        fixtures: What else has to follow: attributes that count the units, norms over them.
    """

    name: str
    size: int
    unit: UnitKind
    slots: tuple[Slot, ...] = field(repr=False)
    fixtures: tuple[Fixture, ...] = field(default=(), repr=False)

    def reads(self) -> Iterator[Slot]:
        """The slots in which later layers read the units."""
        return (slot for slot in self.slots if slot.role == "read")

    def writes(self) -> Iterator[Slot]:
        """The slots that compute the units."""
        return (slot for slot in self.slots if slot.role == "write")

    def layers(self) -> frozenset[str]:
        """Every layer in which the units lie."""
        return frozenset(slot.layer for slot in self.slots)

    def computed_by(self) -> frozenset[str]:
        """The layers that compute the units."""
        return frozenset(slot.layer for slot in self.writes())

    def named(self, names: Sequence[str], layers: frozenset[str]) -> bool:
        """Whether one of the names is the group's, or holds one of the layers."""
        return any(inside(place, name) for name in names for place in {self.name, *layers})

    def to_json(self) -> dict[str, Any]:
        """Return the group as JSON-ready lists and strings."""
        return {
            "name": self.name,
            "size": self.size,
            "unit": self.unit,
            "slots": [
                {"tensor": s.tensor, "dim": s.dim, "role": s.role, "owner": runs(s.owner)}
                for s in self.slots
            ],
            "fixtures": [
                {"layer": f.layer, "kind": f.kind, "name": f.name, "owner": runs(f.owner)}
                for f in self.fixtures
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Group:
        """Rebuild a group written by :meth:`to_json`."""
        return cls(
            name=str(data["name"]),
            size=int(data["size"]),
            unit=data["unit"],
            slots=tuple(
                Slot(str(s["tensor"]), int(s["dim"]), s["role"], unruns(s["owner"]))
                for s in data["slots"]
            ),
            fixtures=tuple(
                Fixture(str(f["layer"]), f["kind"], str(f["name"]), unruns(f["owner"]))
                for f in data.get("fixtures", ())
            ),
        )


def inside(place: str, name: str) -> bool:
    """Whether a layer is another one or a part of it."""
    return place == name or place.startswith(f"{name}.")
