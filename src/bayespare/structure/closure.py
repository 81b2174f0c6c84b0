"""Closing dead paths: a unit nobody reads goes, and so does a unit that reads nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from bayespare.errors import BayespareError
from bayespare.structure.compact import mask
from bayespare.structure.compare import assert_same, probe_like
from bayespare.structure.operators import preserved
from bayespare.structure.plan import Group, Plan, Slot, Verdict
from bayespare.structure.slicing import masked_tensors, named_tensors
from bayespare.structure.stack import evaluating

Hook: TypeAlias = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


def close(
    model: nn.Module, verdict: Verdict, example: Tensor | tuple[Tensor, ...]
) -> tuple[nn.Module, Verdict]:
    """Remove what a verdict leaves without effect, in both directions, to a fixed point.

    A unit whose readers are all removed or zero has no effect: it goes. A unit that reads nothing
    (its weights on kept inputs are all zero) emits a constant; the constant is added to the bias
    of its readers and the unit goes. Where that is not exact (a convolution with zero padding, a
    reader that is no stock layer) the unit stays.

    Args:
        model: The model that was traced; it is not changed.
        verdict: Which units stay so far.
        example: A batch the model accepts; constants are measured on random inputs of its shape.

    Returns:
        A copy of the model with the constants in its biases, and the verdict to use with it. Its
        plan has slots for biases that had to be added, see :func:`added_biases`.

    Raises:
        UnsupportedStructureError: If the closed model, masked, differs from the given one.
    """
    examples = example if isinstance(example, tuple) else (example,)
    probe = probe_like(examples)
    closed = deepcopy(model)
    plan = verdict.plan
    keep = {group.name: verdict.of(group).cpu().clone() for group in plan.groups}
    while True:
        current = Verdict(plan, keep)
        silent = masked_tensors(closed, current)
        tensors = named_tensors(closed) | silent
        gone = {g.name: keep[g.name] & ~_has_effect(g, tensors) for g in plan.groups}
        if not _any(gone):
            deaf = {g.name: keep[g.name] & ~_hears(g, tensors) for g in plan.groups}
            if _any(deaf):
                gone, plan = fold_constants(closed, plan, deaf, silent, tensors, probe)
        if not _any(gone):
            break
        keep = {name: keep[name] & ~gone[name] for name in keep}
    assert_same(model, mask(closed, current), masked_tensors(model, verdict), probe)
    return closed, current


def added_biases(plan: Plan, closed: Plan) -> list[str]:
    """Names of the biases that :func:`close` gave to layers that had none.

    Args:
        plan: Of the verdict given to it.
        closed: Of the verdict it returned.
    """
    known, named = (
        {slot.tensor for group in p.groups for slot in group.slots} | set(p.left_alone)
        for p in (plan, closed)
    )
    return sorted(named - known)


def with_biases(model: nn.Module, plan: Plan, names: Iterable[str]) -> tuple[nn.Module, Plan]:
    """A copy of a model with zeros for the biases that :func:`close` added, and its closed plan.

    Args:
        model: The model that was traced; it is not changed.
        plan: Of that model.
        names: From :func:`added_biases`.

    Raises:
        BayespareError: If a name is not that of a bias a layer lacks.
    """
    model = deepcopy(model)
    layers = dict(model.named_modules())
    for name in names:
        place, _, leaf = name.rpartition(".")
        layer = layers.get(place)
        if leaf != "bias" or not isinstance(layer, nn.Linear | _ConvNd) or layer.bias is not None:
            raise BayespareError(f"the network has no layer that lacks a bias {name!r}")
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
        plan = _with_bias(plan, place)
    return model, plan


def _any(units: Mapping[str, Tensor]) -> bool:
    return any(bool(flags.any()) for flags in units.values())


def _touched(group: Group, slots: Iterator[Slot], tensors: Mapping[str, Tensor]) -> Tensor:
    """Which units have a non-zero entry in any of the slots; boolean, shape ``(size,)``."""
    touched = torch.zeros(group.size, dtype=torch.bool)
    for slot in slots:
        rows = tensors[slot.tensor].detach().movedim(slot.dim, 0).reshape(len(slot.owner), -1)
        alive = (rows != 0).any(1).cpu()
        touched[slot.owner[alive & (slot.owner >= 0)]] = True
    return touched


def _has_effect(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Which units are read; where they meet before that, those that are not zero count as read."""
    effect = _touched(group, group.reads(), tensors)
    if _normalised(group) or _scored(group):
        effect |= _touched(group, group.writes(), tensors)
    return effect


def _normalised(group: Group) -> bool:
    return any(fixture.kind == "norm" for fixture in group.fixtures)


def _scored(group: Group) -> bool:
    """Whether units are channels within the heads of an attention, all of which make its scores."""
    return group.unit == "unit" and any(fixture.kind == "count" for fixture in group.fixtures)


def _hears(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Which units depend on anything before them; features of the input always do."""
    weights = [slot for slot in group.writes() if tensors[slot.tensor].ndim > 1]
    if not weights or _normalised(group):
        return torch.ones(group.size, dtype=torch.bool)
    return _touched(group, iter(weights), tensors)


def fold_constants(
    model: nn.Module,
    plan: Plan,
    deaf: Mapping[str, Tensor],
    silent: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    probe: tuple[Tensor, ...],
) -> tuple[dict[str, Tensor], Plan]:
    """Move the constants of deaf units into their readers' biases, in place.

    Args:
        model: Changed in place.
        plan: Of it.
        deaf: Units whose values do not depend on the input, by group.
        silent: Units whose values are zero.
        tensors: The model's, by name.
        probe: Inputs it accepts.

    Returns:
        The units that are now without effect, and the plan with slots for new biases.
    """
    readers = _readers(model, plan)
    arrivals = _arrivals(model, silent, readers, probe)
    gone = {name: units.clone() for name, units in deaf.items()}
    constants: dict[str, Tensor] = {}
    for group in plan.groups:
        for slot in group.reads():
            columns = (deaf[group.name][slot.owner.clamp_min(0)] & (slot.owner >= 0)).nonzero()
            columns = columns.squeeze(1)
            if not len(columns):
                continue
            constant = _constant(readers.get(slot.tensor), arrivals.get(slot.tensor), columns)
            gone[group.name][slot.owner[columns[constant.isnan()]]] = False
            empty = torch.zeros(len(slot.owner), dtype=constant.dtype)
            whole = constants.setdefault(slot.tensor, empty)
            whole[columns] = constant
    for group in plan.groups:
        for slot in group.reads():
            if slot.tensor not in constants:
                continue
            moved = gone[group.name][slot.owner.clamp_min(0)] & (slot.owner >= 0)
            constant = constants[slot.tensor].where(moved, 0)
            if bool(constant.any()):
                plan = _add_to_bias(model, plan, slot, tensors[slot.tensor], constant)
    return gone, plan


def _readers(model: nn.Module, plan: Plan) -> dict[str, nn.Linear | _ConvNd]:
    """Weight name to the stock layer that alone holds it and reads units along dimension 1."""
    named = named_tensors(model)
    found: dict[str, nn.Linear | _ConvNd] = {}
    for name in {slot.tensor for group in plan.groups for slot in group.reads() if slot.dim == 1}:
        holders = [
            module
            for module in model.modules()
            if any(tensor is named[name] for tensor in module._parameters.values())
        ]
        if len(holders) == 1 and isinstance(holders[0], (nn.Linear, _ConvNd)):
            layer = holders[0]
            if getattr(layer, "groups", 1) > 1:
                continue
            if layer.weight is named[name] and layer.get_parameter("weight").ndim > 1:
                found[name] = layer
    return found


def _arrivals(
    model: nn.Module,
    silent: Mapping[str, Tensor],
    readers: Mapping[str, nn.Linear | _ConvNd],
    probe: tuple[Tensor, ...],
) -> dict[str, list[Tensor]]:
    """What arrives at each reader while the masked model runs, units first: ``(units, n)``."""
    arrivals: dict[str, list[Tensor]] = {name: [] for name in readers}

    def note(name: str, axis: int) -> Hook:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x: Tensor = args[0] if args else kwargs["input"]
            arrivals[name].append(x.movedim(axis, 0).flatten(1))

        return hook

    handles = []
    for name, layer in readers.items():
        axis = -1 if isinstance(layer, nn.Linear) else 1 - layer.weight.ndim
        hook = note(name, axis)
        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad(), evaluating(model), preserved(model):
            functional_call(model, dict(silent), probe)
    finally:
        for handle in handles:
            handle.remove()
    return arrivals


def _constant(
    layer: nn.Linear | _ConvNd | None, arrivals: list[Tensor] | None, columns: Tensor
) -> Tensor:
    """The value that always arrives at these columns of a reader; NaN where there is none to fold.

    Returns:
        On the CPU, shape ``(len(columns),)``.
    """
    if layer is None or not arrivals:
        return torch.full((len(columns),), torch.nan)
    values = torch.cat([x[columns.to(x.device)] for x in arrivals], 1)
    constant = values[:, 0].cpu()
    spread = (values.amax(1) - values.amin(1)).cpu()
    exact = spread <= 1e-6 * constant.abs()
    if isinstance(layer, _ConvNd) and layer.padding_mode == "zeros" and layer.padding != "valid":
        padded = layer.padding == "same" or any(layer.padding)
        if padded:
            exact &= constant == 0
    return constant.where(exact, torch.nan)


def _add_to_bias(
    model: nn.Module, plan: Plan, slot: Slot, weight: Tensor, constant: Tensor
) -> Plan:
    """Add what a reader makes of constant inputs to its bias; return the plan with that bias."""
    layer = model.get_submodule(slot.layer)
    assert isinstance(layer, (nn.Linear, _ConvNd))
    with torch.no_grad():
        total = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
        shift = total @ constant.to(total)
        if layer.bias is not None:
            layer.bias += shift
            return plan
        layer.bias = nn.Parameter(shift)
    return _with_bias(plan, slot.layer)


def _with_bias(plan: Plan, layer: str) -> Plan:
    """The plan with a new bias of a layer, cut with the rows of its weight or left alone."""
    weight, bias = (f"{layer}.{leaf}" if layer else leaf for leaf in ("weight", "bias"))
    groups, left_alone = [], dict(plan.left_alone)
    for group in plan.groups:
        written = [s for s in group.writes() if s.tensor == weight and s.dim == 0]
        added = tuple(Slot(bias, 0, "write", s.owner) for s in written)
        groups.append(replace(group, slots=group.slots + added))
    if not any(slot.tensor == bias for group in groups for slot in group.slots):
        left_alone[bias] = left_alone.get(weight, "added for what constant units gave")
    return Plan(tuple(groups), left_alone)
