"""Cut a structure that is just over a budget down to it: no size between two epochs is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from bayespare.structure.plan import Plan
from bayespare.training.fit import Fit

REFILLED = 32
"""Units that are tried in the place of a large one; each may cost a measurement of the time."""


def trim(fit: Fit, met: Callable[[dict[str, Tensor]], bool]) -> bool:
    """Remove the units whose log-odds are lowest for what they cost, and no more than needed.

    The order is that of a price of a parameter which rises: a unit goes when its price exceeds its
    log-odds. The last to go may be a large one; what fits in its place comes back.

    Args:
        fit: Not decided yet; cut in place.
        met: Whether keeping these units (a boolean per unit of the plan as it is now) is enough.

    Returns:
        Whether any of these sets was enough; if none, nothing is cut.
    """
    plan, odds = fit.method.plan, fit.method.log_odds()
    sizes = unit_sizes(fit.network, plan)
    worth = {name: values / sizes[name] for name, values in odds.items()}
    prices = torch.cat([torch.zeros(1), *(line[line > 0].float() for line in worth.values())])
    prices = torch.unique(prices)

    def kept(price: Tensor) -> dict[str, Tensor]:
        return plan.surviving({name: line > price for name, line in worth.items()}, odds)

    low, high = 0, len(prices) - 1
    if not met(kept(prices[high])):
        return False
    while low < high:
        middle = (low + high) // 2
        if met(kept(prices[middle])):
            high = middle
        else:
            low = middle + 1
    fit.remove(_refilled(kept(prices[high]), worth, met))
    return True


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
