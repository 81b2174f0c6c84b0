"""Which gates every weight hangs on: from values per unit to values per weight row and column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from bayespare.bayes.evidence import block_delta_f
from bayespare.bayes.layers import Layer, can_be_variational, make_variational
from bayespare.errors import UnsupportedStructureError
from bayespare.structure.plan import Group, Plan, Role, Slot


class Wiring:
    """The places of gated units in the weights of all layers, as flat index vectors.

    A column may hang on two gates: a channel's, and its position's in the flattened map. What
    hangs on none gets the value one.

    Args:
        layers: Layers, each weight seen as a matrix.
        groups: Gated groups; their units are numbered one group after the other.
    """

    def __init__(self, layers: Sequence[Layer], groups: Sequence[Group]) -> None:
        free = sum(group.size for group in groups)
        levels = [{layer.name: torch.full((layer.columns,), free) for layer in layers}]
        rows = {layer.name: torch.full((layer.rows,), free) for layer in layers}
        offset = 0
        for group in groups:
            for slot in group.slots:
                name, _, tensor = slot.tensor.rpartition(".")
                if tensor != "weight" or slot.role == "scale" or name not in rows:
                    continue
                line = torch.where(slot.owner < 0, free, slot.owner + offset)
                if slot.role == "write":
                    rows[name] = torch.where(line < free, line, rows[name])
                    continue
                line = line.repeat_interleave(levels[0][name].numel() // max(1, line.numel()))
                for level in levels:
                    if not bool(((line < free) & (level[name] < free)).any()):
                        break
                else:
                    level = {key: torch.full_like(value, free) for key, value in level.items()}
                    levels.append(level)
                level[name] = torch.where(line < free, line, level[name])
            offset += group.size
        device = layers[0].weight.device
        self._free = free
        self.column_sizes = [layer.columns for layer in layers]
        self.row_sizes = [layer.rows for layer in layers]
        self._columns = [torch.cat(list(level.values())).to(device) for level in levels]
        self._rows = torch.cat(list(rows.values())).to(device)

    def moved(self, move: Callable[[Tensor], Tensor]) -> None:
        """Apply to its tensors what moves those of a module."""
        self._columns = [move(index) for index in self._columns]
        self._rows = move(self._rows)

    def by_column(self, units: Tensor) -> tuple[Tensor, ...]:
        """Values per weight column of each layer, from values per gated unit."""
        padded = torch.cat((units, units.new_ones(1)))
        value = padded.index_select(0, self._columns[0])
        for index in self._columns[1:]:
            value = value * padded.index_select(0, index)
        return torch.split(value, self.column_sizes)

    def sums(self, columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Sums over the columns that each gated unit owns, and over those that hang on none.

        Args:
            columns: Values per weight column of each layer. A column that hangs on two gates is
                counted for the first.

        Returns:
            Shape ``(units,)``, and a scalar.
        """
        flat = torch.cat(list(columns))
        found = flat.new_zeros(self._free + 1).index_add(0, self._columns[0], flat)
        return found[:-1], found[-1]

    def by_row(self, units: Tensor) -> tuple[Tensor, ...]:
        """Values per weight row of each layer, from values per gated unit."""
        padded = torch.cat((units, units.new_ones(1)))
        return self.split_rows(padded.index_select(0, self._rows))

    def split_rows(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Values per row of all layers, by layer."""
        return torch.split(flat, self.row_sizes)


def kept_lines(
    layers: Sequence[Layer], plan: Plan, keep: Mapping[str, Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Which weight columns and rows of each layer are left when only ``keep`` stays."""
    lines = plan.lines(keep)
    columns, rows = [], []
    for layer in layers:
        inputs = layer.weight.shape[1]
        first, second = (1, 0) if layer.inputs_first else (0, 1)
        line = lines.get((f"{layer.name}.weight", second), torch.ones(inputs, dtype=torch.bool))
        columns.append(line.repeat_interleave(layer.columns // max(1, inputs)))
        every = torch.ones(layer.rows, dtype=torch.bool)
        rows.append(lines.get((f"{layer.name}.weight", first), every))
    return columns, rows


def posterior_names(network: nn.Module, plan: Plan, *, every: bool = False) -> list[str]:
    """Names of the layers that read or write units and can have a posterior.

    Args:
        network: The network.
        plan: Of it.
        every: Also the linear layers and convolutions that no unit's removal shortens: where
            single weights are judged. Not what several share, is frozen or the user keeps whole.
    """
    names = [n for n in _layer_names(plan) if can_be_variational(network.get_submodule(n))]
    if not every:
        return names
    shared, aliases = _shared(network)
    return names + [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | _ConvNd)
        and can_be_variational(module)
        and module.weight.requires_grad
        and name not in names
        and name not in aliases
        and not any(f"{name}.{leaf}" in shared for leaf, _ in module.named_parameters())
        and not plan.as_asked(name)
    ]


def posterior_layers(network: nn.Module, plan: Plan, *, every: bool = False) -> list[Layer]:
    """The layers of :func:`posterior_names`, prepared for a posterior.

    The others (embeddings, the projections into an attention that holds them as raw tensors) keep
    plain parameters.

    Raises:
        UnsupportedStructureError: If there is none, or one is not in the default precision.
    """
    names = posterior_names(network, plan, every=every)
    if not names:
        raise UnsupportedStructureError(
            "no layer with a matrix or a filter of its own reads or writes units of this network, "
            "and no other can have a posterior"
        )
    for name in names:
        for leaf, parameter in network.get_submodule(name).named_parameters(name):
            _refuse_precision(leaf, parameter)
    turned = _weight_ways(plan)
    return [
        make_variational(
            network,
            name,
            inputs_first=True in turned[f"{name}.weight"]
            if f"{name}.weight" in turned
            else isinstance(network.get_submodule(name), _ConvTransposeNd),
        )
        for name in names
    ]


def _refuse_precision(name: str, parameter: Tensor) -> None:
    """Refuse a parameter that is not in PyTorch's default precision, as its posterior will be.

    Raises:
        UnsupportedStructureError: If it is not.
    """
    given, ours = parameter.dtype, torch.get_default_dtype()
    if given != ours:
        raise UnsupportedStructureError(
            f"{name} is in {given}, and posteriors are fitted in {ours}; convert the network to "
            "that, and for bfloat16 train under autocast"
        )


def _weight_ways(plan: Plan) -> dict[str, set[bool]]:
    """Name of each weight that reads or writes units to whether it does so with its inputs first.

    Both, if a decoder multiplies with the transposed weight of its encoder.
    """
    ways: dict[str, set[bool]] = {}
    for group in plan.groups:
        for slot in group.slots:
            if slot.role != "scale" and slot.tensor.endswith(".weight"):
                turned = (slot.role, slot.dim) in (("read", 0), ("write", 1))
                ways.setdefault(slot.tensor, set()).add(turned)
    return ways


def judged(network: nn.Module, plan: Plan) -> Plan:
    """The plan of the units that a gate can silence and evidence can judge; others are left alone.

    Raises:
        UnsupportedStructureError: If there are none; the message has the reasons.
    """
    reasons = left_whole(network, plan)
    if not reasons:
        return plan
    groups = tuple(group for group in plan.groups if group.name not in reasons)
    if not groups:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise UnsupportedStructureError(f"no units of this network can be judged: {why}")
    left_alone = dict(plan.left_alone)
    for name, reason in reasons.items():
        tensors = [slot.tensor for slot in plan[name].slots if slot.role != "read"]
        left_alone |= dict.fromkeys(tensors or [name], reason)
    return Plan(groups, left_alone)


def left_whole(network: nn.Module, plan: Plan) -> dict[str, str]:
    """Name of each group that cannot be judged to the reason.

    A unit is judged by the weights that read it: there it can be silenced exactly, behind its norm
    and activation; of a head that is its slice of the output projection. All of them must be
    weights that can have a posterior, each of one place and in one direction: what is drawn for a
    layer, and cut from it, goes by one name and has rows and columns.
    """
    shared, aliases = _shared(network)
    ways = _weight_ways(plan)
    reasons = {}
    for group in plan.groups:
        several = [slot.tensor for slot in group.slots if slot.tensor in shared]
        twice = [slot.layer for slot in group.slots if slot.layer in aliases]
        both = [slot.tensor for slot in group.slots if len(ways.get(slot.tensor, ())) > 1]
        unknown = [slot.tensor for slot in group.reads() if not _has_posterior(network, slot)]
        if several:
            reasons[group.name] = f"{several[0]} is shared by several layers"
        elif twice:
            every = ", ".join(aliases[twice[0]])
            reasons[group.name] = f"{twice[0]} is one layer under several names ({every})"
        elif both:
            reasons[group.name] = f"{both[0]} is multiplied with in both directions"
        elif unknown:
            reasons[group.name] = f"{unknown[0]}, which reads them, cannot have a posterior"
        elif next(group.reads(), None) is None:
            reasons[group.name] = "they meet in a product, and no weight reads them"
    return reasons


def _shared(network: nn.Module) -> tuple[set[str], dict[str, list[str]]]:
    """Parameters that several layers hold, and layers with several names, each with all of them."""
    holders = Counter(
        id(parameter)
        for module in network.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    shared = {name for name, p in network.named_parameters() if holders[id(p)] > 1}
    names: dict[int, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return shared, {every[0]: every for every in names.values() if len(every) > 1}


def _has_posterior(network: nn.Module, slot: Slot) -> bool:
    own = slot.tensor == f"{slot.layer}.weight"
    return own and can_be_variational(network.get_submodule(slot.layer))


def _layer_names(plan: Plan) -> list[str]:
    """Layers with weights that read or write units, in the order of the network."""
    names: dict[str, None] = {}
    for role in ("write", "read"):
        for group in plan.groups:
            for slot in group.slots:
                if slot.role == role and slot.tensor.endswith(".weight"):
                    names[slot.layer] = None
    return list(names)


def block_sums(plan: Plan, values: Mapping[str, Tensor], role: Role = "read") -> dict[str, Tensor]:
    """Sums of values per weight over one block of every unit: the outgoing one, or the incoming.

    Args:
        plan: The groups.
        values: Layer name to a value per weight, shaped like the weight.
        role: ``read``: the weights that read the unit; ``write``: those that compute it.

    Returns:
        Group name to float64 sums on the CPU, shape ``(group.size,)``; zero for a unit without
        such weights.
    """
    lines: dict[tuple[str, int], Tensor] = {}
    sums = {}
    for group in plan.groups:
        total = torch.zeros(group.size, dtype=torch.float64)
        for slot in group.slots:
            if slot.role != role or slot.layer not in values:
                continue
            if slot.tensor != f"{slot.layer}.weight":
                continue
            place = (slot.layer, slot.dim)
            if place not in lines:
                lines[place] = block_delta_f(values[slot.layer], slot.dim).cpu()
            there = slot.owner >= 0
            total.index_add_(0, slot.owner[there], lines[place][there])
        sums[group.name] = total
    return sums


def block_best(plan: Plan, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The largest value among the outgoing weights of each unit; minus infinity where it has none.

    Args:
        plan: The groups.
        values: Layer name to a value per weight, as the layer stores it.
    """
    best = {}
    for group in plan.groups:
        highest = torch.full((group.size,), -torch.inf)
        for slot in group.reads():
            if slot.layer not in values or slot.tensor != f"{slot.layer}.weight":
                continue
            line = values[slot.layer].movedim(slot.dim, 0).flatten(1).amax(1).float().cpu()
            there = slot.owner >= 0
            highest.scatter_reduce_(0, slot.owner[there], line[there], "amax")
        best[group.name] = highest
    return best
