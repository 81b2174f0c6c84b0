"""From finished sizes to what a user gets: the frontier, posteriors, measurements."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from bayespare.assess import Dense, compare, narrowing, scored
from bayespare.bayes.posterior import GaussianPosterior
from bayespare.posthoc.finish import Finished
from bayespare.posthoc.lost import Standing
from bayespare.posthoc.priors import evidence_precision
from bayespare.posthoc.problem import Problem
from bayespare.posthoc.rounds import Row
from bayespare.result import Point, Result
from bayespare.structure import count
from bayespare.training.loop import placed
from bayespare.version import __version__


def as_result(
    problem: Problem,
    finished: Sequence[Finished],
    chosen: Finished,
    given: Standing,
    rows: list[Row],
    findings: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Result:
    """Give every size its posterior, measure the chosen one.

    Args:
        problem: After its aim was set.
        finished: All sizes.
        chosen: One of them.
        given: Where the network given stands on validation data.
        rows: The history.
        findings: What else ``metrics`` is to hold.
        config: What else ``config`` is to hold.
    """
    points = [_point(problem, done, done is chosen) for done in finished]
    points.sort(key=lambda p: (int(p.summary["parameters"]), int(p.summary["nonzeros"])))
    point = next(p for p in points if p.summary["chosen"])
    dense = Dense(problem.model, problem.noise(given.scores), None, given.scores)
    verb = problem.options.verb
    measured = compare(problem.model, point, dense, problem.test, 32)
    metrics = {
        "method": verb,
        "seed": problem.options.seed,
        "n_train": len(problem.train),
        "n_valid": len(problem.valid),
        "n_test": len(problem.test),
        "measured_on": "test" if problem.has_test else "validation",
        "quick": False,
        **measured,
        **findings,
        "time_s": {
            "dense_training": None,
            "training": _seconds(rows, verb),
            "finetuning": _seconds(rows, "finish"),
        },
        "run_warnings": problem.warnings,
    }
    metrics["warnings"] = [*problem.warnings, *measured["warnings"]]
    return Result(
        point=point,
        plan=problem.plan,
        log_odds=dict(point.log_odds),
        metrics=metrics,
        frontier=points,
        history=rows,
        config={**run_config(problem), **config},
        task=problem.train.task,
        target_scale=problem.train.target_scale,
    )


def run_config(problem: Problem) -> dict[str, Any]:
    """What ``config.json`` holds of a run: options, data, versions."""
    train = problem.train
    return {
        **asdict(problem.options),
        "method": problem.options.verb,
        "settings": {},
        "device": str(problem.device),
        "task": train.task,
        "classes": list(train.classes),
        "features": list(train.features),
        "inputs": list(train.inputs),
        "tokens": not train.x.is_floating_point(),
        "outputs": problem.outputs,
        "target_scale": list(train.target_scale),
        "versions": {"bayespare": __version__, "torch": torch.__version__},
    }


def _point(problem: Problem, done: Finished, chosen: bool) -> Point:
    """The finished size with its diagonal Laplace posterior."""
    counts = count(done.model, problem.example[:1])
    posterior = _posterior(problem, done.model)
    noise = problem.noise(done.scores)
    factor = narrowing(posterior, done.model, problem.valid, noise)
    for name, parameter in done.model.named_parameters():
        # Frozen by the run, not by the user.
        parameter.requires_grad_(parameter.requires_grad or name in problem.unfollowed)
    summary = {
        "name": done.size.name,
        "parameters": counts.parameters,
        "nonzeros": counts.nonzeros,
        "macs": counts.macs,
        "bytes": counts.bytes,
        **{f"valid_{key}": value for key, value in scored(done.scores, problem.train).items()},
        "valid_tempered_nll": float(done.standing.tempered.mean()),
        "tempering": 1.0,
        "spread": factor,
        "compact_equals_masked": done.gap,
        "chosen": chosen,
        "separation": {"undecided": {}},
        "stages": {
            "pruned": scored(done.before, problem.train),
            "finetuned": scored(done.scores, problem.train),
        },
    }
    return Point(
        name=done.size.name,
        model=done.model,
        posterior=posterior.scaled(factor),
        verdict=done.verdict,
        summary=summary,
        noise_std=noise,
        log_odds=done.size.log_odds,
    )


def _posterior(problem: Problem, model: nn.Module) -> GaussianPosterior:
    """Diagonal Laplace around the weights that are not zero, prior by evidence per layer."""
    network = placed(copy.deepcopy(model), problem.device)
    bends = problem.bends(network)
    std: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        if name not in bends:
            continue
        bend = bends[name]
        there = parameter.detach() != 0
        precision = evidence_precision(parameter, bend, there)
        if precision is None:
            continue
        spread = (bend.double().clamp_min(0) + precision).rsqrt() * there
        std[name] = spread.to(parameter.dtype).cpu()
    return GaussianPosterior(std, predictive=problem.options.predictive).checked(model)


def _seconds(rows: Sequence[Row], phase: str) -> float:
    return float(sum(row["seconds"] for row in rows if row["phase"] == phase))
