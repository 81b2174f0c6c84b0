"""Units for the positions of a flattened feature map, beside the channels that write it."""

from __future__ import annotations

from dataclasses import replace

import torch

from bayespare.structure.plan import Group, Plan, Slot


def with_positions(plan: Plan) -> Plan:
    """Add a group for every linear layer that reads a flattened map: each entry may go alone.

    Removing channels alone leaves all positions of those that stay; most are not needed. The
    groups are named after the layer that reads, ``"fc1.inputs"``.
    """
    groups = list(plan.groups)
    for group in plan.groups:
        flat = {fixture.layer for fixture in group.fixtures if fixture.kind == "flat"}
        for slot in group.reads():
            name = f"{slot.layer}.inputs"
            if group.unit != "channel" or slot.layer not in flat:
                continue
            if any(g.name == name for g in groups):
                continue
            size = len(slot.owner)
            read = Slot(slot.tensor, slot.dim, "read", torch.arange(size))
            groups.insert(groups.index(group) + 1, Group(name, size, "position", (read,)))
    return replace(plan, groups=tuple(groups))
