"""The artefact of a run: what :func:`bayespare.sparsify` returns and the folder it is saved to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bayespare.bayes.posterior import GaussianPosterior
from bayespare.data.target import Task
from bayespare.measure import Prediction, predict
from bayespare.structure import Plan, Verdict
from bayespare.structure.closure import added_biases
from bayespare.structure.storage import pack
from bayespare.structure.uniform import save_uniform
from bayespare.training.checkpoint import sha256, write_json, write_tensors, write_text

MODEL, POSTERIOR = "model.safetensors", "posterior.safetensors"


@dataclass(frozen=True, eq=False, repr=False)
class Point:
    """A finished network on the frontier.

    Attributes:
        name: Short name.
        model: The compact network.
        posterior: Spread of its parameters.
        verdict: Which units it keeps.
        summary: Parameters, MACs, validation scores, JSON-ready.
        noise_std: Standard deviation of the target's noise, standardised; regression only.
        log_odds: Log posterior odds of every unit at the decision, nats, per group.
    """

    name: str
    model: nn.Module
    posterior: GaussianPosterior
    verdict: Verdict
    summary: Mapping[str, Any]
    noise_std: float | None = None
    log_odds: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<bayespare.Point {self.name}: {self.summary.get('parameters', 0):,} parameters>"


@dataclass(eq=False, repr=False)
class Result:
    """A smaller network, how sure it is, and how it was chosen.

    Attributes:
        point: The chosen network of the frontier.
        model: Its compact network, of stock layers. Of a regression it speaks in standardised units
            if the targets were standardised; :meth:`predict` answers in the user's own.
        posterior: Spread of its parameters.
        verdict: What stays.
        plan: What could be removed.
        log_odds: Log posterior odds of every unit, nats, per group.
        metrics: As in ``metrics.json``.
        frontier: All finished networks, from small to large.
        history: One row per epoch.
        config: What was asked for, and with which versions.
        task: ``classification`` or ``regression``.
        target_scale: Mean and standard deviation of the training targets in the user's units;
            ``(0, 1)`` for classification.
    """

    point: Point
    plan: Plan
    log_odds: dict[str, Tensor]
    metrics: dict[str, Any]
    frontier: list[Point]
    history: list[dict[str, Any]]
    config: dict[str, Any]
    task: Task
    target_scale: tuple[float, float] = (0.0, 1.0)

    @property
    def model(self) -> nn.Module:
        """The chosen compact network."""
        return self.point.model

    @property
    def posterior(self) -> GaussianPosterior:
        """Spread of the chosen network's parameters."""
        return self.point.posterior

    @property
    def verdict(self) -> Verdict:
        """Which units the chosen network keeps."""
        return self.point.verdict

    def predict(self, x: Tensor, *, samples: int = 32) -> Prediction:
        """Predict with the posterior: probabilities averaged over draws, and epistemic spread.

        Args:
            x: Inputs as the network was trained on, shape ``(N, ...)``.
            samples: Posterior draws.
        """
        return predict(
            self.model,
            x,
            task=self.task,
            posterior=self.posterior,
            samples=samples,
            noise_std=self.point.noise_std,
            target_scale=self.target_scale,
        )

    def __str__(self) -> str:
        return summary_line(self.metrics)

    def __repr__(self) -> str:
        return f"<bayespare.Result: {self}>"

    # ------------------------------------------------------------------ save
    def save(self, folder: str | Path) -> Path:
        """Write the run folder; every file is written aside and renamed.

        With ``uniform=True`` the folder ``huggingface`` in it is one for plain ``from_pretrained``.

        Args:
            folder: Created if it is missing. Files of an earlier run in it are replaced.

        Returns:
            The folder.
        """
        folder = Path(folder)
        (folder / "frontier").mkdir(parents=True, exist_ok=True)
        points = []
        for point in self.frontier:
            save_point(folder / "frontier" / point.name, point, self.plan)
            points.append(dict(point.summary))
        write_json(folder / "frontier.json", points)
        write_json(folder / "structure.json", self.plan.to_json())
        write_json(folder / "config.json", self.config)
        write_json(folder / "metrics.json", self.metrics)
        write_json(folder / "plan.json", plan_summary(self.plan, self.verdict, self.log_odds))
        save_point(folder, self.point, self.plan)
        if self.config.get("uniform"):
            save_uniform(self.model, self.verdict, folder / "huggingface")
        lines = "".join(json.dumps(row) + "\n" for row in self.history)
        write_text(folder / "history.jsonl", lines)
        return folder


def summary_line(metrics: Mapping[str, Any]) -> str:
    """Sizes and scores of ``metrics.json``, before and after, in a line, and that it warns."""
    dense, small = metrics.get("dense", {}), metrics["compact"]
    before, after = metrics["parameters_before"], small["parameters"]
    parts = [f"params {before:,} -> {after:,} ({before / max(after, 1):.1f}x)"]
    if small.get("nonzeros", after) < 0.95 * after:
        parts.append(f"non-zero {small['nonzeros']:,}")
    for key, name in (("accuracy", "acc"), ("rmse", "rmse"), ("nll", "nll"), ("ece", "ece")):
        if key in small:
            # Of any size, as the targets are; the others are not.
            digits = ".4g" if key == "rmse" else ".4f"
            start = f"{dense[key]:{digits}} -> " if key in dense else ""
            parts.append(f"{name} {start}{small[key]:{digits}}")
    if told := len(metrics.get("warnings", ())):
        parts.append(f"{told} warning{'s' * (told > 1)} in metrics['warnings']")
    return " | ".join(parts)


def save_point(folder: Path, point: Point, plan: Plan) -> None:
    """Write a network and its posterior; tensors that are mostly zero as index and value.

    Args:
        folder: Created if it is missing.
        point: The network.
        plan: Of the network before anything was removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu() for name, tensor in point.model.state_dict().items()}
    for name, tensors in ((MODEL, weights), (POSTERIOR, point.posterior.std)):
        write_tensors(folder / name, pack(tensors))
    write_json(
        folder / "verdict.json",
        {
            "keep": {
                group.name: point.verdict.of(group).nonzero().squeeze(1).tolist()
                for group in point.verdict.plan.groups
            },
            "added_biases": added_biases(plan, point.verdict.plan),
            "sha256": {name: sha256(folder / name) for name in (MODEL, POSTERIOR)},
            "noise_std": point.noise_std,
            "predictive": point.posterior.predictive,
            # In the plan's order: a run that was resumed writes the same file.
            "log_odds": {
                group.name: _in_question(point.log_odds[group.name])
                for group in plan.groups
                if group.name in point.log_odds
            },
        },
    )


def plan_summary(plan: Plan, verdict: Verdict, log_odds: Mapping[str, Tensor]) -> dict[str, Any]:
    """``plan.json``: kept indices and log-odds (nats; null when it was never in question)."""
    groups = []
    for group in plan.groups:
        odds = log_odds.get(group.name)
        groups.append(
            {
                "name": group.name,
                "unit": group.unit,
                "size": group.size,
                "kept": verdict.of(group).nonzero().squeeze(1).tolist(),
                "log_odds": [] if odds is None else _in_question(odds),
            }
        )
    return {"groups": groups, "left_alone": dict(plan.left_alone)}


def _in_question(odds: Tensor) -> list[float | None]:
    """Log-odds as JSON has them: null for a unit that was never in question."""
    return [value if abs(value) < 1e30 else None for value in odds.tolist()]
