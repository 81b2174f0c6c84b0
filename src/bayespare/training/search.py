"""From one training run to a frontier of finished networks, and the choice among them.

The tempering of the KL decides how small the network gets, so it is not left to the user. It rises
while the network trains (``explore``), so one pass leaves the structure that the posterior decides
for at every tempering. A few of these, spread over the sizes, are then trained to the end without
gates (``cool``) and compared on validation data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from bayespare.bayes.likelihood import Categorical, Likelihood
from bayespare.data import Batches, Dataset
from bayespare.errors import BayespareError, NonFiniteLossError
from bayespare.training import ranks
from bayespare.training.baseline import DenseTraining
from bayespare.training.budget import Cost
from bayespare.training.candidates import Candidate, choose, constant_features, spread
from bayespare.training.checkpoint import Checkpoint
from bayespare.training.criterion import Checked
from bayespare.training.explore import explore_epoch
from bayespare.training.fit import Fit, Sample
from bayespare.training.history import Row
from bayespare.training.inherit import inherited
from bayespare.training.loop import (
    EpochSummary,
    Scores,
    falling,
    own_global_stream,
    placed,
    run_epoch,
    validate,
)
from bayespare.training.norms import measure_norms
from bayespare.training.schedule import Schedule, Settings
from bayespare.training.teacher import Teacher
from bayespare.training.trim import trim

CHECKED = 1024
"""Training examples that a method's forecasts are checked on, at most."""


class Search:
    """Runs a schedule; resumable at every epoch.

    Args:
        template: The network as the user gave it; not changed.
        attach: Attaches a fresh method to a network and returns the fit.
        train: Training data.
        valid: Validation data; the only data that chooses.
        likelihood: Of the task.
        schedule: How to spend the epochs.
        settings: Batch, device, precision, budget.
        generator: Source of batch orders and noise.
        report: Called with the row of history after every epoch.
        checkpoint: Where the state goes after every epoch, or None.
        trained: Whether ``template`` is already trained; then it is the teacher.
    """

    def __init__(
        self,
        template: nn.Module,
        attach: Callable[[nn.Module, torch.Generator], Fit],
        train: Dataset,
        valid: Dataset,
        likelihood: Likelihood,
        schedule: Schedule,
        settings: Settings,
        generator: torch.Generator,
        report: Callable[[Row], None],
        checkpoint: Checkpoint | None = None,
        trained: bool = False,
    ) -> None:
        self.template, self.attach = template, attach
        self.train, self.valid, self.likelihood = train, valid, likelihood
        self.schedule, self.settings, self.generator = schedule, settings, generator
        self.report, self.checkpoint, self.trained = report, checkpoint, trained
        self.budget = settings.budget.of(sum(p.numel() for p in template.parameters()))
        self.example = train.x[:1].cpu()
        self.worth = self.budget.worth(template, self.example)
        self.sample = Sample.of(train, CHECKED)
        self.candidates: list[Candidate] = []
        self.picked = False
        self.teacher: Teacher | None = None
        self.aim = -math.inf
        self._written: dict[str, Row] = {}

    # ------------------------------------------------------------------- run
    def run(self) -> Candidate:
        """Run to the end, from the checkpoint when it holds a state; return the chosen candidate.

        Raises:
            BayespareError: If no structure meets the budget.
        """
        with own_global_stream(self.generator.initial_seed(), self.settings.device):
            try:
                return self._run()
            except NonFiniteLossError as error:
                raise NonFiniteLossError(f"{error}; {self._last_good()}") from error

    def _last_good(self) -> str:
        """Where the state before an epoch that failed is kept."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return "no good state was reached; look for outliers in the data, or lower lr"
        return f"the state after the last good epoch is in {self.checkpoint.folder}"

    def _run(self) -> Candidate:
        self._prepare()
        while self.fit.epoch < self.schedule.explore or self._over_budget():
            self._explore_epoch()
            self._save("explore")
        if not self.picked:
            self._spread()
        inherit, larger = self.schedule.inherit, None
        # The large ones are last.
        for candidate in self.candidates[::-1] if inherit else self.candidates:
            self._cool(candidate, larger)
            larger = candidate.fit if inherit else None
        return choose(self.candidates, self.aim)

    def _prepare(self) -> None:
        """Start from the checkpoint, or with the warm network."""
        if self.checkpoint is not None and self.checkpoint.exists():
            self._restore(self.checkpoint)
            return
        network = placed(copy.deepcopy(self.template), self.settings.device)
        if not self.trained:
            self._warm(self._warming(network))
        self._attach(network)

    def _attach(self, network: nn.Module) -> None:
        """Begin exploring with the warm network."""
        if self.trained or self.schedule.warm:
            self._learn_from(network)
        self.fit = self.attach(network, self.generator)
        self.fit.method.worth = self.worth
        constant = constant_features(self.fit, self.train)
        if constant and (self.trained or self.schedule.warm):
            self.fit.fold(constant, self.template, self.train.x[:2])
        elif constant:
            self.fit.remove(constant)

    # ------------------------------------------------------------------ warm
    def _warming(self, network: nn.Module) -> DenseTraining:
        """Ordinary training: cheaper than with noise, and gives gates something to judge."""
        return DenseTraining(
            network,
            self.likelihood,
            self.train,
            epochs=self.schedule.warm,
            settings=self.settings,
            generator=self.generator,
            rate=self.schedule.warm_rate,
        )

    def _warm(self, training: DenseTraining) -> None:
        """Train the epochs that are left."""

        def after(summary: EpochSummary) -> None:
            self.report(training.row("warm", summary))
            self._save("warm", training)

        training.run(after)

    def _learn_from(self, network: nn.Module) -> None:
        """Note how good the whole network is, and what it says of the training data."""
        valid = validate(network, self.likelihood, Batches(self.valid, 1024, shuffle=False))
        self.aim = valid.mean
        if self.schedule.teacher > 0 and isinstance(self.likelihood, Categorical):
            self.teacher = Teacher.of(network, self.train, self.valid, valid)

    # --------------------------------------------------------------- explore
    def _explore_epoch(self) -> None:
        """One epoch with rising tempering; structures that are new are kept."""
        fit, frontier = self.fit, self.schedule.tempering == "auto"
        summary, checks = explore_epoch(
            fit,
            self._batches(self.train),
            self.schedule,
            alone=self._alone(fit),
            sample=self.sample,
            precision=self.settings.precision,
            look=self._keep if frontier else lambda step: None,
        )
        fit.method.observe(fit.likelihood, self.train, self.valid)
        checks.append(fit.update(self.sample))
        fit.epoch += 1
        if not frontier and fit.epoch >= self.schedule.explore:
            fit.polish(self.train)
        pruned = self._rested(fit)
        self._report("explore", fit, summary, fit.parameters(), pruned, checks)
        if frontier:
            self._keep(0, pruned)
        elif fit.epoch >= self.schedule.explore:
            # One tempering has one structure: where it settles. The one before may be trimmed.
            self.candidates = [*self.candidates[-1:], self._snapshot(0, pruned)]

    def _keep(self, step: int, pruned: Scores | None = None) -> None:
        """Keep the structure that would be decided now if it is new, or has learnt much since."""
        parameters = self.fit.parameters()
        if self._worth_keeping(parameters):
            self.candidates.append(self._snapshot(step, pruned or self._rested(self.fit)))
        elif pruned is not None:
            last = self.candidates[-1]
            # Few steps: a network that was kept hardly trained would have to be trained anew.
            if parameters <= last.parameters and last.pruned.worse_than(pruned):
                self.candidates[-1] = self._snapshot(step, pruned)

    def _alone(self, fit: Fit) -> bool:
        """Whether nothing but the prior keeps from overfitting: no noise, no teacher."""
        return fit.method.at_mode and self.teacher is None

    def _worth_keeping(self, parameters: int) -> bool:
        """Whether a structure is new: clearly smaller, or nearer to a budget not met yet."""
        if not self.candidates:
            return True
        late = bool(self.budget) and self.fit.epoch >= self.schedule.explore
        return parameters < (1.0 if late else 0.93) * self.candidates[-1].parameters

    def _snapshot(self, step: int, pruned: Scores) -> Candidate:
        """The structure that would be decided now."""
        cost = self._cost(self.fit, self.candidates[-1].cost if self.candidates else None)
        name = f"e{self.fit.epoch:03d}" + (f".{step}" if step else "")
        return self._candidate(name, self.fit.copy(), pruned, cost)

    def _cost(
        self, fit: Fit, before: Cost | None, stay: Mapping[str, Tensor] | None = None
    ) -> Cost:
        """What the network costs if it were decided now, or if these units stay."""
        verdict, parameters = fit.verdict(stay), fit.parameters(stay)
        # Times vary: all ranks go by rank 0's.
        return Cost(
            *ranks.from_first(
                lambda: self.budget.cost(self.template, verdict, parameters, self.example, before)
            )
        )

    def _candidate(self, name: str, fit: Fit, pruned: Scores, cost: Cost) -> Candidate:
        return Candidate(
            name=name,
            fit=fit,
            parameters=cost.parameters,
            tempering=fit.method.tempering,
            pruned=pruned,
            macs=cost.macs,
            latency_ms=cost.latency_ms,
        )

    def _over_budget(self) -> bool:
        """Whether a budget is set and not met yet; gives up after three times the exploration."""
        if not self.budget or any(self.budget.met(c.cost) for c in self.candidates):
            return False
        return self.fit.epoch < 3 * self.schedule.explore

    def _spread(self) -> None:
        """Keep as many structures as are trained to the end, spread over the sizes.

        Raises:
            BayespareError: If none meets the budget.
        """
        self._trim()
        fitting = [c for c in self.candidates if self.budget.met(c.cost)]
        if not fitting:
            raise self.settings.budget.refusal([c.cost for c in self.candidates])
        whole = sum(p.numel() for p in self.template.parameters())
        best = min(self.candidates, key=lambda c: c.pruned.loss)
        if self.teacher is not None and self._dismissed(self.teacher, best.pruned):
            self.teacher = None
        self.candidates = spread(fitting, self.schedule.candidates, whole)
        self.picked = True
        self._save("cool")

    def _dismissed(self, teacher: Teacher, best: Scores) -> bool:
        """Whether it would hold its pupils back; at the mode it keeps them from overfitting."""
        cut_short = teacher.unfinished and not self.trained and not self.fit.method.at_mode
        return cut_short or teacher.outgrown(best)

    def _trim(self) -> None:
        """Cut the last structure over the budget down to it.

        It takes the place of the first within, which an epoch has often made smaller than asked,
        unless it leaves more of the budget still. Where exploring has come to none within, it is
        all there is.
        """
        over = [c for c in self.candidates if not self.budget.met(c.cost)]
        within = [c for c in self.candidates if self.budget.met(c.cost)]
        if not over or (within and within[0].parameters >= over[-1].parameters):
            return
        fit, before = over[-1].fit, over[-1].cost
        cost = trim(fit, partial(self._cost, fit, before), self.budget.met)
        if cost is None:
            return
        cost = cost if fit.parameters() == cost.parameters else self._cost(fit, cost)
        if not within or self.budget.used(cost) > self.budget.used(within[0].cost):
            cut = self._candidate(over[-1].name, fit, self._rested(fit), cost)
            self.candidates = [cut, *within[1:]]
        if not within:
            fit.warnings.append(
                f"{self.settings.budget}: exploring came to {before} and was cut down from there "
                "at once; more epochs come nearer by themselves, and lose less"
            )

    # ------------------------------------------------------------------ cool
    def _cool(self, candidate: Candidate, larger: Fit | None = None) -> None:
        """Decide, then train what is left without gates, the learning rate falling to zero.

        Args:
            candidate: Which one.
            larger: One that is finished, to go on from what it has learnt.
        """
        fit = candidate.fit
        checks: list[Checked | None] = []
        if not fit.method.decided:
            fit.method.relaxed = True
            candidate.relaxed = self._rested(fit)
            fit.method.relaxed = False
            checks.append(fit.decide(self.sample))
            fit.epoch = 0
            if larger is not None:
                rows = self.train if self.schedule.survivors else None
                fit = candidate.fit = inherited(larger, fit, self.template, rows)
                candidate.parameters = fit.parameters()
        alone = self._alone(fit)
        each = len(self.train) / max(1, candidate.parameters)
        fit.method.tempering = self.schedule.cooled(alone=alone, examples_each=each)
        likelihood, data = fit.likelihood, self.train
        if self.teacher is not None:
            likelihood, data = self.teacher.lesson(data, self.schedule.teacher)
        total = self.schedule.cooling_epochs(len(self.candidates), each)
        while fit.epoch < total:
            batches = self._batches(data, self.schedule.cool_batch)
            fit.method.begin_epoch()
            summary = run_epoch(
                fit.network,
                likelihood,
                fit.optimizer,
                batches,
                method=fit.method,
                rate=falling(fit.epoch, total, len(batches)),
                precision=self.settings.precision,
            )
            fit.epoch += 1
            fit.method.observe(fit.likelihood, self.train, self.valid)
            if fit.epoch == total:
                measure_norms(fit.network, self.train)
            scores = self._validate(fit)
            phase = f"cool {candidate.name}"
            self._report(phase, fit, summary, candidate.parameters, scores, checks)
            checks = []
            candidate.scores = scores
            self._save("cool")
        if candidate.scores is None:
            candidate.scores = self._rested(fit)

    # ---------------------------------------------------------------- shared
    def _batches(self, data: Dataset, factor: int = 1) -> Batches:
        size = ranks.whole(min(self.settings.batch * factor, len(data)))
        return Batches(
            data,
            size,
            generator=self.generator,
            shuffle=True,
            drop_last=True,
            passes=self.schedule.passes,
            share=ranks.share(size),
        )

    def _rested(self, fit: Fit) -> Scores:
        """Validation amid training, in which batch norms see noise, and units that would go."""
        measure_norms(fit.network, self.train)
        return self._validate(fit)

    def _validate(self, fit: Fit) -> Scores:
        return validate(fit.network, fit.likelihood, Batches(self.valid, 1024, shuffle=False))

    def _report(
        self,
        phase: str,
        fit: Fit,
        summary: EpochSummary,
        parameters: int,
        scores: Scores,
        checks: Sequence[Checked | None] = (),
    ) -> None:
        """Add a row to the history; what was foretold of an epoch's removals is summed."""
        checked = [check for check in checks if check is not None]
        self.report(
            {
                "phase": phase,
                "epoch": fit.epoch,
                "train_nll": summary.nll,
                "penalty": summary.penalty,
                "valid_score": scores.mean,
                "valid_nll": scores.nll,
                "parameters": parameters,
                "tempering": fit.method.tempering,
                "seconds": summary.seconds,
                **(sum(checked, Checked()).row() if checked else {}),
            }
        )

    # ------------------------------------------------------------ checkpoint
    def _save(self, phase: str, warming: DenseTraining | None = None) -> None:
        """Write the whole state of the run."""
        if self.checkpoint is None or not ranks.first():
            return
        streams = {"generator": self.generator.get_state(), "global": torch.get_rng_state()}
        if self.settings.device.type == "cuda":
            streams["device"] = torch.cuda.get_rng_state(self.settings.device)
        parts: dict[str, dict[str, Tensor]] = {"run": streams}
        if self.teacher is not None:
            parts["teacher"] = {} if self._written else self.teacher.state()
        meta: Row = {"phase": phase, "candidates": [], "fit": None, "aim": None}
        if math.isfinite(self.aim):
            meta["aim"] = self.aim
        if warming is not None:
            parts["warm"], meta["warm"] = warming.state(), warming.epoch
        if phase == "explore":
            parts["fit"], meta["fit"] = self.fit.state()
        for candidate in self.candidates:
            tensors, described = candidate.state()
            key = f"candidate-{candidate.name}"
            fresh = described != self._written.get(key)
            parts[key] = tensors if fresh else {}
            self._written[key] = described
            meta["candidates"].append(described)
        self.checkpoint.save(parts, meta)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Continue where :meth:`_save` left off."""
        parts, meta = checkpoint.load()
        try:
            if meta["phase"] == "warm":
                network = placed(copy.deepcopy(self.template), self.settings.device)
                training = self._warming(network)
                training.restore(parts["warm"], int(meta["warm"]))
            else:
                self._restore_fits(parts, meta)
            # Last: attaching draws from the generator.
            self.generator.set_state(parts["run"]["generator"])
            torch.set_rng_state(parts["run"]["global"])
            if "device" in parts["run"]:
                torch.cuda.set_rng_state(parts["run"]["device"], self.settings.device)
        except (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise BayespareError(
                f"{checkpoint.folder}: the checkpoint does not fit this run ({error!r})"
            ) from error
        if meta["phase"] == "warm":
            self._warm(training)
            self._attach(network)

    def _restore_fits(self, parts: Mapping[str, Mapping[str, Tensor]], meta: Row) -> None:
        """The teacher, the fit that explores, and the candidates."""
        self.aim = -math.inf if meta["aim"] is None else float(meta["aim"])
        if "teacher" in parts:
            self.teacher = Teacher.restored(parts["teacher"], self.settings.device)
        self.fit = self._fresh()
        if meta["fit"] is not None:
            self.fit.restore(parts["fit"], meta["fit"])
        else:
            self.fit.epoch = 3 * self.schedule.explore
            self.picked = True
        for described in meta["candidates"]:
            key = f"candidate-{described['name']}"
            candidate = Candidate.restored(self._fresh(), parts[key], described)
            self.candidates.append(candidate)
            self._written[key] = described

    def _fresh(self) -> Fit:
        network = placed(copy.deepcopy(self.template), self.settings.device)
        fit = self.attach(network, self.generator)
        fit.method.worth = self.worth
        return fit
