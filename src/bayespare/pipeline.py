"""The whole job in one call: trace, fit, decide, compact, measure."""

from __future__ import annotations

import copy
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayespare import methods
from bayespare.assess import Dense, behind_warnings, compare, describe, latency_warnings
from bayespare.bayes.likelihood import likelihood_for
from bayespare.data import Batches, Dataset, from_loader, hold_out
from bayespare.errors import BayespareError, NonFiniteLossError
from bayespare.given import (
    check_around,
    check_units,
    check_weights,
    checked_model,
    checked_outputs,
    data_warnings,
    precision_warnings,
)
from bayespare.lookups import check_lookups, with_ids
from bayespare.methods.wiring import judged
from bayespare.options import Options
from bayespare.result import Result
from bayespare.structure import Plan, trace
from bayespare.structure.positions import with_positions
from bayespare.structure.uniform import pretrained_in
from bayespare.training import ranks
from bayespare.training.baseline import train_dense
from bayespare.training.checkpoint import Checkpoint, digest, read_json, write_json
from bayespare.training.criterion import rounds, warning
from bayespare.training.fit import Fit
from bayespare.training.history import History, Row
from bayespare.training.loop import Scores, own_global_stream, pick_device, placed, validate
from bayespare.training.schedule import Settings
from bayespare.training.search import Search
from bayespare.version import __version__

log = logging.getLogger(__name__)

Data = Dataset | Iterable[Any]


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

    Where ``torch.distributed`` is initialised all its processes train together: each calls this
    with the same arguments and gets the result; files are written by rank 0.

    Args:
        model: Any network of supported layers; it is not changed. If it is already trained (on
            validation data at most half the loss, or the errors, of the best constant prediction)
            it is the dense reference and its training is not repeated.
        train: A :class:`~bayespare.data.Dataset`, a pair ``(x, y)`` of tensors or arrays, a PyTorch
            ``Dataset``, or a ``DataLoader`` or other batches of such pairs.
        valid: Validation data; a tenth of ``train`` is held out when it is not given. ``train``
            itself, where nothing is to be chosen: then the posterior's spread is not either.
        test: Test data, read once at the end; without it the figures are those of ``valid``.
        folder: Where checkpoints go; a run that was stopped there is resumed.
        report: Called with a row of history after every epoch.
        config: What else to note in ``config.json``.
        **options: As :class:`Options`.

    Returns:
        The compact network with its posterior, the frontier and the measurements. Of a regression
        on standardised targets (a loader's are standardised here) its ``model`` speaks in their
        units; ``predict`` answers in the user's own.

    Raises:
        BayespareError: On bad input; the message says what and where.
        UnsupportedStructureError: If nothing can be removed from the network.
        NonFiniteLossError: If the loss stops being finite.
    """
    run = _Run(model, Options.of(**options), train, valid, test, folder, report)
    return run.result(config or {})


def _dataset(model: nn.Module, data: Data, like: Dataset | None = None) -> Dataset:
    return with_ids(model, data if isinstance(data, Dataset) else from_loader(data, like=like))


class _Run:
    """What the steps of :func:`sparsify` share."""

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        given: Data,
        valid: Data | None,
        test: Data | None,
        folder: str | Path | None,
        report: Callable[[Row], None] | None,
    ) -> None:
        self.device = pick_device(options.device)
        self.seen = valid is given
        self.model = checked_model(model)
        train = _dataset(self.model, given)
        if valid is None:
            train, held = hold_out(train, seed=options.seed)
        else:
            held = train if self.seen else _dataset(self.model, valid, train)
        check_weights(train, "train")
        check_weights(held, "valid")
        self.train, self.valid = train.to(self.device), held.to(self.device)
        self.test = (
            self.valid if test is None else _dataset(self.model, test, train).to(self.device)
        )
        self.has_test = test is not None
        self.example = train.x[:4].cpu()
        self.outer = report
        self.warnings = precision_warnings(model)
        self.checkpoint = None if folder is None else Checkpoint(Path(folder) / "checkpoint")
        ranks.broadcast(self.model.state_dict().values())
        # Refuses bad settings before any work.
        method = methods.build(options.method, **options.method_settings)
        check_lookups(self.model, self._inputs())
        self.outputs = checked_outputs(self.model, train, self.example)
        check_around(self.model)
        method.foresee(self.model, self.example)
        choosing = None if self.seen else self.valid
        told = self.test if self.has_test else None
        self.warnings += data_warnings(self.model, train, self.example, choosing, told)
        if not isinstance(given, Dataset):
            check_units(self.model, train)
        if options.uniform:
            pretrained_in(self.model)
        groups = train.feature_groups
        traced = with_positions(trace(self.model, self.example, inputs=groups))
        self.plan: Plan = options.narrowed(judged(self.model, traced))
        resuming = self.checkpoint is not None and self.checkpoint.exists()
        ranks.check_same("the checkpoint", "there" if resuming else "none")
        if not resuming:
            weights, one = method.judged_weights(self.model, self.plan), self.example[:1]
            ranks.from_first(lambda: options.budget.check(self.model, self.plan, one, weights))
        self.time = options.time
        self.options = self._timed(options)
        self.schedule = self.options.schedule(len(train))
        self.settings = Settings(
            batch=options.batch_for(len(train)),
            device=self.device,
            precision=options.precision,
            budget=options.budget,
        )
        identity = self._identity()
        ranks.check_same("the options or data", json.dumps(identity, default=str))
        if self.checkpoint is not None:
            self.checkpoint.run = identity
        path = None if folder is None or not ranks.first() else Path(folder) / "history.jsonl"
        self.history = History(path, resume=resuming)

    def _inputs(self) -> dict[str, Tensor]:
        """Inputs of all parts."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: part.x for name, part in parts.items()}

    def _timed(self, options: Options) -> Options:
        """The options with the epochs that ``time`` gives: timed once, noted for a resume."""
        if options.time is None:
            return options
        note = None if self.checkpoint is None else self.checkpoint.folder / "epochs.json"
        if note is not None and note.is_file():
            epochs = read_json(note)
            if not isinstance(epochs, int):
                raise BayespareError(f"{note}: holds no number of epochs; the file is damaged")
            return replace(options, time=None, epochs=epochs)
        options = options.timed(self.model, self.plan, self.train)
        if note is not None and ranks.first():
            note.parent.mkdir(parents=True, exist_ok=True)
            write_json(note, options.epochs)
        return options

    def report(self, row: Row) -> None:
        """Keep a row of history and pass it on."""
        self.history.add(row)
        if self.outer is not None and ranks.first():
            self.outer(row)

    def attach(self, network: nn.Module, generator: torch.Generator) -> Fit:
        """Attach a fresh method to a network."""
        likelihood = copy.deepcopy(self.likelihood)
        return self.options.attach(network, self.plan, len(self.train), likelihood, generator)

    def result(self, config: dict[str, Any]) -> Result:
        """Run all steps."""
        self.likelihood = likelihood_for(self.train.task).to(self.device)
        trained = self._is_trained()
        generator = torch.Generator(self.device).manual_seed(self.options.seed)
        short = self.options.told_of_length(len(self.train))
        if short:
            self.warnings.append(short)
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
        dense = self._dense(trained)
        # As published, and on rows that were trained on, the posterior is what was fitted.
        seen = self.seen and not methods.find(self.options.method).at_mode
        spread = None if self.options.published or seen else self.valid
        predictive = self.options.predictive
        points = [
            describe(self.model, c, c is best, self.train, spread, predictive)
            for c in search.candidates
        ]
        points.sort(key=lambda p: int(p.summary["parameters"]))
        point = next(p for p in points if p.summary["chosen"])
        criterion = rounds(self.history.rows)
        self.warnings += best.fit.warnings
        self.warnings += warning(
            criterion, "the validation data have chosen among the sizes, so that one is sound"
        )
        metrics = {
            "method": self.options.method,
            "seed": self.options.seed,
            "n_train": len(self.train),
            "n_valid": len(self.valid),
            "n_test": len(self.test),
            "measured_on": "test" if self.has_test else "validation",
            "quick": self.options.quick,
            **ranks.from_first(
                lambda: compare(self.model, point, dense, self.test, self.options.samples)
            ),
            "criterion": criterion,
            "time_s": {
                "dense_training": None if dense is None else dense.seconds,
                "training": self._seconds("warm", "explore"),
                "finetuning": self._seconds("cool"),
            },
            "run_warnings": self.warnings,
        }
        limit = self.options.max_latency_ms
        scores = None if dense is None else dense.scores
        metrics["warnings"] = [
            *self.warnings,
            *([] if best.scores is None else behind_warnings(best.scores, scores, self.valid)),
            *metrics["warnings"],
            *latency_warnings(metrics["compact"], limit),
        ]
        return Result(
            point=point,
            plan=self.plan,
            log_odds=dict(point.log_odds),
            metrics=metrics,
            frontier=points,
            history=self.history.rows,
            config={**self._config(), **config},
            task=self.train.task,
            target_scale=self.train.target_scale,
        )

    def _is_trained(self) -> bool:
        """Whether the given network has half the loss of the best constant, on validation data.

        Or half its errors: overfitted networks are right, and too sure where they are wrong. So
        their loss is above the constant's there, or small on training data. Errors alone say
        little: where classes lie far apart a random network may make few.
        """
        scores = self._validate(self.model)
        if self.train.task == "regression":
            return scores.mean > -0.5 * float(self.valid.y.square().mean())
        share = torch.bincount(self.valid.y).double() / len(self.valid)
        entropy = float(-(share * share.clamp_min(1e-12).log()).sum())
        if scores.nll < 0.5 * entropy:
            return True
        if 1 - scores.mean >= 0.5 * float(1 - share.max()):
            return False
        return scores.nll > entropy or self._validate(self.model, self.train).nll < 0.5 * entropy

    def _validate(self, model: nn.Module, data: Dataset | None = None) -> Scores:
        """Scores of a network on validation data, or on other data."""
        network = copy.deepcopy(model).to(self.device)
        data = self.valid if data is None else data
        return validate(network, self.likelihood, Batches(data, 1024, shuffle=False))

    def _dense(self, trained: bool) -> Dense | None:
        """The dense reference: as given, or trained with the same epochs."""
        if trained:
            scores = self._validate(self.model)
            noise = math.sqrt(-scores.mean) if self.train.task == "regression" else None
            return Dense(copy.deepcopy(self.model), noise, None, scores)
        if not self.options.trains_dense:
            return None
        network = placed(copy.deepcopy(self.model), self.device)
        likelihood = likelihood_for(self.train.task).to(self.device)
        started = time.perf_counter()
        try:
            with own_global_stream(self.options.seed, self.device):
                train_dense(
                    network,
                    likelihood,
                    self.train,
                    epochs=self.options.epochs_for(len(self.train)),
                    settings=self.settings,
                    generator=torch.Generator(self.device).manual_seed(self.options.seed),
                    rate=self.options.lr,
                    report=self.report,
                )
            seconds = time.perf_counter() - started
            scores = validate(network, likelihood, Batches(self.valid, 1024, shuffle=False))
            if not math.isfinite(scores.nll):
                raise NonFiniteLossError(f"its validation loss is {scores.nll}")
        except NonFiniteLossError as error:
            # The search is done and good: its result must not be lost.
            self._warn(
                f"the dense network diverged ({error}), so there is nothing to compare with; "
                "a lower lr= may help"
            )
            return None
        return Dense(network.cpu(), likelihood.noise_std, seconds, scores)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        log.warning("%s", text)

    def _seconds(self, *phases: str) -> float:
        rows = (row for row in self.history.rows if str(row["phase"]).startswith(phases))
        return float(sum(row["seconds"] for row in rows))

    def _identity(self) -> dict[str, Any]:
        """What has to be the same when the run is resumed; where it runs does not."""
        config = self._config()
        elsewhere = ("device", "time", "quick", "versions", "classes", "features", "target_scale")
        told = {key: value for key, value in config.items() if key not in elsewhere}
        data = (t for part in (self.train, self.valid) for t in (part.x, part.y))
        return {
            "version": __version__,
            **told,
            "data": digest(data),
            "network weights": digest(self.model.state_dict().values()),
        }

    def _config(self) -> dict[str, Any]:
        options = self.options
        method = methods.build(options.method, **options.method_settings)
        return {
            "method": options.method,
            "settings": method.config.model_dump(),
            "seed": options.seed,
            "unit": options.unit,
            "keep": list(options.keep),
            "epochs": options.epochs_for(len(self.train)),
            "time": self.time,
            "quick": options.quick,
            "finetune": options.finetune,
            "survivors": options.survivors,
            "lr": options.lr,
            "batch": self.settings.batch,
            "tempering": options.tempering,
            "precision": options.precision,
            "max_params": options.max_params,
            "max_macs": options.max_macs,
            "max_latency_ms": options.max_latency_ms,
            "sparsity": options.sparsity,
            "uniform": options.uniform,
            "device": str(self.device),
            "task": self.train.task,
            "classes": list(self.train.classes),
            "features": list(self.train.features),
            "inputs": list(self.train.inputs),
            "tokens": not self.train.x.is_floating_point(),
            "outputs": self.outputs,
            "target_scale": list(self.train.target_scale),
            "versions": {
                "bayespare": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
