"""Structures on the frontier: which to train to the end, and which to choose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayespare.data import Dataset
from bayespare.training.fit import Fit
from bayespare.training.loop import Scores


@dataclass(eq=False)
class Candidate:
    """A structure on the frontier, with the network that was trained to its end.

    Attributes:
        name: Short name, by rank of size.
        fit: The network and its posterior.
        parameters: Physical parameters of the decided network.
        tempering: At which the structure was decided.
        scores: Validation after cooling; None before.
        relaxed: Validation with gates at their inclusion probabilities, before the decision.
        pruned: Validation just after the decision.
    """

    name: str
    fit: Fit
    parameters: int
    tempering: float
    relaxed: Scores
    pruned: Scores
    scores: Scores | None = None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Flat tensors and JSON-ready values, for a checkpoint."""
        tensors, fit = self.fit.state()
        described: dict[str, Any] = {
            "name": self.name,
            "parameters": self.parameters,
            "tempering": self.tempering,
            "fit": fit,
        }
        for stage in ("relaxed", "pruned", "scores"):
            scores: Scores | None = getattr(self, stage)
            if scores is not None:
                tensors[f"stage/{stage}"] = scores.score.cpu()
                described[stage] = scores.nll
        return tensors, described

    @classmethod
    def restored(
        cls, fit: Fit, tensors: Mapping[str, Tensor], described: Mapping[str, Any]
    ) -> Candidate:
        """Undo :meth:`state`, given a freshly started fit."""
        stages = {
            stage: Scores(tensors[f"stage/{stage}"], float(described[stage]))
            for stage in ("relaxed", "pruned", "scores")
            if stage in described
        }
        own = {k: v for k, v in tensors.items() if not k.startswith("stage/")}
        fit.restore(own, described["fit"])
        return cls(
            name=str(described["name"]),
            fit=fit,
            parameters=int(described["parameters"]),
            tempering=float(described["tempering"]),
            **stages,
        )


def spread(candidates: Sequence[Candidate], count: int, span: float = 4.0) -> list[Candidate]:
    """Pick ``count`` structures whose sizes lie evenly, on a log scale, above the smallest.

    Args:
        candidates: Structures found while exploring.
        count: How many to pick at most.
        span: Ratio of the largest to the smallest size looked for.

    Returns:
        From small to large, without repetition.
    """
    smallest = min(c.parameters for c in candidates)
    steps = max(1, count - 1)
    picked: list[Candidate] = []
    for rank in range(count):
        wanted = math.log(smallest) + math.log(span) * rank / steps
        nearest = min(candidates, key=lambda c: abs(math.log(c.parameters) - wanted))
        if nearest not in picked:
            picked.append(nearest)
    return picked


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The smallest network that is not measurably worse on validation than the best one.

    Worse is judged by the paired one-standard-error rule: the mean over examples of the best
    network's score minus this one's exceeds the standard error of that mean. Scores are paired
    because all candidates see the same examples, so what is hard for all of them cancels.

    Args:
        candidates: Finished candidates (``scores`` is not None).
    """
    finished = [(c, c.scores) for c in candidates if c.scores is not None]
    _, best = max(finished, key=lambda pair: pair[1].mean)
    good = []
    for candidate, scores in finished:
        difference = best.score - scores.score
        error = float(difference.std()) / math.sqrt(len(difference))
        if float(difference.mean()) <= error:
            good.append(candidate)
    return min(good, key=lambda c: c.parameters)


def constant_features(fit: Fit, data: Dataset) -> dict[str, Tensor]:
    """Which features of the data vary at all, in the form :meth:`Fit.remove` takes; often empty."""
    varies = data.x.flatten(1).std(0) > 0
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
