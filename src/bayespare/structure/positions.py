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
        for slot in group.reads():
            # More entries than units: each unit was spread over positions by a flatten.
            spread = int((slot.owner >= 0).sum()) > group.size
            name = f"{slot.layer}.inputs"
            if group.unit != "channel" or not spread or any(g.name == name for g in groups):
                continue
            size = len(slot.owner)
            read = Slot(slot.tensor, slot.dim, "read", torch.arange(size))
            groups.insert(groups.index(group) + 1, Group(name, size, "position", (read,)))
    return replace(plan, groups=tuple(groups))
