"""What removing a weight or a unit of a network costs.

The order in which a budget removes things: the cost of each removal alone, before or after the
survivor update that would follow it. Inputs of a layer are correlated, so after the update a weight
or unit that others can stand in for is cheap, whatever its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayespare.bayes.curvature import Curvature
from bayespare.bayes.curvature.running import call, examples_in, moved
from bayespare.bayes.curvature.tape import Listener, Site, Tape
from bayespare.bayes.survivors import removal_costs, ridged, unit_removal_costs
from bayespare.structure.moments import Moments, Target, arrival_of, shown, targets_of
from bayespare.structure.plan import Group, Plan, Slot
from bayespare.structure.stack import evaluating
from bayespare.structure.survivors import RIDGE, first_of, inputs_of


def weight_costs(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    curvature: Curvature | None = None,
    masks: Mapping[str, Tensor] | None = None,
    ridge: float = RIDGE,
) -> dict[str, Tensor]:
    """Cost of removing each weight with the rest of its row refitted.

    Args:
        model: The network, reduced already or not.
        batches: Inputs, or pairs whose first entry is the input.
        curvature: Of the same network: with it costs are nats, otherwise half squared errors of
            the layer's outputs per row of data.
        masks: Which weights there are, boolean by parameter name; default all.
        ridge: In units of the mean second moment of a layer's inputs.

    Returns:
        Weight name to costs, the weight's shape; zero for what is not there. Weights that the
        survivor update leaves alone are not named.
    """
    found: dict[str, Tensor] = {}
    weights = dict(model.named_parameters())
    with torch.no_grad(), evaluating(model):
        targets = targets_of(model, weights, first_of(batches), {})
        for target, moments in _moments(model, weights, targets, batches):
            view = target.part.view
            matrices = target.matrices(weights)
            supports = target.support(masks or {}, weights)
            precision = _precision(target, moments, curvature, weights[view.name])
            costs = []
            for group, matrix in enumerate(matrices):
                gram = ridged(moments.gram[group] / moments.rows, ridge)
                rows = None if precision is None else precision[group].diagonal()
                costs.append(removal_costs(gram, matrix, supports[group], rows))
            stacked = torch.stack(costs)
            if target.bias is not None:
                stacked = stacked[..., :-1]
            parameter = weights[view.name]
            if view.name not in found:
                found[view.name] = torch.zeros_like(parameter, requires_grad=False)
            there = shown(found[view.name], view)
            there.copy_(stacked.reshape(view.size))
    return found


def unit_costs(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Any],
    *,
    curvature: Curvature | None = None,
    refit: bool = False,
    ridge: float = RIDGE,
) -> dict[str, Tensor]:
    """Cost of removing each unit: what its readers lose.

    A unit is judged by its outgoing block alone; adding the incoming one would count it twice.

    Args:
        model: The network that was traced.
        plan: Its units.
        batches: As in :func:`weight_costs`; inputs are measured only of layers that ``curvature``
            has no Kronecker factors of, and to refit.
        curvature: As in :func:`weight_costs`; Kronecker factors couple a layer's outputs.
        refit: Let the readers be refitted on the inputs that stay: right for one removal at a
            time. When many go at once, those that could stand in for each other all look cheap;
            the cost with the readers as they are orders better (the default).
        ridge: As in :func:`weight_costs`, of inputs that are measured.

    Returns:
        Group name to costs, shape ``(size,)``, summed over readers. Groups that are read by a layer
        without moments (an embedding, a grouped convolution) are not named.
    """
    weights = dict(model.named_parameters())
    read = {slot.tensor for group in plan.groups for slot in group.reads()}
    with torch.no_grad(), evaluating(model):
        targets = [
            target
            for target in targets_of(model, weights, first_of(batches), {})
            if target.key in read and target.groups == 1
        ]
        blocks = {} if refit or curvature is None else _kronecker(targets, curvature)
        rest = [target for target in targets if target.key not in blocks]
        for target, moments in _moments(model, weights, rest, batches):
            output = _precision(target, moments, curvature, weights[target.part.view.name])
            gram = ridged(moments.gram[0] / moments.rows, ridge)
            blocks[target.key] = gram, None if output is None else output[0]
    layers = {target.key: target for target in targets}
    costs: dict[str, Tensor] = {}
    for group in plan.groups:
        slots = list(group.reads())
        if not slots or any(slot.tensor not in blocks for slot in slots):
            continue
        total = torch.zeros(group.size, dtype=torch.float64)
        for slot in slots:
            given = layers[slot.tensor], weights, *blocks[slot.tensor]
            total += _slot_costs(group, slot, *given, refit=refit)
        costs[group.name] = total
    return costs


def _slot_costs(
    group: Group,
    slot: Slot,
    target: Target,
    weights: Mapping[str, Tensor],
    gram: Tensor,
    output: Tensor | None,
    *,
    refit: bool,
) -> Tensor:
    """What one reader loses; its bias counts where ``gram`` has a row for it."""
    parameter = weights[slot.tensor]
    line = slot.owner.to(parameter.device)
    shape = [-1 if axis == slot.dim else 1 for axis in range(parameter.ndim)]
    owners = torch.empty_like(parameter, dtype=torch.int64).copy_(line.view(shape))
    owner = shown(owners, target.part.view).reshape(target.part.view.size[0], -1)[0]
    matrix = target.matrices(weights)[0]
    if target.bias is not None:
        owner = torch.cat([owner, owner.new_full((1,), -1)])
    width = len(gram)
    found = unit_removal_costs(
        gram, matrix[:, :width], owner[:width], group.size, output, refit=refit
    )
    return found.cpu()


def _kronecker(
    targets: Iterable[Target], curvature: Curvature
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Input and output factor of every layer that has both, the input's in float64."""
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    for target in targets:
        block = curvature.factors.get(target.key)
        if block is not None and block.input is not None and block.input.ndim == 2:
            found[target.key] = block.input.double(), block.output
    return found


def _precision(
    target: Target, moments: Moments, curvature: Curvature | None, weight: Tensor
) -> Tensor | None:
    """Curvature of the loss in a layer's outputs, summed over data, ``(groups, rows, rows)``."""
    name = target.part.view.name
    if curvature is None:
        return None
    if name in curvature.factors:
        output = curvature.factors[name].output
        if output.ndim == 2:
            return output.unsqueeze(0)
        if len(output) == target.groups:
            return output
        # The projections of attention: one of the stacked blocks.
        rows = target.part.view.size[0]
        first = target.part.view.offset // max(1, rows * target.part.view.stride[0])
        return output[first : first + 1]
    if name not in curvature.diagonal:
        return None
    # A diagonal is output times input moment: their ratio, averaged by the inputs.
    # A view's strides are those of the parameter.
    stored = torch.empty_like(weight).copy_(curvature.diagonal[name])
    diagonal = shown(stored, target.part.view)
    diagonal = diagonal.reshape(target.groups, -1, diagonal[0].numel())
    inputs = moments.gram.diagonal(dim1=-2, dim2=-1)[:, : diagonal.shape[-1]] / moments.rows
    found = diagonal.to(inputs).sum(-1) / inputs.sum(-1, keepdim=True).clamp_min(1e-300)
    return torch.diag_embed(found)


class _All(Listener):
    """Adds every batch's inputs to the moments of all targets as it passes them."""

    def __init__(self, targets: list[Target]) -> None:
        self.found = {target.number: (target, Moments(target)) for target in targets}

    def visit(self, site: Site, output: Tensor) -> Tensor:
        if site.number in self.found:
            self.found[site.number][1].add_inputs(arrival_of(site, output))
        return output


def _moments(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    targets: list[Target],
    batches: Iterable[Any],
) -> list[tuple[Target, Moments]]:
    """One pass over the data: every target with the second moments of its inputs."""
    device = next(iter(weights.values())).device
    listener = _All(targets)
    for batch in batches if targets else ():
        x = moved(inputs_of(batch), device)
        with Tape(weights, listener, examples=examples_in(x)):
            call(model, x)
    return list(listener.found.values())
