"""Raising the evidence in the prior precisions, the parameters held where they are.

At the optimum ``gamma = delta theta^2`` summed over whoever shares a precision; with diagonal
curvature and a precision for each parameter it is in closed form, elsewhere damped fixed-point
steps (MacKay 1992) or Adam on the logs, as published, lead to it. Source: card section 6.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bayespare.bayes.marginal.laplace import Laplace
from bayespare.bayes.marginal.priors import LOG_RANGE, Clamps, Prior
from bayespare.errors import BayespareError, did_you_mean

Update = Literal["auto", "closed", "mackay", "adam"]


@torch.no_grad()
def best_log_precision(mean: Tensor, curvature: Tensor) -> Tensor:
    """Log of the precision of highest evidence, for one parameter each.

    ``delta = 1/2 (-h + sqrt(h^2 + 4 h / theta^2))``, without cancellation; where the data say
    nothing (h = 0) it is not a number. At a mean of zero it is infinite.

    Args:
        mean: theta, any shape.
        curvature: h = c H >= 0, same shape.
    """
    square = mean.double().square()
    curvature = curvature.double()
    # delta = 2 h / (h theta^2 + sqrt(h^2 theta^4 + 4 h theta^2))
    down = curvature * square
    return ((2 * curvature) / (down + (down.square() + 4 * down).sqrt())).log()


CHUNK = 2**20
"""Precisions that are set at once: the double-precision numbers on the way are several."""


@torch.no_grad()
def closed_form(prior: Prior, laplace: Laplace, *, stride: float = math.inf) -> Clamps:
    """Set every precision to its optimum, in place.

    What the data say nothing about keeps its precision.

    Args:
        prior: With a precision for each parameter.
        laplace: With diagonal curvature.
        stride: Largest change of a log precision.

    Returns:
        What had to be clamped.

    Raises:
        BayespareError: If there is no closed form for the prior or the curvature.
    """
    if prior.kind != "parameter" or not laplace.is_diagonal:
        raise BayespareError(
            f"prior={prior.kind!r}: the closed form needs prior='parameter' and diagonal "
            "curvature; use update='mackay'"
        )
    factor = float(laplace.factor())
    for name, block in laplace.blocks.items():
        whole = (prior.logs[prior.places[name][0]].data, laplace.means[name], block.curvature)
        for log, mean, bend in zip(*(t.reshape(-1).split(CHUNK) for t in whole), strict=True):
            best = best_log_precision(mean, factor * bend).clamp(*LOG_RANGE).to(log.dtype)
            best = torch.where(bend > 0, best, log)
            log += (best - log).clamp(-stride, stride)
    return prior.clamp()


@torch.no_grad()
def mackay(
    prior: Prior,
    laplace: Laplace,
    *,
    steps: int = 10,
    tolerance: float = 0.0,
    log_noise: nn.Parameter | None = None,
) -> Clamps:
    """Damped fixed-point steps towards ``sum(gamma) = sum(delta theta^2)``, in place.

    MacKay's map ``delta <- delta sum(gamma) / sum(delta theta^2)`` has in the logs a slope between
    minus the mean of ``1 - gamma`` over whoever shares delta and 0: where the data determine
    little it flips the error from side to side and hardly lessens it. Its steps are divided by one
    plus that mean: then each at least halves a small error, and where all who share a precision are
    determined alike they are Newton's. The outputs' and inputs' shares of a unit-wise prior take
    turns.

    Where the evidence is a bound (:meth:`Laplace.is_bound`) precisions act on each other, and that
    is not enough: none moves further than its stride, a nat until the move turns back, then half.

    Args:
        prior: Of any kind.
        laplace: Of any curvature.
        steps: At most so many.
        tolerance: Stop when no log precision moves further than this; what is left is less, but
            for shares that take turns.
        log_noise: Log standard deviation of a regression's noise, updated too:
            ``sigma^2 <- sum of squares / (T (N - sum gamma))``; of an empirical Fisher, which
            falls with its fourth power, twice the sum.

    Returns:
        What had to be clamped.
    """
    bound = laplace.is_bound(prior)
    strides = [_Stride() if bound else None for _ in range(2 if prior.kind == "unit" else 1)]
    for _ in range(steps):
        moves = [
            _fixed_point(prior, laplace, turn, stride, log_noise)
            for turn, stride in enumerate(strides)
        ]
        if max(moves) <= tolerance:
            break
    return prior.clamp()


class _Stride:
    """How far each log precision may move: a nat, and half as far whenever it turns back."""

    def __init__(self) -> None:
        self._far: Tensor | None = None
        self._last: Tensor | None = None

    def limited(self, move: Tensor) -> Tensor:
        """The move, no further than that."""
        if self._far is None or self._last is None:
            self._far = torch.ones_like(move)
        else:
            self._far = torch.where(move * self._last < 0, self._far / 2, self._far)
        self._last = move
        return move.clamp(-self._far, self._far)


def _fixed_point(
    prior: Prior,
    laplace: Laplace,
    turn: int,
    stride: _Stride | None,
    log_noise: nn.Parameter | None,
) -> float:
    """One step of each first (turn 0) or second share, and of the noise; the largest move."""
    low, high = LOG_RANGE
    shared = prior.kind in ("scalar", "layer")
    gamma = (laplace.effective if shared else laplace.determined)(prior, log_noise)
    precisions = prior.precisions()
    pulls = {name: precisions[name] * mean.square() for name, mean in laplace.means.items()}
    shares, pulled = prior.pooled(gamma), prior.pooled(pulls)
    means = [share / number for share, number in zip(shares, prior.sharers(), strict=True)]
    # One vector of all: with few precisions the number of operations is what costs.
    places = sorted({owned[turn % len(owned)] for owned in prior.places.values()})
    flat = [
        torch.cat([values[place].reshape(-1) for place in places])
        for values in (shares, pulled, means, [log.double() for log in prior.logs])
    ]
    share, pull, mean, old = flat
    # A share of zero is a precision at the lower end, a pull of zero at the upper.
    move = (share.clamp_min(1e-300).log() - pull.clamp_min(1e-300).log()) / (2 - mean)
    move = move.clamp(low, -low).where((share > 0) | (pull > 0), 0.0)
    move = move if stride is None else stride.limited(move)
    new = (old + move).clamp(low, high)
    logs = [prior.logs[place] for place in places]
    for log, part in zip(logs, torch.split(new, [log.numel() for log in logs]), strict=True):
        log.copy_(part.view_as(log))
    largest = float((new - old).abs().max())
    if log_noise is not None and laplace.noise is not None:
        used = sum(float(g.sum()) for g in gamma.values())
        free = laplace.noise.numbers - laplace.noise.power / 2 * used
        square = laplace.noise.squares / (laplace.temperature * max(free, 1.0))
        last = log_noise.clone()
        log_noise.fill_(0.5 * math.log(max(square, 1e-30)))
        largest = max(largest, float((log_noise - last).abs()))
    return largest


def adam_steps(
    prior: Prior,
    laplace: Laplace,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int = 100,
    log_noise: nn.Parameter | None = None,
) -> tuple[float, Clamps]:
    """Steps on the log precisions (and the log noise), as published.

    Args:
        prior: Of any kind.
        laplace: Of any curvature.
        optimizer: Over what is to be learnt; its state is kept from one call to the next, as
            published (Adam, rate 0.1).
        steps: K.
        log_noise: Of a regression.

    Returns:
        Negative log evidence per example before the last step, nats, and what was clamped.
    """
    last = math.nan
    clamps = Clamps()
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = -laplace.log_evidence(prior, log_noise) / max(1, laplace.examples)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        clamps = prior.clamp()
        last = float(loss.detach())
    optimizer.zero_grad(set_to_none=True)
    return last, clamps


def learn(
    prior: Prior,
    laplace: Laplace,
    update: Update = "auto",
    *,
    steps: int = 10,
    tolerance: float = 1e-2,
    stride: float = math.inf,
    log_noise: nn.Parameter | None = None,
) -> Clamps:
    """Raise the evidence in the precisions by the way named, or the cheapest there is.

    Args:
        prior: Of any kind.
        laplace: Of any curvature.
        update: ``auto`` is ``closed`` where there is a closed form and ``mackay`` elsewhere.
        steps: Of ``adam``, and of ``mackay`` at most.
        tolerance: Of ``mackay``: so near the optimum the evidence is flat. From anywhere in
            :data:`LOG_RANGE` a dozen steps lead there, mostly three to five; of a bound fifty.
        stride: Of ``closed``.
        log_noise: Of a regression.

    Raises:
        BayespareError: On an unknown update, or a closed form that is not there.
    """
    if update not in get_args(Update):
        raise BayespareError(f"unknown update {update!r}{did_you_mean(update, get_args(Update))}")
    if update == "closed" and log_noise is not None:
        raise BayespareError("update='closed' does not learn log_noise; use mackay, adam or auto")
    closed = prior.kind == "parameter" and laplace.is_diagonal and log_noise is None
    if update == "closed" or (update == "auto" and closed):
        return closed_form(prior, laplace, stride=stride)
    if update == "adam":
        learnt = [*prior.parameters(), *([] if log_noise is None else [log_noise])]
        adam = torch.optim.Adam(learnt, lr=0.1)
        return adam_steps(prior, laplace, adam, steps=steps, log_noise=log_noise)[1]
    return mackay(prior, laplace, steps=steps, tolerance=tolerance, log_noise=log_noise)
