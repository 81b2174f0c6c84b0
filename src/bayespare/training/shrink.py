"""Cut units out of a network that is being trained, with their share of the optimiser's state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from bayespare.bayes.layers import VariationalLinear
from bayespare.bayes.weights import Cut
from bayespare.structure.plan import Plan


def plan_cuts(network: nn.Module, plan: Plan, keep: Mapping[str, Tensor]) -> list[Cut]:
    """Return the cuts in the network's own tensors when only the units in ``keep`` stay."""
    cuts = []
    for group in plan.groups:
        if group.name not in keep:
            continue
        for slot in group.slots:
            module = network.get_submodule(slot.layer)
            name = slot.tensor.rpartition(".")[2]
            cuts.append(Cut(module, name, slot.dim, slot.kept(keep[group.name])))
    return cuts


def narrow_inputs(network: nn.Module, whole: Plan, keep: Mapping[str, Tensor]) -> None:
    """Make the layers whose inputs still arrive in full skip those that were removed.

    Features of the data and positions of a flattened map arrive whatever is removed; the outputs
    of units do not.

    Args:
        network: The live network.
        whole: The plan of the network before anything was removed.
        keep: Which units of ``whole`` are still there, every group.
    """
    arriving: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}
    for group in whole.groups:
        for slot in group.reads():
            side = read if group.unit in ("feature", "position") else arriving
            stays = slot.kept(keep[group.name])
            side[slot.layer] = side[slot.layer] & stays if slot.layer in side else stays
    for name, stays in read.items():
        layer = network.get_submodule(name)
        comes = arriving.get(name, torch.ones_like(stays))
        if isinstance(layer, VariationalLinear):
            index = stays[comes].nonzero().squeeze(1).to(layer.weight.device)
            layer.select = None if bool(stays[comes].all()) else index


def apply_cuts(cuts: Iterable[Cut], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Cut each tensor once, whatever the number of its cuts, and the optimiser's moments with it.

    Old parameters are replaced, not resized: an autograd graph that still holds them stays valid.
    """
    lines: dict[tuple[int, str], tuple[nn.Module, dict[int, Tensor]]] = {}
    for module, name, dim, keep in cuts:
        _, dims = lines.setdefault((id(module), name), (module, {}))
        dims[dim] = dims[dim] & keep if dim in dims else keep
    for (_, name), (module, dims) in lines.items():
        old = getattr(module, name)
        indices = {dim: keep.nonzero().squeeze(1).to(old.device) for dim, keep in dims.items()}
        new = _select(old.detach(), indices)
        if isinstance(old, nn.Parameter):
            parameter = nn.Parameter(new, requires_grad=old.requires_grad)
            setattr(module, name, parameter)
            if optimizer is not None:
                _replace(optimizer, old, parameter, indices)
        else:
            setattr(module, name, new)


def _select(tensor: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    spread = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    for dim, index in indices.items():
        tensor = tensor.index_select(dim, index)
    layout = torch.channels_last if spread else torch.contiguous_format
    return tensor.contiguous(memory_format=layout)


def _replace(
    optimizer: torch.optim.Optimizer,
    old: nn.Parameter,
    new: nn.Parameter,
    indices: Mapping[int, Tensor],
) -> None:
    """Put ``new`` in the place of ``old``, with what state of its shape there is."""
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is not None:
        optimizer.state[new] = {
            key: _select(value, indices)
            if isinstance(value, Tensor) and value.shape == old.shape
            else value
            for key, value in state.items()
        }


def remaining_parameters(
    network: nn.Module,
    plan: Plan,
    keep: Mapping[str, Tensor],
    there: Mapping[str, Tensor] | None = None,
) -> int:
    """Number of parameters of the network when only the units in ``keep`` stay, uncut or not.

    Args:
        network: The network.
        plan: Of it.
        keep: Which units stay, by group.
        there: Which entries of a parameter are not zero, by its name; default: all of them.
    """
    lines = plan.lines(plan.closed(keep))
    total = 0
    for name, parameter in network.named_parameters():
        cuts = {d: lines[name, d] for d in range(parameter.dim()) if (name, d) in lines}
        if there is not None and name in there:
            entries = there[name]
            for dim, line in cuts.items():
                shape = [-1 if d == dim else 1 for d in range(entries.dim())]
                entries = entries & line.to(entries.device).view(shape)
            total += int(entries.sum())
            continue
        size = parameter.numel()
        for dim, line in cuts.items():
            if parameter.shape[dim]:
                size = size // parameter.shape[dim] * int(line.sum())
        total += size
    return total
