"""Cut a structure that is just over a budget down to it: no size between two epochs is lost."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from bayespare.structure.plan import Plan
from bayespare.training.fit import Fit

C = TypeVar("C")

DEAREST = 1e9
"""Nats for a weight, above which nothing more goes."""

HALVINGS = 24
"""How often the price of a weight is halved towards the least that is enough."""

REFILLED = 32
"""Units that are tried in the place of a large one; each may cost a measurement of the time."""


def trim(fit: Fit, cost: Callable[[dict[str, Tensor]], C], within: Callable[[C], bool]) -> C | None:
    """Remove the units whose log-odds are lowest for what they cost, and no more than needed.

    The order is that of a price of a parameter which rises: a unit goes when its price exceeds its
    log-odds. The last to go may be a large one: either what fits in its place comes back, or it
    stays and smaller ones of more worth go instead, whichever leaves more log-odds.

    Args:
        fit: Not decided yet; cut in place.
        cost: Of keeping these units (a boolean per unit of the plan as it is now).
        within: Whether a cost is within the budget.

    Returns:
        What the network costs now, as it was measured: times vary, and this one is within. None if
        no set is, and nothing is cut.
    """
    if fit.method.by_weight:
        return _priced(fit, cost, within)
    plan, odds = fit.method.plan, fit.method.log_odds()
    sizes = unit_sizes(fit.network, plan)
    worth = {name: (values / sizes[name]).float() for name, values in odds.items()}
    prices = torch.cat(
        [torch.zeros(1), *(line[(line > 0) & line.isfinite()] for line in worth.values())]
    )
    rising = torch.unique(prices).tolist()
    costs: dict[bytes, C] = {}

    def met(stay: dict[str, Tensor]) -> bool:
        found = cost(stay)
        if within(found):
            costs[_bits(stay)] = found
        return within(found)

    def kept(price: float, spared: float | None = None) -> dict[str, Tensor]:
        stay = {name: line > price for name, line in worth.items()}
        if spared is not None:
            stay = {name: line | (worth[name] == spared) for name, line in stay.items()}
        return plan.surviving(stay, odds)

    def enough(spared: float | None = None) -> int:
        return bisect_left(rising, True, key=lambda price: met(kept(price, spared)))

    lowest = enough()
    if lowest == len(rising):
        return None
    large = rising[lowest]
    options = [kept(large)]
    instead = enough(large)
    if instead < len(rising):
        options.append(kept(rising[instead], large))
    full = [_refilled(stay, worth, met) for stay in options]
    best = max(full, key=lambda stay: _evidence(stay, odds))
    fit.remove(best)
    # What is left is within: asked for less still, units whose readers have gone would go too.
    fit.method.price = 0.0
    return costs[_bits(best)]


def _priced(
    fit: Fit, cost: Callable[[dict[str, Tensor]], C], within: Callable[[C], bool]
) -> C | None:
    """The same of single weights: the least price that is enough is left to the decision."""
    method = fit.method

    def at(price: float) -> C:
        method.price = price
        odds = method.log_odds()
        return cost(method.plan.surviving({n: line > 0 for n, line in odds.items()}, odds))

    before = low = method.price
    high = max(1.0, 2 * low)
    while not within(found := at(high)):
        low, high = high, 2 * high
        if high > DEAREST:
            method.price = before
            return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        less = at(middle)
        if within(less):
            high, found = middle, less
        else:
            low = middle
    method.price = high
    return found


def _bits(stay: Mapping[str, Tensor]) -> bytes:
    """A set of units as a key."""
    return b"".join(line.numpy().tobytes() for line in stay.values())


def _evidence(stay: Mapping[str, Tensor], odds: Mapping[str, Tensor]) -> float:
    """Log-odds of what stays, nats, without what was never in question."""
    return sum(float(line[stay[n] & line.isfinite()].sum()) for n, line in odds.items())


def _refilled(
    stay: dict[str, Tensor],
    worth: Mapping[str, Tensor],
    met: Callable[[dict[str, Tensor]], bool],
) -> dict[str, Tensor]:
    """Bring units back, those of most worth first, as long as it is still enough."""
    gone = [
        (float(worth[name][unit]), name, unit)
        for name, line in stay.items()
        for unit in (~line & (worth[name] > 0)).nonzero().flatten().tolist()
    ]
    for _, name, unit in sorted(gone, reverse=True)[:REFILLED]:
        more = {**stay, name: stay[name].clone()}
        more[name][unit] = True
        stay = more if met(more) else stay
    return stay


def unit_sizes(network: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Parameters that go with each single unit while all others stay, per group; at least one."""
    parameters = dict(network.named_parameters())
    sizes = {}
    for group in plan.groups:
        total = torch.zeros(group.size)
        for slot in group.slots:
            if slot.tensor in parameters:
                line = parameters[slot.tensor].numel() // max(1, len(slot.owner))
                total += line * slot.owner[slot.owner >= 0].bincount(minlength=group.size)
        sizes[group.name] = total.clamp_min(1)
    return sizes
