"""One round's decision: what the evidence is against, and the cheapest part of it.

Candidates have ``delta-F >= 0`` under a Laplace posterior with a prior precision per layer: what
the data ignore altogether has 0, and goes. Among them the cheapest go first. A unit is judged by
its outgoing block alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from bayespare.bayes.curvature import curvature
from bayespare.bayes.likelihood import Likelihood
from bayespare.posthoc.priors import occam, precisions
from bayespare.structure import Group, Plan, Verdict
from bayespare.structure.costs import unit_costs, weight_costs
from bayespare.structure.plan import Role
from bayespare.structure.slicing import masked_tensors

_MOST_WORK = 3e10
"""Multiply-adds of row-wise factorisations up to which the conditional costs are found."""


@dataclass(frozen=True, eq=False)
class Removal:
    """What one round removes.

    Attributes:
        masks: Which weights are there afterwards, by parameter name.
        keep: Which units are there afterwards, by group; empty for weights.
        predicted: Sum of delta-F of what is removed, nats, by the posterior: not scaled by trust.
        cost: The rise of the loss in it, nats.
        gain: Occam gain of all weights that become zero, those a unit reads included, nats.
        removed: Weights or units removed.
        candidates: How many the evidence is against.
        log_odds: ``-delta-F`` of every unit that was there, by group.
    """

    masks: dict[str, Tensor]
    keep: dict[str, Tensor]
    predicted: float
    cost: float
    gain: float
    removed: int
    candidates: int
    log_odds: dict[str, Tensor]


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """The trainable weights of two or more dimensions: what can be removed one by one."""
    named = model.named_parameters()
    return {name: p.detach() for name, p in named if p.ndim > 1 and p.requires_grad}


def masks_of(model: nn.Module, verdict: Verdict) -> dict[str, Tensor]:
    """Which entries of every parameter a verdict leaves, boolean by name."""
    ones = deepcopy(model)
    for parameter in ones.parameters():
        parameter.detach().fill_(1)
    left = masked_tensors(ones, verdict)
    return {name: left[name] != 0 for name, _ in ones.named_parameters() if name in left}


def _pairs(batches: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, Tensor]]:
    """Without the examples' weights: what a layer computes is kept alike on all inputs."""
    return [(x, y) for x, y, *_ in batches]


def remove_weights(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    batches: Sequence[tuple[Tensor, ...]],
    likelihood: Likelihood,
    examples: int,
    share: float,
    generator: Generator,
    *,
    trust: float = 1.0,
    forced: bool = False,
) -> Removal | None:
    """Decide which single weights go; None if none does.

    Args:
        model: As it is; removed weights are zero.
        masks: Which weights are there.
        batches: What curvature and costs are measured on.
        likelihood: Of the task.
        examples: N of the training data.
        share: Most of the survivors that may go.
        generator: Of the sampled labels.
        trust: Share of the predicted costs that was realised when they were last tried.
        forced: Let the cheapest go even where the evidence is for them, for a budget.
    """
    weights = matrices(model)
    found = curvature(model, likelihood, batches, generator=generator)
    scale = examples / found.examples
    bends = {name: found.diagonal[name] * scale for name in masks}
    prior = precisions(weights, bends, masks)
    costs = {}
    if sum(map(_work, masks.values())) <= _MOST_WORK or all(
        bool(mask.all()) for mask in masks.values()
    ):
        costs = weight_costs(model, _pairs(batches), curvature=found, masks=masks)
    scores, order, gains, rises = {}, {}, {}, {}
    for name, precision in prior.items():
        # Of the loss alone: trained without this prior, the weights are where the data want them.
        rises[name] = rise = 0.5 * bends[name].double() * weights[name].double().square()
        gains[name] = occam(bends[name], precision)
        scores[name] = gains[name] - trust * rise
        given = costs.get(name)
        order[name] = rise if given is None else scale * given.double() * (rise > 0)
    flat = {n: masks[n] & ((scores[n] >= 0) | forced) for n in scores}
    chosen = _cheapest(order, flat, int(share * sum(int(mask.sum()) for mask in masks.values())))
    if not any(bool(gone.any()) for gone in chosen.values()):
        return None
    left = {n: mask & ~chosen[n] if n in chosen else mask for n, mask in masks.items()}
    gain, rise_of_all = _summed(gains, chosen), _summed(rises, chosen)
    return Removal(
        left,
        {},
        gain - rise_of_all,
        rise_of_all,
        gain,
        sum(int(gone.sum()) for gone in chosen.values()),
        sum(int((masks[n] & (scores[n] >= 0)).sum()) for n in scores),
        {},
    )


def remove_units(
    model: nn.Module,
    plan: Plan,
    keep: Mapping[str, Tensor],
    batches: Sequence[tuple[Tensor, ...]],
    likelihood: Likelihood,
    examples: int,
    share: float,
    generator: Generator,
    *,
    trust: float = 1.0,
    forced: bool = False,
) -> Removal | None:
    """Decide which units go; arguments as in :func:`remove_weights`, ``share`` of their weights.

    A unit is judged by its outgoing block; the order is nats of loss for each weight that goes, the
    incoming ones included. A group keeps one unit at least.
    """
    weights = matrices(model)
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    masks |= {n: m for n, m in masks_of(model, Verdict(plan, keep)).items() if n in masks}
    found = curvature(model, likelihood, batches, structure="kfac", generator=generator)
    scale = examples / found.examples
    diagonals = found.diagonals()
    bends = {name: diagonals[name] * scale for name in weights}
    prior = precisions(weights, bends, masks)
    gains = {n: occam(bends[n], d) * masks[n] for n, d in prior.items()}
    raw = unit_costs(model, plan, _pairs(batches), curvature=found)
    scores, order, sizes, rewards, rises = {}, {}, {}, {}, {}
    for group in plan.groups:
        if group.name not in raw or group.name not in keep:
            continue
        rewards[group.name] = _per_unit(group, gains, "read")
        rises[group.name] = scale * raw[group.name]
        scores[group.name] = rewards[group.name] - trust * rises[group.name]
        sizes[group.name] = _per_unit(group, masks).clamp_min(1)
        order[group.name] = rises[group.name] / sizes[group.name]
    flat = {n: keep[n] & ((scores[n] >= 0) | forced) for n in scores}
    most = share * sum(int(masks[n].sum()) for n in weights)
    chosen = _cheapest(order, flat, _affordable(order, flat, sizes, most))
    left = {n: keep[n] & ~chosen[n] if n in chosen else keep[n] for n in keep}
    odds = {name: -score for name, score in scores.items()}
    left = plan.surviving(left, odds)
    gone = {n: keep[n] & ~left[n] for n in keep}
    count = sum(int(units.sum()) for units in gone.values())
    if not count:
        return None
    after = masks_of(model, Verdict(plan, left))
    return Removal(
        after,
        left,
        _summed(rewards, gone) - _summed(rises, gone),
        _summed(rises, gone),
        sum(float(g[~after[n]].sum()) for n, g in gains.items() if n in after),
        count,
        sum(int((keep[n] & (scores[n] >= 0)).sum()) for n in scores),
        odds,
    )


def _work(mask: Tensor) -> float:
    """Multiply-adds of the conditional costs: of each row by what is there, or by what is gone."""
    rows = mask.flatten(1)
    there = rows.sum(1).double()
    gone = rows.shape[1] - there
    return float(torch.minimum(there**3, gone**3 / 3 + gone**2 * rows.shape[1]).sum())


def _summed(values: Mapping[str, Tensor], chosen: Mapping[str, Tensor]) -> float:
    """Sum of the chosen values."""
    return sum(float(line[chosen[n]].sum()) for n, line in values.items() if n in chosen)


def _per_unit(group: Group, values: Mapping[str, Tensor], role: Role | None = None) -> Tensor:
    """Sums of values per weight over the lines of each unit, on one side or on both."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for slot in group.slots:
        if slot.tensor not in values or role not in (None, slot.role):
            continue
        value = values[slot.tensor]
        line = value.sum([d for d in range(value.ndim) if d != slot.dim]).double().cpu()
        owned = slot.owner >= 0
        total.index_add_(0, slot.owner[owned], line[owned])
    return total


def _affordable(
    order: Mapping[str, Tensor],
    candidates: Mapping[str, Tensor],
    sizes: Mapping[str, Tensor],
    most: float,
) -> int:
    """How many of the cheapest units have no more than ``most`` weights; one at least.

    A weight between two of them counts twice: a little less goes than may.
    """
    if not any(bool(line.any()) for line in candidates.values()):
        return 0
    values = torch.cat([order[n][c] for n, c in candidates.items()])
    weights = torch.cat([sizes[n][c] for n, c in candidates.items()])
    return max(1, int((weights[values.argsort()].cumsum(0) <= most).sum()))


def _cheapest(
    order: Mapping[str, Tensor], candidates: Mapping[str, Tensor], most: int
) -> dict[str, Tensor]:
    """The cheapest of the candidates, no more than ``most`` but for ties, as booleans."""
    values = torch.cat([order[n][c] for n, c in candidates.items()] or [torch.zeros(0)])
    count = min(len(values), most)
    if count == 0:
        return {n: torch.zeros_like(c) for n, c in candidates.items()}
    limit: Any = values.kthvalue(count).values
    return {n: c & (order[n] <= limit) for n, c in candidates.items()}
