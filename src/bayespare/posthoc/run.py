"""What making a trained network smaller shares, whoever says what goes."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayespare.assess import Dense, compare, narrowed, scored
from bayespare.bayes.curvature import curvature
from bayespare.bayes.likelihood import (
    Distilled,
    Gaussian,
    Likelihood,
    honest_probabilities,
    likelihood_for,
)
from bayespare.bayes.posterior import GaussianPosterior
from bayespare.data import Batches, Dataset, from_loader, hold_out
from bayespare.errors import BayespareError
from bayespare.given import check_weights, checked_model, checked_outputs, output_warnings
from bayespare.posthoc.kept import Kept
from bayespare.posthoc.lost import Standing, as_good, tempered_losses
from bayespare.posthoc.priors import WeightPriors, evidence_precision
from bayespare.posthoc.rounds import Row, sampled, tune
from bayespare.posthoc.settings import PosthocOptions
from bayespare.posthoc.sizes import Size
from bayespare.result import Point, Result
from bayespare.structure import Plan, Verdict, close, compact, count, mask, trace
from bayespare.structure.compare import difference
from bayespare.structure.positions import with_positions
from bayespare.training.candidates import FEW_ROWS, choose
from bayespare.training.checkpoint import digest
from bayespare.training.history import History
from bayespare.training.loop import Scores, own_global_stream, pick_device, placed, validate
from bayespare.version import __version__

Data = Dataset | Iterable[Any]

SEEN = (
    "no valid= was given: a tenth of train was held out, which the network given has probably been "
    "trained on; it looks better there than it is, and less is removed than could be; give valid= "
    "(and test=) that it has never seen"
)


def as_given(data: Data, like: Dataset | None = None) -> Dataset:
    """The data with targets in the units the network was trained on: a loader's own.

    Args:
        data: As the user gave them.
        like: The training data, where these are others of the same kind: theirs are the units.
    """
    if isinstance(data, Dataset):
        return data
    found = from_loader(data, like=like)
    if found.task == "classification" or like is not None:
        return found
    mean, std = found.target_scale
    return replace(found, y=found.y * std + mean, target_scale=(0.0, 1.0))


@dataclass(eq=False)
class Finished:
    """A size trained to its end.

    Attributes:
        size: As it came out of the rounds.
        model: Compact, on the CPU.
        verdict: Which units it keeps, dead paths closed.
        gap: Largest relative difference to the masked network, before the last training.
        before: Validation before the last training.
        standing: Validation after it.
        parameters: What sizes are compared by: of the model, or those that are not zero.
        macs: Multiply-accumulates of one example.
    """

    size: Size
    model: nn.Module
    verdict: Verdict
    gap: float
    before: Scores
    standing: Standing
    parameters: int
    macs: int

    @property
    def scores(self) -> Scores:
        """Validation after the last training, of every example."""
        return self.standing.scores


class Run(ABC):
    """From a trained network to smaller ones, and the choice among them.

    Subclasses say which sizes there are. Data, checks, the training of what is left, the cut and
    the measurements are the same for all.

    Attributes:
        method: Its name in ``metrics.json`` and ``config.json``.
    """

    method: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        train: Data,
        valid: Data | None,
        test: Data | None,
        options: PosthocOptions,
        folder: str | Path | None = None,
        report: Callable[[Row], None] | None = None,
    ) -> None:
        self.options, self.device = options, pick_device(options.device)
        self.warnings: list[str] = []
        whole = as_given(train)
        if valid is None:
            self.warnings.append(SEEN)
            whole, held = hold_out(whole, seed=options.seed)
        else:
            held = as_given(valid, whole)
        self.train, self.valid = whole.to(self.device), held.to(self.device)
        self.test = self.valid if test is None else as_given(test, whole).to(self.device)
        self.has_test = test is not None
        self.example = whole.x[:4].cpu()
        check_weights(self.train, "train")
        check_weights(self.valid, "valid")
        self.model = checked_model(model).eval()
        self.outputs = checked_outputs(self.model, whole, self.example)
        self.warnings += output_warnings(self.model, whole, self.example)
        self.likelihood = likelihood_for(whole.task).to(self.device)
        self.outer = report
        self._check_weights()
        self.plan: Plan = with_positions(
            trace(self.model, self.example, inputs=whole.feature_groups)
        )
        folder = None if folder is None else Path(folder)
        self.kept = Kept(folder, self.device, {} if folder is None else self._identity())
        path = None if folder is None else folder / "history.jsonl"
        self.history = History(path, resume=self.kept.resuming)

    # ---------------------------------------------------------------- checks
    def _check_weights(self) -> None:
        """Refuse a network with a parameter that is not finite."""
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise BayespareError(
                    f"{self.method}: {name} holds values that are not finite; was the training "
                    "stable?"
                )

    def _check_trained(self, scores: Scores) -> None:
        """Refuse a network that knows no more than the best constant."""
        if self.train.task == "regression":
            reached, constant = -scores.mean, float(self.valid.y.float().var(correction=0))
            name = "squared error"
        else:
            share = torch.bincount(self.valid.y).double() / len(self.valid)
            reached = scores.nll
            constant = float(-(share * share.clamp_min(1e-12).log()).sum())
            name = "NLL"
        if not math.isfinite(reached):
            raise BayespareError(
                f"{self.method}: the network's {name} on validation data is {reached}"
            )
        if reached > 0.9 * constant and not self.options.force:
            raise BayespareError(
                f"{self.method}: the network seems untrained: its {name} on validation data is "
                f"{reached:.4g}, that of a constant {constant:.4g}; train it first, use "
                "sparsify, or give force=true"
            )

    # ------------------------------------------------------------------- run
    def result(self, config: dict[str, Any]) -> Result:
        """Run all steps."""
        with own_global_stream(self.options.seed, self.device):
            return self._result(config)

    def _result(self, config: dict[str, Any]) -> Result:
        network = placed(copy.deepcopy(self.model), self.device)
        given = self.aim(network)
        finished = self.finished(network, given)
        chosen = self._choose(finished, given)
        return self._as_result(finished, chosen, given.scores, config)

    def aim(self, network: nn.Module) -> Standing:
        """Refuse an untrained network; set the noise, and what all later training aims at.

        Args:
            network: As given, on the device.

        Returns:
            Where it stands on validation data.
        """
        given = self.standing(network)
        scores = given.scores
        self._check_trained(scores)
        if isinstance(self.likelihood, Gaussian):
            # The data weigh as much as the noise lets them: what the network leaves unexplained.
            with torch.no_grad():
                self.likelihood.log_noise.fill_(0.5 * math.log(max(-scores.mean, 1e-30)))
        self.soft = self._targets(network, scores)
        return given

    @abstractmethod
    def finished(self, network: nn.Module, given: Standing) -> list[Finished]:
        """Make smaller networks and train them to their end.

        Args:
            network: As given, on the device.
            given: Where it stands on validation data.
        """

    def findings(self) -> dict[str, Any]:
        """What else to note in ``metrics.json``; called once, it may add warnings."""
        return {}

    def _choose(self, finished: list[Finished], given: Standing) -> Finished:
        """The smallest as good as the network given: that is what a user compares with."""
        good = [done for done in finished if as_good(done.standing, given)]
        if not good or len(given.scores.score) < FEW_ROWS:
            return choose(finished)
        return min(good, key=lambda done: done.parameters)

    def _targets(self, network: nn.Module, scores: Scores) -> tuple[Likelihood, Dataset]:
        """What all later training aims at: the labels, and what the whole network says."""
        if self.train.task != "classification":
            return self.likelihood, self.train
        teacher = honest_probabilities(_outputs(network, self.train), scores.mean)
        return Distilled(), replace(self.train, y=Distilled.targets(self.train.y, teacher, 0.5))

    def finish(self, size: Size) -> Finished:
        """Close dead paths, cut, and train what is left."""
        if self.options.unit == "weight":
            # Shapes change once, at the end: the masks belong to the original ones.
            before = self._finish(size.name, size.model, size.masks)
        network = copy.deepcopy(size.model).cpu().eval()
        keep = size.keep or self.plan.all_units
        closed, verdict = close(network, Verdict(self.plan, keep), self.example)
        small = compact(closed, verdict, example=self.example)
        gap = difference(mask(closed, verdict), small, self.example)
        if self.options.unit == "unit":
            small = placed(small, self.device)
            before = self._finish(size.name, small, {})
        small = small.cpu().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        counts = count(small, self.example[:1])
        standing = self.standing(placed(copy.deepcopy(small), self.device))
        sized = counts.nonzeros if self.options.unit == "weight" else counts.parameters
        return Finished(size, small, verdict, gap, before, standing, sized, counts.macs)

    def _finish(self, name: str, network: nn.Module, masks: dict[str, Tensor]) -> Scores:
        """Train a size to its end, in place, unless it is better without; its scores before that.

        Of few rows, which are fitted already, more training makes a network too sure.
        """
        before = self.validate(network)
        step = self.kept.take(f"finish-{name}")
        if step is not None:
            state = network.state_dict()
            network.load_state_dict({key: step.tensors[key] for key in state})
            return before
        began, was = time.perf_counter(), copy.deepcopy(network.state_dict())
        self.train_to_end(network, masks)
        after = self.validate(network)
        # Of a loss that is no number, too.
        better = after.loss <= before.loss
        if not better:
            network.load_state_dict(was)
        earlier = {row["size"] for row in self.history.rows if row["phase"] == "finish"} - {name}
        self.note(
            {
                "phase": "finish",
                "epoch": len(earlier) + 1,
                "size": name,
                "valid_score": after.mean,
                "valid_nll": after.nll,
                "taken": better,
                "seconds": time.perf_counter() - began,
            }
        )
        self.kept.put(f"finish-{name}", network.state_dict())
        return before

    def train_to_end(self, network: nn.Module, masks: dict[str, Tensor]) -> None:
        """To the maximum a posteriori, under the priors evidence gives the weights it has."""
        options = self.options
        if options.finetune == 0:
            return
        generator = torch.Generator(self.device).manual_seed(options.seed)
        priors = WeightPriors(network, self._bends(network), len(self.train))
        tune(
            network,
            masks,
            *self.soft,
            options.finetune,
            options,
            generator,
            priors=priors,
            swapped=options.swapped,
        )

    def _bends(self, network: nn.Module) -> dict[str, Tensor]:
        """Diagonal curvature of the loss of all training data, nats, by parameter name."""
        generator = torch.Generator(self.device).manual_seed(self.options.seed)
        some = sampled(self.train, self.options.samples, generator)
        found = curvature(network, self.likelihood, some, generator=generator)
        scale = len(self.train) / found.examples
        return {name: bend * scale for name, bend in found.diagonal.items()}

    def validate(self, network: nn.Module) -> Scores:
        """Scores on validation data."""
        return validate(network, self.likelihood, Batches(self.valid, 1024, shuffle=False))

    def standing(self, network: nn.Module) -> Standing:
        """Where a network stands on validation data."""
        scores, held = self.validate(network), self.valid
        if held.task == "regression":
            return Standing(scores, scores.losses)
        losses = tempered_losses(_outputs(network, held), held.y)
        if held.weight is not None:
            losses = losses * (held.weight / held.weight.mean()).double().cpu()
        return Standing(scores, losses)

    def note(self, row: Row) -> None:
        """Keep a row of history and pass it on."""
        self.history.add(row)
        if self.outer is not None:
            self.outer(row)

    # ---------------------------------------------------------------- result
    def _point(self, done: Finished, chosen: bool) -> Point:
        """The finished size with its diagonal Laplace posterior."""
        counts = count(done.model, self.example[:1])
        summary = {
            "name": done.size.name,
            "parameters": counts.parameters,
            "nonzeros": counts.nonzeros,
            "macs": counts.macs,
            "bytes": counts.bytes,
            **{f"valid_{key}": value for key, value in scored(done.scores, self.train).items()},
            "valid_tempered_nll": float(done.standing.tempered.mean()),
            "tempering": 1.0,
            "compact_equals_masked": done.gap,
            "chosen": chosen,
            "separation": {"undecided": {}},
            "stages": {
                "pruned": scored(done.before, self.train),
                "finetuned": scored(done.scores, self.train),
            },
        }
        return Point(
            name=done.size.name,
            model=done.model,
            posterior=self._posterior(done.model),
            verdict=done.verdict,
            summary=summary,
            noise_std=self._noise(done.scores),
            log_odds=done.size.log_odds,
        )

    def _noise(self, scores: Scores) -> float | None:
        return math.sqrt(-scores.mean) if self.train.task == "regression" else None

    def _posterior(self, model: nn.Module) -> GaussianPosterior:
        """Diagonal Laplace around the weights that are not zero, prior by evidence per layer."""
        network = placed(copy.deepcopy(model), self.device)
        bends = self._bends(network)
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
        noise = self._noise(self.validate(network))
        posterior = GaussianPosterior(std, predictive=self.options.predictive).checked(model)
        return narrowed(posterior, model, self.valid, noise)

    def _as_result(
        self, finished: list[Finished], chosen: Finished, scores: Scores, config: dict[str, Any]
    ) -> Result:
        points = [self._point(done, done is chosen) for done in finished]
        points.sort(key=lambda p: (int(p.summary["parameters"]), int(p.summary["nonzeros"])))
        point = next(p for p in points if p.summary["chosen"])
        dense = Dense(self.model, self._noise(scores), None, scores)
        findings = self.findings()
        measured = compare(self.model, point, dense, self.test, 32)
        metrics = {
            "method": self.method,
            "seed": self.options.seed,
            "n_train": len(self.train),
            "n_valid": len(self.valid),
            "n_test": len(self.test),
            "measured_on": "test" if self.has_test else "validation",
            "quick": False,
            **measured,
            **findings,
            "time_s": {
                "dense_training": None,
                "training": self._seconds(self.method),
                "finetuning": self._seconds("finish"),
            },
            "run_warnings": self.warnings,
        }
        metrics["warnings"] = [*self.warnings, *measured["warnings"]]
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

    def _seconds(self, phase: str) -> float:
        return float(sum(row["seconds"] for row in self.history.rows if row["phase"] == phase))

    def _identity(self) -> dict[str, Any]:
        """What has to be the same when the run goes on; where it runs does not."""
        same = ("method", "task", "inputs", "outputs")
        told = {key: value for key, value in asdict(self.options).items() if key != "device"}
        config = self._config()
        parts = (self.train, self.valid)
        data = [t for part in parts for t in (part.x, part.y, part.weight) if t is not None]
        return {
            "version": __version__,
            **{key: config[key] for key in same},
            **told,
            "data": digest(data),
            "network weights": digest(self.model.state_dict().values()),
        }

    def _config(self) -> dict[str, Any]:
        return {
            **asdict(self.options),
            "method": self.method,
            "settings": {},
            "device": str(self.device),
            "task": self.train.task,
            "classes": list(self.train.classes),
            "features": list(self.train.features),
            "inputs": list(self.train.inputs),
            "outputs": self.outputs,
            "target_scale": list(self.train.target_scale),
            "versions": {"bayespare": __version__, "torch": torch.__version__},
        }


@torch.no_grad()
def _outputs(network: nn.Module, rows: Dataset) -> Tensor:
    """What a network in evaluation mode says of every row, shape ``(N, ...)``."""
    slices = Batches(rows, 1024, shuffle=False)
    return torch.cat([network(x).float() for x, *_ in slices])
