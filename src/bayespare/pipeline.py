"""The whole job in one call: trace, fit, decide, compact, measure."""

from __future__ import annotations

import copy
import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayespare import methods
from bayespare.bayes.likelihood import likelihood_for
from bayespare.data import Batches, Dataset, from_loader, hold_out
from bayespare.errors import BayespareError
from bayespare.measure import (
    ClassPrediction,
    evaluate,
    latency,
    load_average,
    peak_memory,
    predict,
    reliability,
)
from bayespare.result import Point, Result
from bayespare.structure import Plan, count, trace
from bayespare.structure.positions import with_positions
from bayespare.training.baseline import train_dense
from bayespare.training.candidates import Candidate
from bayespare.training.checkpoint import Checkpoint
from bayespare.training.finish import finish
from bayespare.training.fit import Fit
from bayespare.training.history import History
from bayespare.training.loop import Precision, pick_device, placed, validate
from bayespare.training.schedule import Schedule, Settings
from bayespare.training.search import Row, Search

Data = Dataset | Iterable[Any]


@dataclass(frozen=True)
class Options:
    """Everything a run can be told; the defaults are what we recommend.

    Attributes:
        method: Name of a registered method.
        settings: Of the method, as keyword arguments.
        epochs: Epochs a dense network would get; None: from the size of the data.
        batch: Examples per step; None: from the size of the data.
        tempering: ``auto``, or a fixed weight of the KL.
        seed: Of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``float32`` or ``bf16``.
        max_params: Budget of physical parameters; None: the posterior alone decides.
        baseline: Train a dense network for comparison, when the given one is not trained.
        samples: Posterior draws for predictions.
    """

    method: str = "ss-ghs"
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    batch: int | None = None
    tempering: float | Literal["auto"] = "auto"
    seed: int = 0
    device: str = "auto"
    precision: Precision = "float32"
    max_params: int | None = None
    baseline: bool = True
    samples: int = 32

    def batch_for(self, examples: int) -> int:
        """The batch size: given, or at least 40 steps an epoch, between 16 and 256."""
        if self.batch is not None:
            if not 1 <= self.batch <= examples:
                raise BayespareError(
                    f"batch={self.batch}: must be between 1 and the {examples} training rows"
                )
            return self.batch
        size = 1 << int(math.log2(max(16, examples / 40)))
        return min(256, size, examples)

    def epochs_for(self, examples: int) -> int:
        """The epochs: given, or 60 and as many more as small data need for 8,000 steps."""
        if self.epochs is not None:
            if self.epochs < 1:
                raise BayespareError(f"epochs={self.epochs}: must be 1 or more")
            return self.epochs
        return max(60, math.ceil(8000 / max(1, examples // self.batch_for(examples))))

    def schedule(self, examples: int) -> Schedule:
        """How the epochs are spent."""
        epochs = self.epochs_for(examples)
        if self.settings.get("settings") == "faithful":
            tempering = 1.0 if self.tempering == "auto" else self.tempering
            return Schedule.published(epochs, tempering)
        return Schedule.of(epochs, self.tempering)


def sparsify(
    model: nn.Module,
    train: Data,
    *,
    valid: Data | None = None,
    test: Data | None = None,
    folder: str | Path | None = None,
    report: Callable[[Row], None] | None = None,
    config: dict[str, Any] | None = None,
    **options: Any,
) -> Result:
    """Make a network smaller by what its posterior says, and keep the posterior.

    Args:
        model: Any network of supported layers; it is not changed. If it is already trained
            (better on validation data than knowing the classes' frequencies) it is the dense
            reference and its training is not repeated.
        train: A :class:`~bayespare.data.Dataset`, or batches of (x, y).
        valid: Validation data; a tenth of ``train`` is held out when it is not given.
        test: Test data, read once at the end; without it the figures are those of ``valid``.
        folder: Where checkpoints go; a run that was stopped there is resumed.
        report: Called with a row of history after every epoch.
        config: What else to note in ``config.json``.
        **options: As :class:`Options`.

    Returns:
        The compact network with its posterior, the frontier and the measurements.

    Raises:
        BayespareError: On bad input; the message says what and where.
        UnsupportedStructureError: If nothing can be removed from the network.
        NonFiniteLossError: If the loss stops being finite.
    """
    unknown = set(options) - set(Options.__dataclass_fields__)
    if unknown:
        known = ", ".join(Options.__dataclass_fields__)
        raise BayespareError(f"unknown option {sorted(unknown)[0]!r} (known: {known})")
    chosen = Options(**options)
    run = _Run(model, chosen, _dataset(train), valid, test, folder, report)
    return run.result(config or {})


def _dataset(data: Data, like: Dataset | None = None) -> Dataset:
    return data if isinstance(data, Dataset) else from_loader(data, like=like)


class _Run:
    """What the steps of :func:`sparsify` share."""

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        train: Dataset,
        valid: Data | None,
        test: Data | None,
        folder: str | Path | None,
        report: Callable[[Row], None] | None,
    ) -> None:
        self.options = options
        self.device = pick_device(options.device)
        if valid is None:
            train, held = hold_out(train, seed=options.seed)
        else:
            held = _dataset(valid, train)
        self.train, self.valid = train.to(self.device), held.to(self.device)
        self.test = self.valid if test is None else _dataset(test, train).to(self.device)
        self.has_test = test is not None
        self.example = train.x[:4].cpu()
        self.warnings: list[str] = []
        self.outer = report
        self.checkpoint = None if folder is None else Checkpoint(Path(folder) / "checkpoint")
        self.model = copy.deepcopy(model).cpu()
        self.schedule = options.schedule(len(train))
        self.settings = Settings(
            batch=options.batch_for(len(train)),
            device=self.device,
            precision=options.precision,
            max_parameters=options.max_params,
        )
        groups = train.feature_groups
        self.plan: Plan = with_positions(trace(self.model, self.example, inputs=groups))
        resuming = self.checkpoint is not None and self.checkpoint.exists()
        path = None if folder is None else Path(folder) / "history.jsonl"
        self.history = History(path, resume=resuming)

    def report(self, row: Row) -> None:
        """Keep a row of history and pass it on."""
        self.history.add(row)
        if self.outer is not None:
            self.outer(row)

    def attach(self, network: nn.Module, generator: torch.Generator) -> Fit:
        """Attach a fresh method to a network."""
        method = methods.build(self.options.method, **self.options.settings)
        method.attach(network, self.plan, examples=len(self.train), generator=generator)
        method.to(self.device)
        likelihood = copy.deepcopy(self.likelihood)
        return Fit.start(network, method, likelihood, generator, self.settings.batch)

    def result(self, config: dict[str, Any]) -> Result:
        """Run all steps."""
        self.likelihood = likelihood_for(self.train.task).to(self.device)
        trained = self._is_trained()
        generator = torch.Generator(self.device).manual_seed(self.options.seed)
        search = Search(
            self.model,
            self.attach,
            self.train,
            self.valid,
            self.likelihood,
            self.schedule,
            self.settings,
            generator,
            self.report,
            self.checkpoint,
            trained,
        )
        best = search.run()
        dense, dense_noise, dense_seconds = self._dense(trained)
        points = {c.name: self._point(c, c is best) for c in search.candidates}
        metrics = self._metrics(best, points[best.name], dense, dense_noise)
        metrics["time_s"] = {
            "dense_training": dense_seconds,
            "training": self._seconds("warm", "explore"),
            "finetuning": self._seconds("cool"),
        }
        odds = dict(best.fit.odds)
        return Result(
            point=points[best.name],
            plan=self.plan,
            log_odds=odds,
            metrics=metrics,
            frontier=sorted(points.values(), key=lambda p: int(p.summary["parameters"])),
            history=self.history.rows,
            config={**self._config(), **config},
            task=self.train.task,
            target_scale=self.train.target_scale,
        )

    def _is_trained(self) -> bool:
        """Whether the given network beats the best constant prediction on validation data."""
        network = copy.deepcopy(self.model).to(self.device)
        scores = validate(network, self.likelihood, Batches(self.valid, 1024, shuffle=False))
        if self.train.task == "regression":
            return scores.mean > -0.5 * float(self.valid.y.square().mean())
        share = torch.bincount(self.valid.y).double() / len(self.valid)
        entropy = float(-(share * share.clamp_min(1e-12).log()).sum())
        return scores.nll < 0.5 * entropy

    def _dense(self, trained: bool) -> tuple[nn.Module | None, float | None, float | None]:
        """The dense reference: as given, or trained with the same epochs; with its seconds."""
        if trained:
            return copy.deepcopy(self.model), self._residual(), None
        if not self.options.baseline:
            return None, None, None
        network = placed(copy.deepcopy(self.model), self.device)
        likelihood = likelihood_for(self.train.task).to(self.device)
        started = time.perf_counter()
        train_dense(
            network,
            likelihood,
            self.train,
            epochs=self.options.epochs_for(len(self.train)),
            settings=self.settings,
            generator=torch.Generator(self.device).manual_seed(self.options.seed),
            report=self.report,
        )
        return network.cpu(), likelihood.noise_std, time.perf_counter() - started

    def _residual(self) -> float | None:
        """Standard deviation of the given network's validation errors, standardised."""
        if self.train.task != "regression":
            return None
        batches = Batches(self.valid, 1024, shuffle=False)
        network = copy.deepcopy(self.model).to(self.device)
        return math.sqrt(-validate(network, self.likelihood, batches).mean)

    def _point(self, candidate: Candidate, chosen: bool) -> Point:
        """Finish a candidate and describe it."""
        done = finish(self.model, candidate.fit, self.example)
        counts = count(done.model, self.example[:1])
        scores = candidate.scores
        if scores is None:  # pragma: no cover - the search finishes all candidates
            raise BayespareError(f"candidate {candidate.name} was not finished")
        score = {"valid_accuracy": scores.mean}
        if self.train.task == "regression":
            score = {"valid_rmse": math.sqrt(-scores.mean) * self.train.target_scale[1]}
        summary = {
            "name": candidate.name,
            "parameters": counts.parameters,
            "macs": counts.macs,
            "bytes": counts.bytes,
            "valid_nll": scores.nll,
            **score,
            "tempering": candidate.tempering,
            "compact_equals_masked": done.masked_difference,
            "chosen": chosen,
            "separation": _separation(candidate.fit.odds),
            "stages": self._stages(candidate),
        }
        return Point(
            name=candidate.name,
            model=done.model,
            posterior=done.posterior,
            verdict=done.verdict,
            summary=summary,
            noise_std=candidate.fit.likelihood.noise_std,
            log_odds=dict(candidate.fit.odds),
        )

    def _metrics(
        self, best: Candidate, point: Point, dense: nn.Module | None, noise: float | None
    ) -> dict[str, Any]:
        """``metrics.json``; the only place where test data are read."""
        before = count(self.model, self.example[:1])
        averaged = self._predict(point.model, point.noise_std, point)
        plain = self._predict(point.model, point.noise_std)
        compact = {**evaluate(plain, self._truth()), **self._costs(point.model)}
        models = {"compact": point.model}
        metrics: dict[str, Any] = {
            "method": self.options.method,
            "seed": self.options.seed,
            "n_train": len(self.train),
            "n_valid": len(self.valid),
            "n_test": len(self.test),
            "measured_on": "test" if self.has_test else "validation",
            "parameters_before": before.parameters,
            "tempering": best.tempering,
            "compact": compact,
            "averaged": evaluate(averaged, self._truth()),
            "units": {name: list(kept) for name, kept in point.verdict.kept.items()},
            "compact_equals_masked": point.summary["compact_equals_masked"],
            "separation": _separation(best.fit.odds),
            "stages": self._stages(best),
            "load_average": load_average(),
        }
        drawn = {"compact": plain}
        if dense is not None:
            drawn["dense"] = self._predict(dense, noise)
            metrics["dense"] = {**evaluate(drawn["dense"], self._truth()), **self._costs(dense)}
            models["dense"] = dense
        timings = latency(models, self.example[:1])
        for name in models:
            metrics[name]["latency_ms"] = timings[name]
            metrics[name]["peak_memory_bytes"] = peak_memory(models[name], self.example[:1])
        metrics["reliability"] = {
            name: [list(row) for row in reliability(value.probs, self.test.y.cpu())]
            for name, value in drawn.items()
            if isinstance(value, ClassPrediction)
        }
        metrics["warnings"] = [*self.warnings, *undecided_warnings(metrics["separation"])]
        return metrics

    def _predict(self, model: nn.Module, noise: float | None, point: Point | None = None) -> Any:
        return predict(
            model,
            self.test.x.cpu(),
            task=self.train.task,
            posterior=None if point is None else point.posterior,
            samples=self.options.samples,
            noise_std=noise,
            target_scale=self.train.target_scale,
        )

    def _truth(self) -> Tensor:
        mean, std = self.train.target_scale
        y = self.test.y.cpu()
        return y if self.train.task == "classification" else y.double() * std + mean

    def _costs(self, model: nn.Module) -> dict[str, Any]:
        counts = count(model, self.example[:1])
        return {
            "parameters": counts.parameters,
            "nonzeros": counts.nonzeros,
            "bytes": counts.bytes,
            "macs": counts.macs,
        }

    def _stages(self, best: Candidate) -> dict[str, Any]:
        """Validation scores before the decision, after it, and after cooling."""
        stages = {"relaxed": best.relaxed, "pruned": best.pruned, "finetuned": best.scores}
        result = {}
        for name, scores in stages.items():
            if scores is None:
                continue
            key = "accuracy" if self.train.task == "classification" else "rmse"
            value = scores.mean
            if key == "rmse":
                value = math.sqrt(-value) * self.train.target_scale[1]
            result[name] = {key: value, "nll": scores.nll}
        return result

    def _seconds(self, *phases: str) -> float:
        rows = (row for row in self.history.rows if str(row["phase"]).startswith(phases))
        return float(sum(row["seconds"] for row in rows))

    def _config(self) -> dict[str, Any]:
        from bayespare import __version__

        options = self.options
        method = methods.build(options.method, **options.settings)
        return {
            "method": options.method,
            "settings": method.config.model_dump(),
            "seed": options.seed,
            "epochs": options.epochs_for(len(self.train)),
            "batch": self.settings.batch,
            "tempering": options.tempering,
            "precision": options.precision,
            "max_params": options.max_params,
            "device": str(self.device),
            "task": self.train.task,
            "classes": list(self.train.classes),
            "features": list(self.train.features),
            "inputs": list(self.train.inputs),
            "outputs": self.train.outputs,
            "target_scale": list(self.train.target_scale),
            "versions": {
                "bayespare": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }


def undecided_warnings(separation: Mapping[str, Any]) -> list[str]:
    """A warning for each group in which many units are undecided."""
    return [
        f"{name}: {share:.0%} of the units have an inclusion probability between 0.1 and 0.9; "
        "more epochs would separate them"
        for name, share in separation.get("undecided", {}).items()
        if share > 0.2
    ]


def _separation(odds: dict[str, Tensor]) -> dict[str, Any]:
    """Share of units, by group, whose inclusion probability lies in (0.1, 0.9) at the decision."""
    shares = {}
    for name, values in odds.items():
        probability = values.double().sigmoid()
        undecided = (probability > 0.1) & (probability < 0.9)
        shares[name] = float(undecided.double().mean())
    return {"undecided": shares}
