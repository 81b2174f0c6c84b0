"""Cutting and silencing single tensors, given the slots that lie in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from bayespare.errors import BayespareError, did_you_mean
from bayespare.structure.plan import Group, Plan, Slot, Verdict


def slots_by_tensor(plan: Plan) -> dict[str, list[tuple[Group, Slot]]]:
    """Tensor name to the slots that lie in it, each with its group."""
    found: dict[str, list[tuple[Group, Slot]]] = {}
    for group in plan.groups:
        for slot in group.slots:
            found.setdefault(slot.tensor, []).append((group, slot))
    return found


def slice_slots(tensor: Tensor, slots: Sequence[Slot], keeps: Sequence[Tensor]) -> Tensor:
    """Return the tensor without the entries of removed units.

    Works on anything of the tensor's shape: the tensor itself, its gradient, its optimiser state.

    Args:
        tensor: What to cut; dimensions of size 1 are left (they are shared by all units).
        slots: Slots that lie in the tensor.
        keeps: For each slot a boolean keep per unit of the slot's group.

    Returns:
        A new tensor, or the same one when nothing is removed.
    """
    for dim, kept in _kept_along(tensor, slots, keeps):
        tensor = tensor.index_select(dim, kept.nonzero().squeeze(1).to(tensor.device))
    return tensor


def silence_slots(tensor: Tensor, slots: Sequence[Slot], keeps: Sequence[Tensor]) -> Tensor:
    """Return the tensor with the entries of removed units set to zero; shapes stay."""
    for dim, kept in _kept_along(tensor, slots, keeps):
        shape = [-1 if axis == dim else 1 for axis in range(tensor.ndim)]
        tensor = tensor.masked_fill(~kept.to(tensor.device).view(shape), 0)
    return tensor


def _kept_along(
    tensor: Tensor, slots: Sequence[Slot], keeps: Sequence[Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Each dimension that loses entries, with the boolean keep along it."""
    along: dict[int, Tensor] = {}
    for slot, keep in zip(slots, keeps, strict=True):
        if bool(keep.all()) or tensor.shape[slot.dim] == 1 < len(slot.owner):
            continue
        kept = slot.kept(keep.cpu())
        along[slot.dim] = along[slot.dim] & kept if slot.dim in along else kept
    yield from along.items()


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a model by name; shared ones once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def masked_tensors(model: nn.Module, verdict: Verdict) -> dict[str, Tensor]:
    """Silenced copies of the tensors in which a removed unit lies; the model is not touched.

    Raises:
        BayespareError: If the plan was made for another model.
    """
    named = named_tensors(model)
    masked = {}
    for name, places in slots_by_tensor(verdict.plan).items():
        tensor = _fitting(named, name, places)
        keeps = [verdict.of(group) for group, _ in places]
        if not all(bool(keep.all()) for keep in keeps):
            masked[name] = silence_slots(tensor.detach(), [slot for _, slot in places], keeps)
    return masked


def _fitting(named: dict[str, Tensor], name: str, places: Sequence[tuple[Group, Slot]]) -> Tensor:
    """The tensor of that name, after checking that its slots fit it."""
    if name not in named:
        raise BayespareError(
            f"the plan is for another model: this one has no {name!r}{did_you_mean(name, named)}"
        )
    tensor = named[name]
    for _, slot in places:
        if slot.dim >= tensor.ndim or tensor.shape[slot.dim] != len(slot.owner):
            raise BayespareError(
                f"the plan is for another model: {name} has shape {tuple(tensor.shape)}, the plan "
                f"expects {len(slot.owner)} entries along dimension {slot.dim}"
            )
    return tensor


def cut_late(group: Group) -> bool:
    """Whether no layer writes the units: they are cut where they are read, by a `Select`."""
    return next(group.writes(), None) is None


def effective_keeps(verdict: Verdict) -> dict[str, Tensor]:
    """Keep per group as it is cut, so that no dimension loses all its entries.

    A group that is to lose everything keeps one unit, and so does a layer that is to read nothing.
    Such units are silent: they are not in the verdict, so their masked entries are zero.
    """
    keeps = {}
    for group in verdict.plan.groups:
        keep = verdict.of(group).cpu()
        keeps[group.name] = keep if bool(keep.any()) else torch.arange(group.size) == 0
    for places in slots_by_tensor(verdict.plan).values():
        reads = [(group, slot) for group, slot in places if slot.role == "read"]
        late = [(group, slot) for group, slot in reads if cut_late(group)]
        if not late:
            continue
        arriving, kept = reading(reads, keeps)
        if not bool((arriving & kept).any()):
            entry = int(arriving.nonzero()[0])
            for group, slot in late:
                if slot.owner[entry] >= 0:
                    silent = torch.arange(group.size) == slot.owner[entry]
                    keeps[group.name] = keeps[group.name] | silent
    return keeps


def reading(
    reads: Sequence[tuple[Group, Slot]], keeps: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Along a dimension that is read: what still arrives there, and what of it is to be read.

    Args:
        reads: The read slots of one dimension, at least one, each with its group.
        keeps: Boolean keep per group.

    Returns:
        Two boolean tensors over the dimension: entries that earlier layers still compute, and
        entries whose late units (features, positions) stay.
    """
    width = len(reads[0][1].owner)
    arriving, kept = torch.ones(2, width, dtype=torch.bool)
    for group, slot in reads:
        line = slot.kept(keeps[group.name])
        if cut_late(group):
            kept = kept & line
        else:
            arriving = arriving & line
    return arriving, kept
