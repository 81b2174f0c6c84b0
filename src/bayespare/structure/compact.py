"""Acting on a verdict: silence the removed units (`mask`) or cut them out (`compact`)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from bayespare.errors import UnsupportedStructureError
from bayespare.structure.compare import assert_same, probe_like
from bayespare.structure.plan import Plan, Verdict
from bayespare.structure.select import Select
from bayespare.structure.sizes import follow, update_sizes
from bayespare.structure.slicing import (
    cut_late,
    effective_keeps,
    masked_tensors,
    named_tensors,
    reading,
    slice_slots,
    slots_by_tensor,
)


def mask(model: nn.Module, verdict: Verdict) -> nn.Module:
    """Return a copy of the model, same shapes, in which the removed units are silent.

    Everything that computes a removed unit and everything that reads it is zero.

    Raises:
        BayespareError: If the verdict's plan is for another model.
    """
    silent = deepcopy(model)
    named = named_tensors(silent)
    with torch.no_grad():
        for name, tensor in masked_tensors(model, verdict).items():
            named[name].copy_(tensor)
    return silent


def compact(
    model: nn.Module,
    verdict: Verdict,
    *,
    example: Tensor | tuple[Tensor, ...] | None = None,
) -> nn.Module:
    """Return a smaller copy of the model, without the removed units.

    Parameters and buffers are new, smaller tensors in the same modules. Where features of the
    input or positions of a flattened map were removed, the layer that reads them becomes
    ``Sequential(Select, layer)``; a shortcut that pads with zeros becomes ``Sequential(shortcut,
    Select)``. A norm over units that were removed, and ``nn.MultiheadAttention``, become their
    narrow kinds (:mod:`~bayespare.structure.narrow`), and attributes that count units follow. A
    group that loses all its units keeps one silent unit, which changes nothing but keeps shapes
    legal.

    Args:
        model: The model that was traced; it is not changed.
        verdict: Which units stay.
        example: A batch the model accepts. When given, the result is compared with the masked
            model on random inputs of that shape.

    Raises:
        BayespareError: If the verdict's plan is for another model.
        UnsupportedStructureError: If compact and masked model differ by more than rounding; the
            message names the first layer that differs.
    """
    masked = masked_tensors(model, verdict)
    keeps = effective_keeps(verdict)
    small = deepcopy(model)
    named = named_tensors(small)
    small = follow(small, verdict.plan, keeps)
    holders = _holders(small)
    for name, places in slots_by_tensor(verdict.plan).items():
        old = named[name]
        # Where all units go one stays for the shape: its entries must be the silenced ones.
        source = masked.get(name, old.detach())
        slots = [slot for _, slot in places]
        new = _without_subnormals(slice_slots(source, slots, [keeps[g.name] for g, _ in places]))
        fresh = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        for module, leaf in holders[id(old)]:
            setattr(module, leaf, fresh)
            update_sizes(module)
    small = _select(small, verdict.plan, keeps)
    if example is not None:
        examples = example if isinstance(example, tuple) else (example,)
        assert_same(model, small, masked, probe_like(examples))
    return small


def _holders(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Id of a tensor to every (module, attribute) that holds it: tied weights have several."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for leaf, tensor in table.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append((module, leaf))
    return found


def _without_subnormals(tensor: Tensor) -> Tensor:
    """Zero what is too small for full-speed arithmetic (in half precision it is not slow)."""
    if not tensor.is_floating_point():
        return tensor
    double = tensor.dtype == torch.float64
    tiny = torch.finfo(torch.float64 if double else torch.float32).tiny
    return tensor.masked_fill(tensor.abs() < tiny, 0)


def _select(small: nn.Module, plan: Plan, keeps: Mapping[str, Tensor]) -> nn.Module:
    """Put a `Select` before every layer that reads less than what arrives; return the model."""
    layers, named = list(small.modules()), named_tensors(small)
    for name, places in slots_by_tensor(plan).items():
        reads = [(group, slot) for group, slot in places if slot.role == "read"]
        if not any(cut_late(group) for group, _ in reads):
            continue
        arriving, kept = reading(reads, keeps)
        if bool(kept[arriving].all()):
            continue
        index = kept[arriving].nonzero().squeeze(1)
        weight = named[name]
        readers = [m for m in layers if isinstance(m, nn.Linear) and m.weight is weight]
        if not readers:
            raise UnsupportedStructureError(
                f"{name}: only a Linear layer can read a selection of what arrives; keep the units "
                f"of {', '.join(repr(g.name) for g, _ in reads if cut_late(g))}"
            )
        for reader in readers:
            small = _put_before(small, reader, Select(index.to(weight.device)))
    return small


def _put_before(model: nn.Module, layer: nn.Module, first: nn.Module) -> nn.Module:
    """Replace a layer, wherever the model holds it, by ``Sequential(first, layer)``."""
    pair = nn.Sequential(first, layer)
    pair.training = layer.training
    first.training = layer.training
    if layer is model:
        return pair
    for parent in list(model.modules()):
        for leaf, child in parent._modules.items():
            if child is layer and parent is not pair:
                parent._modules[leaf] = pair
    return model
