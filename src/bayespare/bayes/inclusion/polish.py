"""Exact coordinate steps for the gates of a fitted network (card section 3, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bayespare.bayes.inclusion.recovery import gain_log_odds
from bayespare.errors import BayespareError


def polish(
    log_likelihood: Callable[[Tensor], Tensor],
    log_odds: Tensor,
    slab_kl: Tensor | Callable[[Tensor], Tensor],
    prior: Tensor,
    *,
    draws: int = 16,
    sweeps: int = 2,
    redraw: Callable[[], None] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Move each gate to the optimum F5 in turn, the others at their probabilities.

    Gates trained by gradients stop at a few nats however large the evidence; this brings them to
    where the evidence bound has its maximum. With and without a node are compared on the same
    draws, so most of the noise cancels.

    Args:
        log_likelihood: Log-likelihood of all data given gates, shape ``(draws, J)`` of zeros and
            ones, one row for each draw of the weights; returns nats, shape ``(draws,)``, the same
            whenever the gates of a sweep are the same.
        log_odds: Where the gates are, nats, shape ``(J,)``; not changed.
        slab_kl: KL of each node's weights from the slab, nats, shape ``(J,)``; where it depends
            on the other gates, what gives it at the log-odds so far.
        prior: Prior log-odds, nats, broadcast against ``(J,)``.
        draws: Draws of the weights and of the other gates.
        sweeps: Passes over all nodes.
        redraw: Called before each sweep: draws new weights.
        generator: Source of the gates.

    Returns:
        Log-odds, nats, shape ``(J,)``.

    Raises:
        BayespareError: If a log-likelihood is not finite.
    """
    if draws < 1 or sweeps < 1:
        raise BayespareError(f"polish: draws={draws} and sweeps={sweeps} must be 1 or more")
    odds = log_odds.detach().clone()
    prior = prior.to(odds).expand_as(odds)
    for _ in range(sweeps):
        if redraw is not None:
            redraw()
        uniform = torch.rand(
            draws, len(odds), generator=generator, dtype=odds.dtype, device=odds.device
        )
        now: Tensor | None = None
        for node in range(len(odds)):
            gates = (uniform < odds.sigmoid()).to(odds.dtype)
            # With or without the node is how the gates are: known from the node before.
            now = log_likelihood(gates) if now is None else now
            there = gates[:, node] > 0
            gates[:, node] = 1 - gates[:, node]
            other = log_likelihood(gates)
            included, excluded = torch.where(there, now, other), torch.where(there, other, now)
            gain = (included - excluded).mean()
            if not bool(torch.isfinite(gain)):
                raise BayespareError(
                    f"polish: the log-likelihood is not finite with or without node {node}; "
                    "look for extreme inputs, or a fit that diverged"
                )
            cost = slab_kl(odds) if callable(slab_kl) else slab_kl
            odds[node] = gain_log_odds(gain, cost[node], prior[node])
            now = torch.where(uniform[:, node] < odds[node].sigmoid(), included, excluded)
    return odds
