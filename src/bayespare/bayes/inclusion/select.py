"""From log-odds to a set: groups of features, median probability rule, false discovery rule.

Everything works on log-odds, not probabilities: these are 1 in float32 beyond 17 nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from bayespare.errors import BayespareError

WORKING = 2**24
"""Correlations that are held at once."""


def group_log_odds(log_odds: Tensor, groups: Sequence[int] | Tensor) -> Tensor:
    """Log-odds that at least one member of each group is included, nats (noisy-or).

    Members are independent in the posterior, as they are in a mean-field fit: features that share
    the evidence for one effect have a group that is surer than any of them.

    Args:
        log_odds: Per member, nats, shape ``(J,)``.
        groups: Group number of each member, from 0, shape ``(J,)``.

    Returns:
        Shape ``(number of groups,)``.

    Raises:
        BayespareError: If the groups do not match the members or a group is empty.
    """
    index = torch.as_tensor(groups, dtype=torch.int64, device=log_odds.device)
    if index.shape != log_odds.shape or (index.numel() and int(index.min()) < 0):
        raise BayespareError(
            f"groups of shape {tuple(index.shape)} do not fit {tuple(log_odds.shape)} log-odds"
        )
    count = int(index.max()) + 1 if index.numel() else 0
    if len(torch.unique(index)) != count:
        raise BayespareError("groups must be numbered 0, 1, 2, ... without a gap")
    none = log_odds.new_zeros(count).index_add(0, index, logsigmoid(-log_odds))
    # log((1 - p) / p) of p = exp(none), where one may be as small as it likes.
    some = torch.where(none > -1, (-torch.expm1(none)).log(), torch.log1p(-none.exp()))
    return some - none


def path_inclusion(layers: Sequence[Tensor]) -> Tensor:
    """Probability that an open path joins each input to an output, from weight inclusions.

    Paths are taken as independent (noisy-or), layer by layer from the outputs.

    Args:
        layers: Inclusion probability of every weight, shapes ``(outputs, inputs)``, the first
            layer first.

    Returns:
        Shape ``(inputs of the first layer,)``.
    """
    reached = layers[-1].new_ones(layers[-1].shape[0])
    for weights in reversed(layers):
        closed = torch.log1p(-(weights * reached[:, None]).clamp(0, 1))
        reached = -torch.expm1(closed.sum(0))
    return reached


def median_set(log_odds: Tensor, most: int | None = None) -> Tensor:
    """The median probability model: what has positive log-odds (Barbieri and Berger 2004).

    Args:
        log_odds: Nats, shape ``(J,)``.
        most: Keep at most so many, those with the highest log-odds.

    Returns:
        Boolean, shape ``(J,)``.
    """
    return _capped(log_odds > 0, log_odds, most)


def discovery_set(log_odds: Tensor, rate: float, most: int | None = None) -> Tensor:
    """The largest set whose expected share of false discoveries is at most ``rate``.

    Args:
        log_odds: Nats, shape ``(J,)``.
        rate: Bound of the mean exclusion probability in the set, in (0, 1).
        most: Keep at most so many.

    Returns:
        Boolean, shape ``(J,)``; empty where even the surest member is too uncertain.

    Raises:
        BayespareError: If the rate is out of range.
    """
    if not 0 < rate < 1:
        raise BayespareError(f"fdr={rate}: must lie between 0 and 1")
    order = log_odds.argsort(descending=True, stable=True)
    excluded = (-log_odds.double()[order]).sigmoid()
    means = excluded.cumsum(0) / torch.arange(1, len(order) + 1, device=excluded.device)
    chosen = torch.zeros_like(log_odds, dtype=torch.bool)
    # The running mean of sorted values rises, so the last one below the rate ends the set.
    chosen[order[: int((means <= rate).sum())]] = True
    return _capped(chosen, log_odds, most)


def _capped(chosen: Tensor, log_odds: Tensor, most: int | None) -> Tensor:
    if most is None:
        return chosen
    if most < 1:
        raise BayespareError(f"max_features={most}: must be 1 or more")
    best = log_odds.argsort(descending=True, stable=True)[:most]
    allowed = torch.zeros_like(chosen)
    allowed[best] = True
    return chosen & allowed


def correlated_groups(x: Tensor, threshold: float = 0.95) -> list[list[int]]:
    """Columns whose absolute correlation is above a threshold, directly or through others.

    Args:
        x: Shape ``(N, J)``.
        threshold: In (0, 1).

    Returns:
        Groups of two columns or more, each in order; constant columns are in none.
    """
    centred = x.double() - x.double().mean(0)
    norm = centred.norm(dim=0)
    scaled = torch.where(norm > 0, centred / norm.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    label = torch.arange(x.shape[1])
    # A slice at a time: all pairs of 50,000 columns would take 40 GB.
    for some in torch.split(scaled, max(1, WORKING // max(1, x.shape[1])), dim=1):
        for linked in (some.T @ scaled).abs() > threshold:
            near = label[linked]
            if bool((near != near[:1]).any()):
                label[torch.isin(label, near)] = near.min()
    found: dict[int, list[int]] = {}
    for column, first in enumerate(label.tolist()):
        found.setdefault(first, []).append(column)
    return [members for members in found.values() if len(members) > 1]
