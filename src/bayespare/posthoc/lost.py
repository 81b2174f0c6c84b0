"""How many more examples a smaller network gets wrong than the one it was made from.

Half a point of 6,000 validation rows is a count with a standard error of 0.3 points: chosen by it
alone, sizes differ by a factor of six from seed to seed. The likelihood tells networks apart with
half that error, once overconfidence is taken out of it, which one temperature cures and accuracy
does not see. The two estimates are averaged, each as it is precise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
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
        tempered: NLL of every example at the temperature that suits the network best, nats; as the
            scores have it for regression.
    """

    scores: Scores
    tempered: Tensor

    @property
    def per_error(self) -> float:
        """Tempered NLL for each wrong example, nats; in no case less than a coin's."""
        rows = len(self.scores.score)
        wrong = max(1 - self.scores.mean, 1 / rows)
        return max(float(self.tempered.mean()) / wrong, math.log(2))


def tempered_losses(logits: Tensor, y: Tensor) -> Tensor:
    """NLL of every example at the temperature that suits the logits best, nats, shape ``(N,)``.

    Args:
        logits: Shape ``(N, K)``.
        y: The classes, int64, shape ``(N,)``.
    """
    logits = logits.double() / best_temperature(logits, y)
    return functional.cross_entropy(logits, y, reduction="none").cpu()


def lost(small: Standing, given: Standing) -> float:
    """Share of the examples that a smaller network loses.

    Counted, and by likelihood: what an error costs the given network on average says how many
    errors a rise of the NLL stands for. Both are means over the same examples; they are averaged
    with the inverse of their variances.
    """
    counted = given.scores.score - small.scores.score
    implied = (small.tempered - given.tempered) / given.per_error
    estimates = torch.stack((counted, implied))
    # Where nothing differs both are right.
    precisions = 1 / estimates.var(1).clamp_min(1e-24)
    return float((precisions * estimates.mean(1)).sum() / precisions.sum())


def as_good(small: Standing, given: Standing) -> bool:
    """Whether a smaller network is as good as a user would want it.

    Half a point may be lost, or a twentieth of the squared error, and the NLL as it is may be a
    quarter above that of the network given. On few rows none of that can be seen: there its loss
    must not be measurably higher, nor its score measurably lower.
    """
    scores, whole = small.scores, given.scores
    if len(whole.score) < FEW_ROWS:
        return not (scores.worse_than(whole) or scores.scores_below(whole))
    if whole.mean < 0:
        return near(scores.mean, whole.mean)
    return lost(small, given) <= 0.005 + 1e-9 and scores.nll <= 1.25 * whole.nll
