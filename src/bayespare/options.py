"""What a run can be told, and what it works out from the size of the data."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from bayespare import methods
from bayespare.bayes.likelihood import Likelihood, likelihood_for
from bayespare.bayes.posterior import Predictive
from bayespare.checks import check_flag, check_positive, check_whole
from bayespare.data import Dataset
from bayespare.errors import BayespareError, UnsupportedStructureError, did_you_mean
from bayespare.structure import Plan
from bayespare.training import ranks
from bayespare.training.budget import Budget
from bayespare.training.fit import Fit
from bayespare.training.loop import Precision, pick_device
from bayespare.training.pace import Pace, measure_pace, seconds_in, spoken
from bayespare.training.schedule import Schedule, Settings

log = logging.getLogger(__name__)

Unit = Literal["unit", "feature", "head", "weight"]

LEAST_EPOCHS = 4
"""Fewer do not fill the phases of a run."""

QUICK = 10
"""How many times fewer epochs ``quick`` gives."""

USUAL_RATE = 1e-3
"""The learning rate of a dense network to which all others were tuned."""


@dataclass(frozen=True)
class Options:
    """Everything a run can be told; the defaults are what we recommend.

    Attributes:
        method: Name of a registered method.
        settings: Of the method, as keyword arguments.
        unit: What is removed: ``unit`` (units, channels and input features), ``feature`` (input
            features alone), or ``head`` and ``weight`` for methods that offer them.
        keep: Groups of the plan, layers or parts of the model that stay whole.
        epochs: Epochs a dense network would get; None: from the size of the data.
        time: Seconds that training may take, or text such as ``10m``: sets the epochs.
        quick: A tenth of the epochs and no dense network, for a first look.
        finetune: Epochs of training after the decision, for each candidate; None: a share of
            the epochs.
        survivors: Refit what survives by least squares where a smaller network goes on from a
            larger one.
        batch: Examples per step; None: from the size of the data.
        lr: Learning rate of a dense network; every other rate keeps its proportion to it.
        tempering: ``auto``, or a fixed weight of the KL.
        seed: Of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``float32`` or ``bf16``.
        max_params: Budget of physical parameters, of single weights of those that are not zero;
            None: the posterior alone decides.
        max_macs: Budget of multiply-accumulates for one example.
        max_latency_ms: Budget of time for one example on one CPU thread, milliseconds.
        sparsity: Least share of the parameters to be removed, in place of ``max_params``; of single
            weights the share that is zero.
        uniform: The network is a Hugging Face model, and the run folder is to hold it also in the
            form that plain ``from_pretrained`` loads: one size per field of its config.
        baseline: Train a dense network for comparison, when the given one is not trained.
        samples: Posterior draws for predictions.
        predictive: How a Laplace posterior predicts (``spam``): see
            :class:`bayespare.bayes.posterior.GaussianPosterior`.
    """

    method: str = "ss-ghs"
    settings: Mapping[str, Any] = field(default_factory=dict)
    unit: Unit = "unit"
    keep: Sequence[str] = ()
    epochs: int | None = None
    time: float | str | None = None
    quick: bool = False
    finetune: int | None = None
    survivors: bool = True
    batch: int | None = None
    lr: float = USUAL_RATE
    tempering: float | Literal["auto"] = "auto"
    seed: int = 0
    device: str = "auto"
    precision: Precision = "float32"
    max_params: int | None = None
    max_macs: int | None = None
    max_latency_ms: float | None = None
    sparsity: float | None = None
    uniform: bool = False
    baseline: bool = True
    samples: int = 32
    predictive: Predictive = "draws"

    def __post_init__(self) -> None:
        _check_word("precision", self.precision, Precision)
        _check_word("unit", self.unit, Unit)
        _check_word("predictive", self.predictive, Predictive)
        if self.predictive != "draws" and not methods.find(self.method).at_mode:
            raise BayespareError(
                f"predictive={self.predictive!r} is for Laplace posteriors, such as spam's; "
                f"{self.method} predicts by draws"
            )
        if self.tempering != "auto" and not (
            isinstance(self.tempering, float | int) and self.tempering >= 0
        ):
            raise BayespareError(
                f"tempering={self.tempering!r}: must be 'auto' or a number, 0 or more"
            )
        check_positive("lr", self.lr)
        check_whole("seed", self.seed)
        for name in ("quick", "survivors", "uniform", "baseline"):
            check_flag(name, getattr(self, name))
        for name, least in {"samples": 1, "finetune": 0, "epochs": 1, "batch": 1}.items():
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value, least)
        if not isinstance(self.settings, Mapping):
            raise BayespareError(f"settings={self.settings!r}: must be names with values")
        if isinstance(self.keep, str):
            raise BayespareError(f"keep={self.keep!r}: must be a list of names")
        self._check_length()
        self.budget  # noqa: B018 (refuses bad limits)

    def _check_length(self) -> None:
        """Refuse more than one way to say how long the run is."""
        given = {"epochs=": self.epochs, "time=": self.time, "quick=true": self.quick or None}
        ways = [name for name, value in given.items() if value is not None]
        if len(ways) > 1:
            raise BayespareError(f"{' and '.join(ways)} exclude each other; give one of them")
        if self.time is not None:
            seconds_in(self.time)

    @property
    def method_settings(self) -> dict[str, Any]:
        """What the method is built with; ``unit=weight`` is its business, not the plan's."""
        weights = self.unit == "weight" and "weight" in methods.find(self.method).offers
        extra: dict[str, Any] = {"unit": "weight"} if weights else {}
        if self._ranks and self.sparsity is not None and (self.published or self.unit == "weight"):
            extra["sparsity"] = self.sparsity
        return {**extra, **self.settings}

    @property
    def _ranks(self) -> bool:
        """Whether the method reaches a sparsity by a ranking of its own."""
        return "sparsity" in methods.find(self.method).settings_class.model_fields

    @property
    def published(self) -> bool:
        """Whether the method runs as its authors ran it, epochs and batch included."""
        return self.settings.get("settings") == "faithful"

    @property
    def budget(self) -> Budget:
        """The limits on what the network may cost.

        A sparsity is none where it is the authors' own: they remove a share of what they rank.
        """
        sparsity = None if self.published and self._ranks else self.sparsity
        return Budget(self.max_params, self.max_macs, self.max_latency_ms, sparsity)

    def told_of_length(self, examples: int) -> str | None:
        """What there is to say of a run that is much shorter than usual, in a line, if it is."""
        epochs = self.epochs_for(examples)
        usual = replace(self, quick=False, epochs=None).epochs_for(examples)
        if self.quick:
            return (
                f"quick=true: {epochs:,} epochs in place of {usual:,}, and no dense network is "
                "trained to compare with: a first look"
            )
        # Where a batch is as usual, nobody is surprised by what few epochs give.
        if self.published or methods.most_batch(self.method) is None or 20 * epochs >= usual:
            return None
        steps = epochs * (examples // self.batch_for(examples))
        return (
            f"epochs={epochs}: {self.method} takes small data whole, so that is {steps:,} steps; "
            f"{usual:,} epochs are usual. What is removed is not settled, nor is a dense network "
            "trained to its end; use more epochs"
        )

    @property
    def trains_dense(self) -> bool:
        """Whether a dense network is trained for comparison, when the given one is not trained."""
        return self.baseline and not self.quick

    def batch_for(self, examples: int) -> int:
        """The batch size: given, or at least 40 steps an epoch, between 16 and 256.

        Of all ranks together, and a multiple of their number.
        """
        if self.batch is not None:
            if not 1 <= self.batch <= examples:
                raise BayespareError(
                    f"batch={self.batch}: must be between 1 and the {examples} training rows"
                )
            if self.batch % ranks.world():
                raise BayespareError(
                    f"batch={self.batch}: cannot be shared equally by {ranks.world()} processes; "
                    "give a multiple"
                )
            return self.batch
        if self.published:
            size = methods.authors_run(self.method)[1]
        else:
            size = methods.most_batch(self.method) or min(
                256, 1 << int(math.log2(max(16, examples / 40)))
            )
        return ranks.whole(min(size, examples))

    def epochs_for(self, examples: int) -> int:
        """The epochs: given, or 60 and as many more as small data need for 8,000 steps.

        A method that takes small data whole gets 3,000 steps: each sees every row.

        A ``time`` has to have become epochs before, by :meth:`timed`.
        """
        if self.epochs is not None:
            return self.epochs
        if self.published:
            usual = methods.authors_run(self.method)[0]
        else:
            steps = 8000 if methods.most_batch(self.method) is None else 3000
            usual = max(60, math.ceil(steps / max(1, examples // self.batch_for(examples))))
        return max(LEAST_EPOCHS, round(usual / QUICK)) if self.quick else usual

    def schedule(self, examples: int) -> Schedule:
        """How the epochs are spent."""
        epochs = self.epochs_for(examples)
        if self.published:
            tempering = 1.0 if self.tempering == "auto" else self.tempering
            schedule = Schedule.published(epochs, tempering)
        else:
            steps = max(1, examples // self.batch_for(examples))
            method = methods.build(self.method, **self.method_settings)
            schedule = method.schedule(epochs, steps, examples, self.tempering)
        schedule = replace(schedule, warm_rate=self.lr, survivors=self.survivors)
        if self.finetune is None:
            return schedule
        inherit = schedule.inherit and self.finetune > 0
        return replace(schedule, cool=self.finetune, share=False, inherit=inherit)

    def validates(self, examples: int) -> bool:
        """Whether validation data choose anything: a size, a teacher's or a posterior's spread."""
        schedule = self.schedule(examples)
        at_mode = methods.find(self.method).at_mode
        return schedule.candidates > 1 or schedule.teacher > 0 or at_mode

    @property
    def rate(self) -> float:
        """Factor of the learning rates of the method."""
        return self.lr / USUAL_RATE

    # ------------------------------------------------------------------ time
    def attach(
        self,
        network: nn.Module,
        plan: Plan,
        examples: int,
        likelihood: Likelihood,
        generator: torch.Generator,
    ) -> Fit:
        """Attach a fresh method to a network on its device, in place, and begin to fit it."""
        method = methods.build(self.method, **self.method_settings)
        method.attach(network, plan, examples=examples, generator=generator)
        method.to(generator.device)
        method.haste = self.schedule(examples).haste
        batch = self.batch_for(examples)
        return Fit.start(network, method, likelihood, generator, batch, self.rate)

    def timed(self, model: nn.Module, plan: Plan, train: Dataset) -> Options:
        """These options with the epochs that fit into ``time`` on this machine, if it is given.

        Args:
            model: The dense network; some twenty training steps of copies are timed.
            plan: What can be removed from it.
            train: Training data.

        Raises:
            BayespareError: If the time is not enough for the fewest epochs that make sense.
        """
        if self.time is None:
            return self
        examples = len(train)
        device, available = pick_device(self.device), seconds_in(self.time)

        def attach(network: nn.Module, generator: torch.Generator) -> Fit:
            likelihood = likelihood_for(train.task).to(device)
            return self.attach(network, plan, examples, likelihood, generator)

        settings = Settings(self.batch_for(examples), device, self.precision)
        pace = measure_pace(model, train, settings, attach)
        # Clocks differ: all ranks go by rank 0's.
        pace = Pace(*ranks.from_first(lambda: [pace.dense, pace.noisy]))
        untimed = replace(self, time=None)

        def seconds(epochs: int) -> float:
            schedule = replace(untimed, epochs=epochs).schedule(examples)
            return pace.seconds(schedule, epochs * self.trains_dense)

        needed = seconds(LEAST_EPOCHS)
        if needed > available:
            raise BayespareError(
                f"time={self.time}: the fewest epochs that make sense ({LEAST_EPOCHS}) need about "
                f"{spoken(needed)} here; give more time, a smaller network or less data"
            )
        numbers = range(LEAST_EPOCHS, LEAST_EPOCHS + 10 * math.ceil(available / pace.dense))
        epochs = numbers[bisect_right(numbers, available, key=seconds) - 1]
        log.info("time=%s: %d epochs; a dense one takes %.3g s", self.time, epochs, pace.dense)
        return replace(untimed, epochs=epochs)

    # ------------------------------------------------------------------ plan
    def narrowed(self, plan: Plan) -> Plan:
        """The plan without the groups that stay whole because of ``unit`` and ``keep``.

        Raises:
            BayespareError: On a name that is no group, or a unit the method does not offer.
            UnsupportedStructureError: If nothing is left to remove.
        """
        self._check_unit()
        try:
            narrowed = plan.keep_whole(*self.keep) if self.keep else plan
        except BayespareError as error:
            raise BayespareError(f"keep={','.join(self.keep)}: {error}") from None
        features = any(group.unit == "feature" for group in narrowed.groups)
        if self.unit == "feature" and not features and narrowed.groups:
            why = narrowed.left_alone.get("input", "none is read by a linear layer")
            raise UnsupportedStructureError(
                f"unit=feature: no input feature can be removed from this network ({why}); "
                "leave unit= away"
            )
        if not narrowed.groups:
            raise UnsupportedStructureError(
                f"keep={','.join(self.keep)}: nothing is left that could be removed"
            )
        return narrowed.only(unit="feature") if self.unit == "feature" else narrowed

    def _check_unit(self) -> None:
        method = methods.build(self.method, **self.settings)
        offered = method.offers
        if self.budget and not method.removes:
            raise BayespareError(
                f"method={self.method} removes nothing by itself, so no budget can be met; "
                "leave the budget away, or use a method that decides, such as bmr"
            )
        if self.unit not in offered:
            others = methods.offering(self.unit)
            who = f"{', '.join(others)} can" if others else "no method can yet"
            raise BayespareError(
                f"unit={self.unit}: {self.method} decides about {' or '.join(offered)}; {who}"
            )
        if self.published and self.unit == "feature":
            raise BayespareError(
                "unit=feature: settings=faithful gates hidden units alone, as its authors do; "
                "leave one of the two away"
            )

    @classmethod
    def of(cls, **options: Any) -> Options:
        """Build options from keyword arguments.

        Raises:
            BayespareError: On an unknown one.
        """
        for name in options:
            if name not in cls.__dataclass_fields__:
                hint = did_you_mean(name, cls.__dataclass_fields__)
                raise BayespareError(f"unknown option {name!r}{hint}")
        return cls(**options)


def _check_word(name: str, word: str, literal: Any) -> None:
    if word not in get_args(literal):
        hint = did_you_mean(str(word), get_args(literal))
        raise BayespareError(f"{name}={word!r}: not a {name}{hint}")
