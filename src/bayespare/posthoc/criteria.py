"""What a pruning ranks by: scores of weights and biases, and of units as their sums.

Definitions in :mod:`bayespare.bayes.scores`. A unit's score is the sum over the weights and biases
that compute it (filters, rows; arXiv 2402.15978 section 3), those that read it where nothing does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor, nn

from bayespare.bayes import scores
from bayespare.bayes.curvature import Curvature, curvature
from bayespare.bayes.likelihood import Likelihood
from bayespare.bayes.marginal import Laplace, Prior, PriorKind, learn
from bayespare.posthoc.settings import Criterion
from bayespare.structure import Group, Plan

LEFT_ALONE = ("feature", "position")
"""Groups that a ranking of units leaves alone: inputs, and positions of a flattened map."""


def weight_scores(
    criterion: Criterion,
    model: nn.Module,
    likelihood: Likelihood,
    batches: Sequence[tuple[Tensor, ...]],
    examples: int,
    generator: Generator,
    *,
    prior: PriorKind = "layer",
) -> scores.Scores:
    """Scores of every trainable parameter by name; the lowest go first.

    Args:
        criterion: Its name.
        model: As it is; what was removed is zero.
        likelihood: Of the task.
        batches: Training examples: inputs, targets, and their weights if they have any.
        examples: N of all training data.
        generator: Of ``random``, and of the labels sampled for the curvature of ``opd``.
        prior: Who shares a precision, of ``opd``.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    match criterion:
        case "opd":
            laplace = _laplace(model, likelihood, batches, examples, generator)
            precisions = Prior(parameters, prior)
            learn(precisions, laplace, steps=30)
            return scores.opd(laplace, precisions)
        case "magnitude":
            return scores.magnitude(parameters)
        case "l2":
            return scores.squares(parameters)
        case "snip":
            return scores.snip(model, likelihood, batches)
        case "grasp":
            return scores.grasp(model, likelihood, batches)
        case "taylor":
            return scores.taylor(model, likelihood, batches)
        case "random":
            return scores.random(parameters, generator)


def _laplace(
    model: nn.Module,
    likelihood: Likelihood,
    batches: Sequence[tuple[Tensor, ...]],
    examples: int,
    generator: Generator,
) -> Laplace:
    """At the model as it is; weights that are gone have no part in what others share."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = curvature(model, likelihood, batches, generator=generator)
    scale = examples / found.examples
    bends = {n: found.diagonal[n] * scale * (p != 0) for n, p in parameters.items()}
    return Laplace(parameters, Curvature(bends, {}, examples))


def unit_scores(plan: Plan, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums of weight scores over each unit of the groups that a ranking judges, float64."""
    return {
        group.name: _sums(group, given) for group in plan.groups if group.unit not in LEFT_ALONE
    }


def _sums(group: Group, given: Mapping[str, Tensor]) -> Tensor:
    written = [slot for slot in group.writes() if slot.tensor in given]
    total = torch.zeros(group.size, dtype=torch.float64)
    for slot in written or [slot for slot in group.reads() if slot.tensor in given]:
        total += scores.group_sums(given[slot.tensor], slot.dim, slot.owner, group.size)
    return total
