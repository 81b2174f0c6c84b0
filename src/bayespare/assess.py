"""What is measured of the networks a run ends with; the only room that reads test data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bayespare.bayes.posterior import GaussianPosterior, Predictive
from bayespare.data import Dataset
from bayespare.errors import BayespareError
from bayespare.measure import (
    ClassPrediction,
    Prediction,
    evaluate,
    latency,
    load_average,
    peak_memory,
    predict,
    reliability,
)
from bayespare.result import Point
from bayespare.structure import count
from bayespare.training.candidates import Candidate, near
from bayespare.training.finish import finish
from bayespare.training.loop import Scores


@dataclass(frozen=True, eq=False)
class Dense:
    """The network the compact one is compared with.

    Attributes:
        model: On the CPU.
        noise_std: Of its targets, standardised; regression only.
        seconds: Its training took; None when it was given trained.
        scores: On validation data.
    """

    model: nn.Module
    noise_std: float | None
    seconds: float | None
    scores: Scores


def describe(
    template: nn.Module,
    candidate: Candidate,
    chosen: bool,
    data: Dataset,
    valid: Dataset | None,
    predictive: Predictive = "draws",
) -> Point:
    """Finish a candidate and describe it with validation scores.

    Args:
        template: The network as the user gave it.
        candidate: Trained to its end.
        chosen: Whether it is the one the run chose.
        data: Training data: its shapes and target scale.
        valid: Validation data that the spread of the posterior is chosen on; None leaves it as it
            was fitted.
        predictive: How a Laplace posterior predicts.
    """
    if candidate.scores is None:
        raise BayespareError(f"candidate {candidate.name} was not trained to its end")
    example = data.x[:4].cpu()
    done = finish(template, candidate.fit.method, example)
    counts = count(done.model, example[:1])
    posterior, noise_std = done.posterior, candidate.fit.likelihood.noise_std
    if candidate.fit.method.at_mode:
        posterior = replace(posterior, predictive=predictive)
    factor = 1.0
    if valid is not None and posterior.std:
        factor = narrowing(posterior, done.model, valid, noise_std)
        posterior = posterior.scaled(factor)
    summary = {
        "name": candidate.name,
        "parameters": counts.parameters,
        "nonzeros": counts.nonzeros,
        "macs": counts.macs,
        "bytes": counts.bytes,
        **{f"valid_{key}": value for key, value in scored(candidate.scores, data).items()},
        "tempering": candidate.tempering,
        "spread": factor,
        "compact_equals_masked": done.masked_difference,
        "chosen": chosen,
        "separation": separation(candidate.fit.odds if candidate.fit.method.separates else {}),
        "stages": stages(candidate, data),
        "diagnostics": candidate.fit.diagnostics,
    }
    return Point(
        name=candidate.name,
        model=done.model,
        posterior=posterior,
        verdict=done.verdict,
        summary=summary,
        noise_std=noise_std,
        log_odds=dict(candidate.fit.odds),
    )


WORSE = 0.005
"""Nats that averaging over a posterior may lose against its mean before it is narrowed further."""

LEAST = 1e-12
"""Factor of the spread at which it is gone."""


def narrowing(
    posterior: GaussianPosterior, model: nn.Module, valid: Dataset, noise_std: float | None
) -> float:
    """Factor of a posterior's standard deviations at which it predicts validation data best.

    Independent weights vary where correlated ones would not: draws from a diagonal Laplace
    posterior as it is predict far worse than its mean, and those of a mean-field one that was
    fitted towards a teacher's soft labels are less sure than they are right.

    Args:
        posterior: Of the model.
        model: On the CPU.
        valid: Chooses among factors from 1 to 0.03; where all of these predict worse than the mean
            does, among less. (A loss of zero has no curvature, and nothing bounds the spread.)
        noise_std: As in :class:`Point`.

    Returns:
        Between 0 and 1.
    """
    some = valid.subset(torch.arange(min(len(valid), 2000)))

    def loss(candidate: GaussianPosterior | None) -> float:
        said = predict(
            model,
            some.x.cpu(),
            task=some.task,
            posterior=candidate,
            samples=8,
            noise_std=noise_std,
        )
        value = evaluate(said, some.y.cpu())["nll"]
        assert isinstance(value, float)
        return value

    losses = {
        factor: loss(posterior.scaled(factor)) for factor in (1.0, 0.5, 0.25, 0.12, 0.06, 0.03)
    }
    enough, factor = loss(None) + WORSE, 0.03
    while not min(losses.values()) <= enough and factor > LEAST:
        factor /= 4
        losses[factor] = loss(posterior.scaled(factor))
    return min(losses, key=lambda tried: losses[tried])


def compare(
    whole: nn.Module, point: Point, dense: Dense | None, test: Dataset, samples: int
) -> dict[str, Any]:
    """Measure the chosen network, and the dense one beside it, on test data.

    Args:
        whole: The network before anything was removed.
        point: The chosen network.
        dense: The reference, or None.
        test: Read here and nowhere else.
        samples: Posterior draws of the averaged prediction.

    Returns:
        The part of ``metrics.json`` that is measured.
    """
    example = test.x[:1].cpu()
    plain = _predict(point.model, test, point.noise_std)
    averaged = _predict(point.model, test, point.noise_std, point, samples)
    models = {"compact": point.model}
    predictions = {"compact": plain}
    if dense is not None:
        models["dense"] = dense.model
        predictions["dense"] = _predict(dense.model, test, dense.noise_std)
    metrics: dict[str, Any] = {
        "parameters_before": count(whole, example).parameters,
        "averaged": evaluate(averaged, _truth(test)),
        "units": {name: list(kept) for name, kept in point.verdict.kept.items()},
        "compact_equals_masked": point.summary["compact_equals_masked"],
        "separation": point.summary["separation"],
        "tempering": point.summary["tempering"],
        "spread": point.summary["spread"],
        "diagnostics": point.summary.get("diagnostics", {}),
        "load_average": load_average(),
        "reliability": {},
    }
    times = latency(models, example)
    for name, model in models.items():
        metrics[name] = {
            **evaluate(predictions[name], _truth(test)),
            **asdict(count(model, example)),
            "latency_ms": times[name],
            "peak_memory_bytes": peak_memory(model, example),
        }
        prediction = predictions[name]
        if isinstance(prediction, ClassPrediction):
            rows = reliability(prediction.probs, test.y.cpu())
            metrics["reliability"][name] = [list(row) for row in rows]
    before = {} if dense is None else {"dense": scored(dense.scores, test)}
    metrics["stages"] = {**before, **point.summary["stages"]}
    metrics["warnings"] = undecided_warnings(metrics["separation"])
    return metrics


def stages(candidate: Candidate, data: Dataset) -> dict[str, Any]:
    """Validation scores before the decision, after it, and at the end."""
    found = {
        "relaxed": candidate.relaxed,
        "pruned": candidate.pruned,
        "finetuned": candidate.scores,
    }
    return {name: scored(scores, data) for name, scores in found.items() if scores is not None}


def separation(odds: Mapping[str, Tensor]) -> dict[str, Any]:
    """Share of units, by group, with an inclusion probability in (0.1, 0.9) when last in question.

    Args:
        odds: Log-odds per unit, nats, by group.
    """
    shares = {}
    for name, values in odds.items():
        probability = values.double().sigmoid()
        undecided = (probability > 0.1) & (probability < 0.9)
        shares[name] = float(undecided.double().mean())
    return {"undecided": shares}


def undecided_warnings(shares: Mapping[str, Any]) -> list[str]:
    """A warning for each group in which many units are undecided."""
    return [
        f"{name}: {share:.0%} of the units have an inclusion probability between 0.1 and 0.9; "
        "more epochs would separate them"
        for name, share in shares.get("undecided", {}).items()
        if share > 0.2
    ]


def latency_warnings(compact: Mapping[str, Any], limit: float | None) -> list[str]:
    """A warning if the network's time, measured again, is above the budget it was chosen by.

    Args:
        compact: Its part of ``metrics.json``.
        limit: Milliseconds for one example; None: no budget.
    """
    found = float(compact["latency_ms"]["1"])
    if limit is None or found <= limit:
        return []
    return [
        f"max_latency_ms={limit}: measured again at the end, one example takes {found:.3g} ms; "
        "times vary with what else the machine does"
    ]


def behind_warnings(chosen: Scores, dense: Scores | None, data: Dataset) -> list[str]:
    """A warning if the chosen network is worse than the dense one by more than a user would want.

    Args:
        chosen: Its validation.
        dense: That of the dense network; None: there is none.
        data: That they are of.
    """
    if dense is None or near(chosen.mean, dense.mean) or not chosen.scores_below(dense):
        return []
    name, was = next(iter(scored(dense, data).items()))
    now = scored(chosen, data)[name]
    return [
        f"on validation data the {name} is {now:.4g}, the dense network's {was:.4g}; more epochs, "
        "or a larger network of the frontier, may come nearer"
    ]


def scored(scores: Scores, data: Dataset) -> dict[str, float]:
    """Scores under the names a user knows, in the target's own units."""
    if data.task == "classification":
        return {"accuracy": scores.mean, "nll": scores.nll}
    scale = data.target_scale[1]
    return {"rmse": math.sqrt(-scores.mean) * scale, "nll": scores.nll + math.log(scale)}


def _predict(
    model: nn.Module,
    test: Dataset,
    noise_std: float | None,
    point: Point | None = None,
    samples: int = 1,
) -> Prediction:
    """Predict the test data, averaged over the posterior when a point is given."""
    return predict(
        model,
        test.x.cpu(),
        task=test.task,
        posterior=None if point is None else point.posterior,
        samples=samples,
        noise_std=noise_std,
        target_scale=test.target_scale,
    )


def _truth(data: Dataset) -> Tensor:
    mean, std = data.target_scale
    y = data.y.cpu()
    return y if data.task == "classification" else y.to(torch.float64) * std + mean
