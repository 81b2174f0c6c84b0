"""How many more examples a smaller network gets wrong than the one it was made from.

Half a point of 6,000 validation rows is a count with a standard error of 0.3 points: chosen by it
alone, sizes differ by a factor of six from seed to seed. The likelihood tells networks apart with
half that error once overconfidence, which one temperature cures and accuracy does not see, is taken
out of it. The two estimates are averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from bayespare.measure.temperature import best_temperature
from bayespare.training.candidates import FEW_ROWS, near
from bayespare.training.loop import Scores


@dataclass(frozen=True, eq=False)
class Standing:
    """Where a network stands on validation data.

    Attributes:
        scores: Of every example.
        tempered: Mean NLL at the temperature that suits the network best, nats; that of the scores
            for regression.
    """

    scores: Scores
    tempered: float

    @property
    def per_error(self) -> float:
        """Tempered NLL for each wrong example, nats; in no case less than a coin's."""
        rows = len(self.scores.score)
        return max(self.tempered / max(1 - self.scores.mean, 1 / rows), math.log(2))


def tempered_nll(logits: Tensor, y: Tensor, weight: Tensor | None = None) -> float:
    """Mean NLL at the temperature that suits the logits best, nats.

    Args:
        logits: Shape ``(N, K)``.
        y: The classes, int64, shape ``(N,)``.
        weight: How often each example counts, shape ``(N,)``; None: once.
    """
    logits = logits.double() / best_temperature(logits, y)
    losses = functional.cross_entropy(logits, y, reduction="none")
    if weight is None:
        return float(losses.mean())
    return float((losses * weight).sum() / weight.sum())


def lost(small: Standing, given: Standing) -> float:
    """Share of the examples that a smaller network loses: counted, and by likelihood; the mean."""
    counted = given.scores.mean - small.scores.mean
    return 0.5 * (counted + (small.tempered - given.tempered) / given.per_error)


def as_good(small: Standing, given: Standing) -> bool:
    """Whether a smaller network is as good as a user would want it.

    Half a point may be lost, or a twentieth of the squared error, and the NLL as it is may be a
    quarter above that of the network given. On few rows none of that can be seen: there its loss
    must not be measurably higher.
    """
    scores, whole = small.scores, given.scores
    if len(whole.score) < FEW_ROWS:
        return not scores.worse_than(whole)
    if whole.mean < 0:
        return near(scores.mean, whole.mean)
    return lost(small, given) <= 0.005 + 1e-9 and scores.nll <= 1.25 * whole.nll
