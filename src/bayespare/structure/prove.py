"""A plan is believed only after it was acted on: every group must survive a trial removal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, islice

import torch
from torch import Tensor, nn

from bayespare.errors import UnsupportedStructureError
from bayespare.structure.compact import compact
from bayespare.structure.compare import TOLERANCE, assert_same, outputs, probe_like
from bayespare.structure.plan import Fixture, Group, Plan, Verdict
from bayespare.structure.slicing import masked_tensors
from bayespare.structure.standin import stand_in

MOST_VARIANTS = 8
SMALL = 32


def prove(model: nn.Module, plan: Plan, examples: tuple[Tensor, ...]) -> Plan:
    """Return the plan without the groups whose units cannot be removed exactly after all.

    Units of all groups are removed together, and then of some groups only, and the compact model
    is compared with the masked one. Only when that fails are the groups tried one by one, with
    fewer of the attributes that seem to count their units (``num_heads`` may have the value of
    another attribute by chance); those that fail are left alone, with the difference as the reason.
    """
    model, examples = stand_in(model, examples)
    if not plan.groups or _failure(model, plan, plan.groups, examples) is None:
        return _told_apart(model, plan, examples)
    sound: list[Group] = []
    left_alone = dict(plan.left_alone)
    for group in plan.groups:
        reasons = []
        for variant in _variants(model, group):
            reason = _failure(model, Plan((variant,)), (variant,), examples)
            if reason is None:
                sound.append(variant)
                break
            reasons.append(reason)
        else:
            left_alone |= dict.fromkeys(_parameters(group), reasons[0])
    if sound and _failure(model, Plan(tuple(sound)), tuple(sound), examples) is not None:
        together: list[Group] = []
        for group in sound:
            several = (*together, group)
            reason = _failure(model, Plan(several), several, examples)
            if reason is None:
                together.append(group)
            else:
                why = f"cannot be removed beside others: {reason}"
                left_alone |= dict.fromkeys(_parameters(group), why)
        sound = together
    still = {slot.tensor for group in sound for slot in group.slots if slot.role != "read"}
    believed = Plan(tuple(sound), {n: why for n, why in left_alone.items() if n not in still})
    return _told_apart(model, believed, examples)


def _told_apart(model: nn.Module, plan: Plan, examples: tuple[Tensor, ...]) -> Plan:
    """Leave attributes as they are that may have their value by chance and are not needed.

    Small numbers, and two attributes with one value, cannot be told apart by it: with two heads for
    two keys, a factor of repetition of 2 is no count of heads.
    """
    counts = [f for g in plan.groups for f in g.fixtures if f.kind == "count"]
    values: dict[tuple[str, int], set[str]] = {}
    for fixture in counts:
        values.setdefault((fixture.layer, len(fixture.owner)), set()).add(fixture.name)
    # Sizes of stock layers are known, and a name that speaks of heads means what it says.
    doubtful = {
        _kind(model, f)
        for f in counts
        if len(values[f.layer, len(f.owner)]) > 1 or len(f.owner) <= SMALL
    }
    for kind in sorted(doubtful, key=lambda kind: kind[1]):
        if "head" in kind[1] or kind[0].__module__.startswith("torch.nn.modules"):
            continue
        groups = tuple(
            replace(g, fixtures=tuple(f for f in g.fixtures if _kind(model, f) != kind))
            for g in plan.groups
        )
        less = Plan(groups, plan.left_alone)
        if _failure(model, less, groups, examples) is None:
            plan = less
    return plan


def _kind(model: nn.Module, fixture: Fixture) -> tuple[type, str]:
    """What fixtures have in common that are alike in all blocks: class and attribute."""
    return type(model.get_submodule(fixture.layer)), fixture.name


def _variants(model: nn.Module, group: Group) -> Iterator[Group]:
    """The group as it is, then with ever fewer kinds of attributes that count its units."""
    kinds = list(dict.fromkeys(_kind(model, f) for f in group.fixtures if f.kind == "count"))
    for number in range(len(kinds), -1, -1):
        for chosen in islice(combinations(kinds, number), MOST_VARIANTS):
            kept = [f for f in group.fixtures if f.kind != "count" or _kind(model, f) in chosen]
            yield replace(group, fixtures=tuple(kept))


def _failure(
    model: nn.Module, plan: Plan, groups: tuple[Group, ...], examples: tuple[Tensor, ...]
) -> str | None:
    """Why a trial removal from these groups is not exact, None when all are.

    After one from all groups together come some in which of any two groups one is cut and the
    other is whole: sizes that a forward computes from each other could agree by chance.
    """
    generator = torch.Generator().manual_seed(0)
    probe = probe_like(examples)
    precise = all(y.dtype == torch.float64 for y in outputs(model, probe))
    for bit in range(-1, (len(groups) - 1).bit_length()):
        keep = {}
        for number, group in enumerate(groups):
            order = torch.randperm(group.size, generator=generator)
            if bit < 0:
                kept = (group.size + 1) // 2 if group.size > 1 else 0
            else:
                some = int(torch.randint(max(group.size, 1), (), generator=generator))
                kept = some if number >> bit & 1 else group.size
            keep[group.name] = order < kept
        verdict = Verdict(plan, keep)
        try:
            small, masked = compact(model, verdict), masked_tensors(model, verdict)
            assert_same(model, small, masked, probe, 1e-8 if precise else TOLERANCE)
        except UnsupportedStructureError as error:
            return str(error)
    return None


def _parameters(group: Group) -> list[str]:
    """What a group that is given up leaves ungated."""
    if group.unit == "feature":
        return [group.name]
    return [slot.tensor for slot in group.slots if slot.role != "read"]
