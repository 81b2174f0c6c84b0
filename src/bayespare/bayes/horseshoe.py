"""Evidence of a regularised horseshoe over the scale of a block of weights, by one integral.

The weights of a block share a reduced prior of standard deviation g = s0 t / sqrt(1 + t^2), with t
half-Cauchy of scale tau: between a spike (t = 0) and the prior they were fitted with. The change of
log evidence at each g is in closed form, so the horseshoe's is an integral over t alone.
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

TAUS = tuple(10.0**power for power in (-3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0))
"""Scales among which a group's own is chosen, by its evidence."""


WITHIN = 16
"""Parts of a cell between two scales at which the gain is interpolated."""


@functools.cache
def _edges(points: int) -> tuple[float, ...]:
    """Edges of cells in t, evenly in log t, the outer ones at zero and infinity."""
    inner = [10.0 ** (-4 + 8 * k / (points - 2)) for k in range(points - 1)]
    return (0.0, *inner, math.inf)


def shrinkages(points: int = 64) -> list[float]:
    """The ratio g / s0 at the median of each cell (under a flat log t)."""
    edges = _edges(points)
    centres = [math.sqrt(a * b) for a, b in itertools.pairwise(edges[1:-1])]
    inside = [t / math.sqrt(1 + t * t) for t in centres]
    return [0.0, *inside, 1.0]


def horseshoe_gain(gains: Tensor, tau: float) -> Tensor:
    """Change of log evidence under the horseshoe, nats.

    Args:
        gains: Change of log evidence at each of the :func:`shrinkages`, shape ``(points, ...)``.
        tau: Scale of the half-Cauchy of t.

    Returns:
        ``log sum_k P(t in cell k) exp(gain_k)``, float64, shape ``(...)``.
    """
    gains, edges = _finer(gains.double(), _edges(len(gains)))
    mass = (edges / tau).atan().diff() * (2 / math.pi)
    # The far tails underflow; they weigh nothing.
    log_mass = mass.clamp_min(torch.finfo(torch.float64).tiny).log()
    shape = (-1, *[1] * (gains.dim() - 1))
    return (gains + log_mass.view(shape)).logsumexp(0)


def _finer(gains: Tensor, edges: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Cut the cells into :data:`WITHIN` each, with a cubic through the four centres around.

    The more weights a block has, the narrower is the scale that fits it.
    """
    number = len(gains) - 2
    place = (torch.arange(number * WITHIN, dtype=torch.float64) + 0.5) / WITHIN - 0.5
    first = (place.floor().long() - 1).clamp(0, number - 4)
    nodes = torch.arange(4)
    away = (place - first).unsqueeze(1) - nodes
    share = torch.stack(
        [away[:, nodes != k].prod(1) / (k - nodes[nodes != k]).double().prod() for k in nodes]
    )
    inner, shape = gains[1:-1], (-1, *[1] * (gains.dim() - 1))
    between = torch.stack([share[k].view(shape) * inner[first + k] for k in range(4)]).sum(0)
    low, high = math.log(edges[1]), math.log(edges[-2])
    cuts = torch.linspace(low, high, number * WITHIN + 1, dtype=torch.float64).exp()
    all_edges = torch.cat((cuts.new_zeros(1), cuts, cuts.new_full((1,), math.inf)))
    return torch.cat((gains[:1], between, gains[-1:])), all_edges


def best_tau(gains: Tensor) -> float:
    """The scale of highest evidence for blocks that share it.

    Args:
        gains: As in :func:`horseshoe_gain`, shape ``(points, blocks)``.
    """
    values = [float(horseshoe_gain(gains, tau).sum()) for tau in TAUS]
    best: float = TAUS[max(range(len(TAUS)), key=values.__getitem__)]
    return best
