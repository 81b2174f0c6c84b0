"""Structures on the frontier: which to train to the end, and which to choose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from bayespare.data import Dataset
from bayespare.errors import BayespareError
from bayespare.training.budget import Cost
from bayespare.training.checkpoint import is_plain
from bayespare.training.fit import Fit
from bayespare.training.loop import Scores

FEW_ROWS = 1000
"""Validation examples below which half a point is less than five of them, and not seen."""


@dataclass(eq=False)
class Candidate:
    """A structure on the frontier, with the network that was trained to its end.

    Attributes:
        name: Short name, by the epoch it was found in.
        fit: The network and its posterior.
        parameters: Physical parameters of the decided network.
        tempering: At which the structure was decided.
        macs: Multiply-accumulates of the decided network; None: no budget asks.
        latency_ms: Its time for one example, milliseconds; None: no budget asks.
        pruned: Validation as it would be just after the decision.
        relaxed: The same with gates at their inclusion probabilities; None before it is decided.
        scores: Validation after cooling; None before.
    """

    name: str
    fit: Fit
    parameters: int
    tempering: float
    pruned: Scores
    relaxed: Scores | None = None
    scores: Scores | None = None
    macs: int | None = None
    latency_ms: float | None = None

    @property
    def cost(self) -> Cost:
        """What a budget compares."""
        return Cost(self.parameters, self.macs, self.latency_ms)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Flat tensors and JSON-ready values, for a checkpoint."""
        tensors, fit = self.fit.state()
        described: dict[str, Any] = {
            "name": self.name,
            "parameters": self.parameters,
            "tempering": self.tempering,
            "macs": self.macs,
            "latency_ms": self.latency_ms,
            "fit": fit,
            "stages": [],
        }
        for stage in ("relaxed", "pruned", "scores"):
            scores: Scores | None = getattr(self, stage)
            if scores is not None:
                tensors |= {f"stage/{stage}/{k}": v for k, v in scores.tensors().items()}
                described["stages"].append(stage)
        return tensors, described

    @classmethod
    def restored(
        cls, fit: Fit, tensors: Mapping[str, Tensor], described: Mapping[str, Any]
    ) -> Candidate:
        """Undo :meth:`state`, given a freshly started fit.

        Raises:
            BayespareError: If the state is damaged.
        """
        if not is_plain(described["name"]):
            raise BayespareError(f"the checkpoint names a candidate {described['name']!r}")
        stages = {stage: Scores.of(tensors, f"stage/{stage}/") for stage in described["stages"]}
        own = {k: v for k, v in tensors.items() if not k.startswith("stage/")}
        fit.restore(own, described["fit"])
        return cls(
            name=str(described["name"]),
            fit=fit,
            parameters=int(described["parameters"]),
            tempering=float(described["tempering"]),
            macs=described["macs"],
            latency_ms=described["latency_ms"],
            **stages,
        )


def spread(candidates: Sequence[Candidate], count: int, whole: int) -> list[Candidate]:
    """Pick up to ``count`` structures to finish, evenly spread over sizes on a log scale.

    They reach from the smallest one that has not collapsed on validation (1.4 times the best NLL
    or squared error, give or take two standard errors: cooling brings back what is lost before
    that) to two and a half times its size; but at least to the smallest one that is not measurably
    worse than the best, and not beyond the best. Few validation examples tell little: it is a
    thirteenth of the whole network at least.

    Args:
        candidates: Structures found while exploring.
        count: How many to pick at most.
        whole: Parameters of the whole network.

    Returns:
        From small to large, without repetition; one without a parameter only if there is no other.
    """
    candidates = [c for c in candidates if c.parameters] or candidates
    best = min(candidates, key=lambda c: c.pruned.loss)
    collapse = 1.4 * best.pruned.loss
    sound = [c for c in candidates if c.pruned.loss - 2 * c.pruned.loss_error <= collapse]
    smallest = max(1, min(c.parameters for c in sound))
    level = min(c.parameters for c in sound if not c.pruned.worse_than(best.pruned))
    largest = max(min(max(2.5 * smallest, level), best.parameters), whole / 13)
    sound = [c for c in sound if c.parameters <= largest]
    picked: list[Candidate] = []
    for rank in range(count):
        wanted = math.log(smallest) + math.log(largest / smallest) * rank / max(1, count - 1)
        nearest = min(sound, key=lambda c: abs(math.log(max(1, c.parameters)) - wanted))
        if nearest not in picked:
            picked.append(nearest)
    return picked


class Scored(Protocol):
    """What a choice compares."""

    @property
    def parameters(self) -> int:
        """Size."""

    @property
    def scores(self) -> Scores | None:
        """Validation; None before training ended."""


S = TypeVar("S", bound=Scored)


def choose(candidates: Sequence[S], aim: float = -math.inf) -> S:
    """The smallest network that is as good on validation as a user would want it.

    Its accuracy may lie below the best one's by half a point, or its squared error above by a
    twentieth; and its NLL above the lowest by a quarter, since likelihood sees trouble before
    accuracy does. The best one is a candidate or the whole network, ``aim``; if no candidate comes
    that near to the whole network, the most accurate is chosen. Where half a point is less than
    five examples none of that can be seen, and little is risked: the largest is chosen that is not
    measurably worse than another; of classifiers, none that a smaller one beats in both.

    A paired standard-error rule was tried instead: on large validation sets it pays twice the size
    for a fifth of a point, on small ones it cannot tell networks apart.

    Args:
        candidates: Finished candidates (``scores`` is not None).
        aim: Score of the whole network: accuracy, or minus the squared error.
    """
    finished = [(c, c.scores) for c in candidates if c.scores is not None]
    if len(finished[0][1].score) < FEW_ROWS:
        return _safest(finished)
    best = max(aim, *(scores.mean for _, scores in finished))
    lowest = min(scores.loss for _, scores in finished)
    good = [
        candidate
        for candidate, scores in finished
        if scores.loss <= 1.25 * lowest and near(scores.mean, best)
    ]
    if not good:
        return max(finished, key=lambda pair: pair[1].mean)[0]
    return min(good, key=lambda c: c.parameters)


def near(score: float, best: float) -> bool:
    """Whether a score is as good as the best for a user: half a point, or a twentieth of an error.

    Args:
        score: Accuracy, or minus the squared error.
        best: The same of the best network.
    """
    # Rounding must not refuse a network that is worse by the margin exactly.
    return best - score <= (0.005 if best >= 0 else 0.05 * abs(best)) + 1e-9


def _safest(finished: Sequence[tuple[S, Scores]]) -> S:
    """The largest whose loss is within two paired standard errors of the lowest.

    The lowest itself is no guide on few examples: over seeds it jumps between a thirteenth and a
    hundredth of the network, and the small ones are worse on new data. Not those of classes,
    though, whose accuracy is no lower either: they are as good on new data, and a quarter of the
    size. Squared errors have one standard error: a few large ones make it so wide that two hide a
    network twice as wrong.
    """
    lowest = min((scores for _, scores in finished), key=lambda scores: scores.loss)
    errors = 1.0 if lowest.mean < 0 else 2.0
    level = [pair for pair in finished if not pair[1].worse_than(lowest, errors)]
    best = [one for one in level if not any(_beaten(one, other) for other in level)]
    return max(best, key=lambda pair: pair[0].parameters)[0]


def _beaten(one: tuple[S, Scores], other: tuple[S, Scores]) -> bool:
    """Whether another network is smaller, and of classes neither accuracy nor loss is worse."""
    (large, scores), (small, others) = one, other
    return (
        small.parameters < large.parameters
        and others.mean >= max(0.0, scores.mean)
        and others.loss <= scores.loss + 1e-12  # the same losses in another order
    )


def constant_features(fit: Fit, data: Dataset) -> dict[str, Tensor]:
    """Which features of the data vary at all, in the form :meth:`Fit.remove` takes; often empty."""
    rows = data.x.flatten(1)
    varies = (rows != rows[:1]).any(0)
    keep = {}
    for group in fit.method.plan.groups:
        reads = list(group.reads())
        if group.unit != "feature" or len(reads[0].owner) != len(varies):
            continue
        line = torch.zeros(group.size, dtype=torch.bool)
        line[reads[0].owner[varies.cpu()]] = True
        if not line.all():
            keep[group.name] = line
    return keep
