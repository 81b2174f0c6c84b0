"""A plan is believed only after it was acted on: every group must survive a trial removal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayespare.errors import UnsupportedStructureError
from bayespare.structure.compact import compact
from bayespare.structure.plan import Group, Plan, Verdict


def prove(model: nn.Module, plan: Plan, examples: tuple[Tensor, ...]) -> Plan:
    """Return the plan without the groups whose units cannot be removed exactly after all.

    About half of the units of every group are removed, all groups together, and the compact model
    is compared with the masked one. Only when that fails are the groups tried one by one: those
    that fail are left alone, with the difference as the reason.

    Raises:
        UnsupportedStructureError: If groups that pass alone fail together.
    """
    if not plan.groups or _failure(model, plan, plan.groups, examples) is None:
        return plan
    failures = {g.name: _failure(model, plan, (g,), examples) for g in plan.groups}
    sound = tuple(group for group in plan.groups if failures[group.name] is None)
    left_alone = dict(plan.left_alone)
    for group in plan.groups:
        reason = failures[group.name]
        if reason is not None:
            left_alone |= dict.fromkeys(_parameters(group), reason)
    still = {slot.tensor for group in sound for slot in group.slots if slot.role != "read"}
    believed = Plan(sound, {n: why for n, why in left_alone.items() if n not in still})
    reason = _failure(model, believed, sound, examples) if sound else None
    if reason is not None:
        raise UnsupportedStructureError(f"groups that can be removed alone fail together: {reason}")
    return believed


def _failure(
    model: nn.Module, plan: Plan, groups: tuple[Group, ...], examples: tuple[Tensor, ...]
) -> str | None:
    """Why a trial removal from these groups is not exact, None when it is."""
    generator = torch.Generator().manual_seed(0)
    keep = {}
    for group in groups:
        order = torch.randperm(group.size, generator=generator)
        keep[group.name] = order < (group.size + 1) // 2 if group.size > 1 else order < 0
    try:
        compact(model, Verdict(plan, keep), example=examples)
    except UnsupportedStructureError as error:
        return str(error)
    return None


def _parameters(group: Group) -> list[str]:
    """What a group that is given up leaves ungated."""
    if group.unit == "feature":
        return [group.name]
    return [slot.tensor for slot in group.slots if slot.role != "read"]
