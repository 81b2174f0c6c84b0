"""From what a trace noted to a plan: which units there are, where they lie, and what stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bayespare.structure.labels import NOBODY, Ids, compress, varying
from bayespare.structure.ledger import Ledger, Site
from bayespare.structure.plan import Fixture, Group, Plan, Slot, UnitKind


def settle(ledger: Ledger, model: nn.Module) -> Plan:
    """One group for each layer and set of slots; everything else is left alone, with the reason."""
    root = _boxes(ledger)
    _find_counts(ledger, model, root)
    pins = [*ledger.pins, *ledger.weak_pins]
    for (name, _), ids in ledger.owners.items():
        if name in ledger.lost:
            pins.append((ids[ids >= 0], ledger.lost[name]))
    root = components(ledger.size, ledger.pairs)
    reasons = _reasons(ledger, root, pins)
    owners = {key: np.where(ids >= 0, root[ids], NOBODY) for key, ids in ledger.owners.items()}
    free = np.ones(ledger.size, dtype=bool)
    free[list(reasons)] = False
    unit_of = np.full(ledger.size, NOBODY)
    group_of = np.full(ledger.size, NOBODY)
    heads: list[tuple[str, UnitKind, int]] = []
    names: dict[str, int] = {}
    marks = _marks(ledger, root)
    for members in _members(ledger, root, owners, free):
        birth = ledger.births[_birth_of(ledger, members[:1])[0]]
        kind, own = marks.get(int(members[0]), (birth.kind, ""))
        name = own or birth.name
        names[name] = names.get(name, 0) + 1
        suffix = f"#{names[name]}" if names[name] > 1 else ""
        unit_of[members] = np.arange(len(members))
        group_of[members] = len(heads)
        heads.append((name + suffix, kind, len(members)))

    def by_group(ids: Ids) -> Iterator[tuple[int, torch.Tensor]]:
        group_at = np.where(ids >= 0, group_of[ids], NOBODY)
        for number in np.unique(group_at[group_at >= 0]).tolist():
            yield number, torch.from_numpy(np.where(group_at == number, unit_of[ids], NOBODY))

    slots: list[list[Slot]] = [[] for _ in heads]
    for (tensor, dim), ids in owners.items():
        for number, owner in by_group(ids):
            slots[number] += [Slot(tensor, dim, role, owner) for role in ledger.roles[tensor, dim]]
    fixtures: list[list[Fixture]] = [[] for _ in heads]
    for (layer, what, place), ids in ledger.fixtures.items():
        for number, owner in by_group(np.where(ids >= 0, root[ids], NOBODY)):
            fixtures[number].append(Fixture(layer, what, place, owner))
    groups = tuple(
        Group(name, size, kind, tuple(of_group), tuple(beside))
        for (name, kind, size), of_group, beside in zip(heads, slots, fixtures, strict=True)
    )
    return Plan(groups, _left_alone(ledger, groups, owners, reasons))


def _boxes(ledger: Ledger) -> Ids:
    """Unify until what is removed leaves a box wherever units lie along several dimensions.

    Where nothing else has decided (attention makes heads), the longest dimension keeps its units
    and what lies along the others goes together: the channels at the same place of every group.
    """
    root = components(ledger.size, ledger.pairs)
    changed = True
    while changed:
        changed = False
        for grid in ledger.grids:
            ids = compress(np.where(grid >= 0, root[grid], NOBODY))
            axes = varying(ids)
            if len(axes) > 1:
                longest = max(axes, key=lambda axis: (ids.shape[axis], axis))
                ledger.collapse(ids, longest, ids.shape[longest])
                root = components(ledger.size, ledger.pairs)
                changed = True
    return root


def _find_counts(ledger: Ledger, model: nn.Module, root: Ids) -> None:
    """Find the attributes by which modules lay units out: ``num_heads``, ``split_size``.

    They are known by their value alone, so a proof has to follow. Where an attribute has the value
    of several sizes the last one counts: modules take what arrives as it is, and shape what leaves.
    """
    found: dict[tuple[str, str], Ids] = {}
    for site in ledger.sites:
        module = model.get_submodule(site.layer)
        names = [name for name, value in vars(module).items() if type(value) is int]
        if isinstance(module, nn.MultiheadAttention):
            names = ["num_heads"]
        elif type(module).__module__.startswith("torch.nn.modules"):
            continue  # other stock layers take their sizes from their tensors
        for ids in _counted(site, root):
            for name in names:
                if getattr(module, name) == len(ids) > 1 and not name.startswith("_"):
                    found[site.layer, name] = ids
    for (layer, name), ids in found.items():
        ledger.fixture(layer, "count", name, ids)


def _counted(site: Site, root: Ids) -> Iterator[Ids]:
    """What a size may count: the entries along a dimension, or the units among them."""
    ids = compress(np.where(site.ids >= 0, root[site.ids], NOBODY))
    if varying(ids) != [site.axis]:
        return
    row = ids.ravel()
    yield row
    units, times = np.unique(row, return_counts=True)
    if len(units) < len(row) and len(np.unique(times)) == 1:
        yield row[np.sort(np.unique(row, return_index=True)[1])]


def _birth_of(ledger: Ledger, ids: Ids) -> Ids:
    starts = np.array([birth.start for birth in ledger.births])
    return np.asarray(np.searchsorted(starts, ids, side="right") - 1, dtype=np.int64)


def _marks(ledger: Ledger, root: Ids) -> dict[int, tuple[UnitKind, str]]:
    """Root id to the kind and name that the unit was given."""
    marks: dict[int, tuple[UnitKind, str]] = {}
    for ids, kind, name in ledger.marks:
        for unit in np.unique(root[ids]).tolist():
            marks.setdefault(unit, (kind, name))
    return marks


def _reasons(ledger: Ledger, root: Ids, pins: list[tuple[Ids, str]]) -> dict[int, str]:
    """Root id to why its unit stays."""
    reasons: dict[int, str] = {}
    for ids, reason in pins:
        for unit in np.unique(root[ids[ids >= 0]]).tolist():
            reasons.setdefault(unit, reason)
    # A root is the smallest id of its unit: a feature when any member is one.
    mixed = np.unique(root[ledger.input_size :])
    for unit in mixed[mixed < ledger.input_size].tolist():
        reasons.setdefault(unit, "combined with the input of the network")
    return reasons


def _members(
    ledger: Ledger, root: Ids, owners: Mapping[tuple[str, int], Ids], free: npt.NDArray[np.bool_]
) -> list[Ids]:
    """Root ids of the units of each group, in order of birth."""
    found: list[Ids] = []
    read = np.concatenate([*owners.values(), np.zeros(0, dtype=np.int64)])
    written = [ids for key, ids in owners.items() if "write" in ledger.roles[key]]
    features = np.unique(root[: ledger.input_size])
    source = _birth_of(ledger, features)
    for number in np.unique(source):
        of_source = features[source == number]
        if free[of_source].all() and np.isin(of_source, read).any():
            found.append(of_source)
    units = np.unique(root[ledger.input_size :])
    units = units[free[units] & (units >= ledger.input_size)]
    units = units[np.isin(units, np.concatenate([*written, np.zeros(0, dtype=np.int64)]))]
    if not len(units):
        return found
    row_of = np.full(ledger.size, NOBODY)
    row_of[units] = np.arange(len(units))
    signature = np.zeros((len(units), len(owners) + 1), dtype=np.int64)
    signature[:, 0] = _birth_of(ledger, units)
    for column, ids in enumerate(owners.values(), start=1):
        rows = row_of[ids[ids >= 0]]
        signature[rows[rows >= 0], column] = 1
    _, first, kind = np.unique(signature, axis=0, return_index=True, return_inverse=True)
    return found + [units[kind.ravel() == number] for number in np.argsort(first)]


def _left_alone(
    ledger: Ledger,
    groups: tuple[Group, ...],
    owners: Mapping[tuple[str, int], Ids],
    reasons: Mapping[int, str],
) -> dict[str, str]:
    """Name to reason for every parameter, and the input, that no unit's removal shortens."""
    gated = {s.tensor for group in groups for s in group.slots if s.role != "read"}
    told: dict[str, str] = {}
    ends = [*(birth.start for birth in ledger.births), ledger.size][1:]
    for birth, end in zip(ledger.births, ends, strict=True):
        if birth.kind == "feature" and birth.name not in {group.name for group in groups}:
            known = (reasons[unit] for unit in range(birth.start, end) if unit in reasons)
            told[birth.name] = next(known, "not read by a linear layer")
    for name, tensor in ledger.named.items():
        if isinstance(tensor, nn.Parameter) and name not in gated:
            told[name] = ledger.lost.get(name, "not used when the model runs")
    for (name, dim), ids in owners.items():
        if name in told and name not in ledger.lost and ledger.roles[name, dim] != ["read"]:
            pinned = (unit for unit in ids.tolist() if unit in reasons)
            told[name] = next((reasons[unit] for unit in pinned), "acts on no removable unit")
    return told


def components(size: int, pairs: list[tuple[Ids, Ids]]) -> Ids:
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
