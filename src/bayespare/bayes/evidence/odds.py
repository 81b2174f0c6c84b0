"""Prior odds of a layer's weights: the Beta-Bernoulli reading of a spike-and-slab prior.

Every weight (or unit) is in the model with probability pi, ``pi ~ Beta(alpha, beta)`` one per
layer. Its log posterior odds are ``zeta - delta_f`` with zeta the log prior odds, which the other
weights of the layer determine. Zeta far above zero keeps weights that the evidence is against, far
below zero it removes weights the evidence is for: a whole layer can tip over in one round.

Source: card sections 3.3 and 5.1, pitfalls 1 and 15.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from bayespare.errors import BayespareError

OddsRule = Literal["published", "converged", "fixed", "zero"]

# More values than this are replaced by the means of bins, far narrower than a sigmoid is wide.
_EXACT = 1 << 16
_BINS = 1 << 16
_RANGE = 64.0


def prior_log_odds(
    delta_f: Tensor,
    rule: OddsRule = "converged",
    *,
    fixed: float = 0.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    candidates: Tensor | None = None,
    bound: float = math.inf,
    name: str = "layer",
) -> float:
    """Log prior odds zeta that a weight of this layer belongs in the model, nats.

    Args:
        delta_f: Change of log evidence per weight or unit, any shape; positive = remove.
        rule: ``published``: four iterations of the fixed point from zero, as in the authors' code
            (can be nats away from convergence); ``converged``: to the end; ``fixed``: the value
            given; ``zero``.
        fixed: Log prior odds for ``rule="fixed"``.
        alpha: First parameter of the Beta prior.
        beta: Second parameter.
        candidates: Boolean, shape of ``delta_f``: what still is in the model. What has been
            removed must not be counted: it relaxes to its prior, where delta-F is zero.
        bound: The result is clipped to ``[-bound, bound]``.
        name: The layer, for errors.

    Raises:
        BayespareError: If a delta-F is NaN, the Beta prior improper or the rule unknown.
    """
    if rule == "zero":
        return 0.0
    if rule == "fixed":
        return max(-bound, min(bound, fixed))
    if rule not in ("published", "converged"):
        known = "published, converged, fixed, zero"
        raise BayespareError(f"{name}: no rule {rule!r} for the prior odds (known: {known})")
    if not (alpha > 0 and beta > 0):
        raise BayespareError(f"{name}: alpha={alpha}, beta={beta} of the Beta must be positive")
    values = delta_f.detach() if candidates is None else delta_f.detach()[candidates]
    if bool(torch.isnan(values.sum())) and bool(torch.isnan(values).any()):
        raise BayespareError(f"{name}: a delta-F is NaN; look at the posterior it came from")
    values, counts = _counted(values.reshape(-1))
    total = float(counts.sum())
    zeta = 0.0
    for _ in range(4 if rule == "published" else 20_000):
        active = float(((zeta - values).sigmoid() * counts).sum())
        weights = torch.tensor([alpha + active, beta + total - active], dtype=torch.float64)
        present, absent = torch.digamma(weights).tolist()
        before, zeta = zeta, present - absent
        if rule == "converged" and abs(zeta - before) < 1e-10:
            break
    return max(-bound, min(bound, zeta))


def log_odds(delta_f: Tensor, prior: float | Tensor = 0.0) -> Tensor:
    """Log posterior odds that each weight or unit belongs in the model, nats; keep if positive."""
    return prior - delta_f


def keeps(delta_f: Tensor, prior: float | Tensor = 0.0, *, tie: float = 0.0) -> Tensor:
    """Which weights or units stay: those with ``delta_f <= prior - tie``.

    Args:
        delta_f: Change of log evidence, nats.
        prior: Log prior odds of being in the model.
        tie: A weight that the data ignore has a delta-F of about zero, on either side of it, and
            removing it is free: this many nats (0.05 to 0.5) break the tie towards removal. Zero
            keeps at equality, as published.
    """
    return delta_f <= prior - tie


def _counted(values: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct values and how often each occurs, float64; binned when there are many."""
    if values.numel() <= _EXACT:
        values = values.double()
        return values, torch.ones_like(values)
    values = values.clamp(-_RANGE, _RANGE)
    place = ((values + _RANGE) * (_BINS / (2 * _RANGE))).long()
    counts = torch.bincount(place).double()
    sums = torch.bincount(place, weights=values.double())
    present = counts > 0
    return sums[present] / counts[present], counts[present]
