"""A plan in words: every parameter, and what removal would do to it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from bayespare.structure.plan import Group, Plan, Slot, Verdict
from bayespare.structure.slicing import slots_by_tensor


def table(plan: Plan, model: nn.Module) -> str:
    """Return a plain-text table with one line per parameter.

    Columns: the parameter, its shape, the group that gates it (its entries go with the units of
    that group), the groups it is coupled to (it reads them and is shortened with them), and why
    its outputs are left alone when nothing gates it.
    """
    places = slots_by_tensor(plan)
    rows = [("parameter", "shape", "gated by", "coupled to", "left alone because")]
    for group in plan.groups:
        if group.unit == "feature":
            rows.append((group.name, "", _units(group), "", ""))
    parameters = dict(model.named_parameters())
    rows += [(n, "", "", "", why) for n, why in plan.left_alone.items() if n not in parameters]
    for name, parameter in parameters.items():
        found = places.get(name, [])
        shape = "x".join(str(size) for size in parameter.shape) or "scalar"
        gated = _unique(_units(g) for g, slot in found if slot.role != "read")
        coupled = _unique(_coupling(g, slot) for g, slot in found if slot.role == "read")
        rows.append((name, shape, gated, coupled, plan.left_alone.get(name, "")))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def dead(verdict: Verdict) -> dict[str, list[str]]:
    """Group that keeps none of its units to the layers that compute a constant because of it.

    A residual branch with such a layer is dead: what it adds is the same for every input.
    """
    plan = verdict.plan
    empty = {group.name for group in plan.groups if not bool(verdict.of(group).any())}
    readers: dict[str, set[str]] = {}
    for group in plan.groups:
        for slot in group.reads():
            readers.setdefault(slot.layer, set()).add(group.name)
    return {
        name: [layer for layer, read in readers.items() if name in read and read <= empty]
        for name in (group.name for group in plan.groups)
        if name in empty
    }


def _units(group: Group) -> str:
    return f"{group.name} ({group.size} {group.unit}{'s' if group.size > 1 else ''})"


def _coupling(group: Group, slot: Slot) -> str:
    entries = int((slot.owner >= 0).sum())
    return f"{group.name} ({entries} entries of dim {slot.dim})"


def _unique(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))
