"""Rounds of removal, and the stop by measured evidence.

After each round the loss is measured, not predicted. The evidence of a size is the Occam gain of
all that was removed minus ``c`` times the realised rise of the training loss.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from bayespare.bayes.likelihood import Likelihood
from bayespare.data import Batches, Dataset
from bayespare.errors import BayespareError
from bayespare.posthoc.kept import Kept
from bayespare.posthoc.live import Left, Live, LiveUnits, LiveWeights
from bayespare.posthoc.priors import WeightPriors
from bayespare.posthoc.removal import Removal, matrices
from bayespare.posthoc.settings import PosthocOptions, ReduceOptions
from bayespare.posthoc.sizes import Size, past_summits
from bayespare.posthoc.swap import swap
from bayespare.structure import Plan
from bayespare.structure.survivors import update_survivors
from bayespare.training.loop import falling, run_epoch, validate

Row = dict[str, Any]

REFIT_BATCHES = 6
"""Batches of :func:`sampled` that survivors are refitted on."""

LEAST_STEPS = 100
"""Steps that make an epoch at least: of small data it is several passes."""


def tune(
    model: nn.Module,
    masks: dict[str, Tensor],
    likelihood: Likelihood,
    data: Dataset,
    epochs: int,
    options: PosthocOptions,
    generator: Generator,
    *,
    rate: float | None = None,
    priors: WeightPriors | None = None,
    swapped: float = 0.0,
) -> None:
    """Train what is left, in place, masks in force, the learning rate falling to zero.

    Args:
        model: Trained in place.
        masks: Which entries are there, by parameter name.
        likelihood: Of the targets of ``data``.
        data: Trained on.
        epochs: How many; 0 leaves everything as it is.
        options: Learning rate.
        generator: Of the order of the examples.
        rate: Learning rate at the start; None: that of the options.
        priors: On the weights of ``model``; None: only the data count.
        swapped: Share of the weights that change places at first, see :func:`swap`.
    """
    if epochs == 0:
        return
    parameters = dict(model.named_parameters())
    some = [p for p in model.parameters() if p.requires_grad]
    group = {"params": some, "base_lr": rate or options.lr}
    optimizer = torch.optim.Adam([group], fused=True)
    size = min(256, max(16, len(data) // 40), len(data))
    passes = -(-LEAST_STEPS // (len(data) // size))
    batches = Batches(data, size, generator=generator, shuffle=True, drop_last=True, passes=passes)

    @torch.no_grad()
    def silence(_step: int) -> None:
        for name, mask in masks.items():
            parameters[name].mul_(mask)

    for epoch in range(epochs):
        run_epoch(
            model,
            likelihood,
            optimizer,
            batches,
            method=priors,
            rate=falling(epoch, epochs, len(batches)),
            after_step=silence,
        )
        if swapped:
            masks = swap(model, masks, optimizer, swapped, (epoch + 1) / epochs)


def sampled(train: Dataset, samples: int, generator: Generator) -> list[tuple[Tensor, ...]]:
    """Batches of so many random training examples, for curvature and costs."""
    order = torch.randperm(len(train), generator=generator, device=generator.device)
    some = train.subset(order[:samples].to(train.x.device))
    return list(Batches(some, min(1000, len(some)), shuffle=False))


@final
class Rounds:
    """Removal in rounds until the measured evidence has fallen for every weight of the loss.

    Args:
        model: Trained, on the device of the data; not changed.
        plan: Of units; None removes single weights.
        train: Training data.
        valid: Only scored here, for the history.
        likelihood: Of the task.
        options: Share, epochs and so on.
        met: Whether a budget is met; rounds go on until it is.
        report: Called with a row of history after each round.
        soft: Likelihood and data of the training after each round, where they are others.
        kept: Where rounds are kept, and taken from when the run goes on.

    Attributes:
        sizes: The network as given, then one size for each round.

    Raises:
        BayespareError: If there is no weight that could be removed.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan | None,
        train: Dataset,
        valid: Dataset,
        likelihood: Likelihood,
        options: ReduceOptions,
        met: Callable[[Size], bool],
        report: Callable[[Row], None],
        soft: tuple[Likelihood, Dataset] | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.plan, self.train, self.valid = plan, train, valid
        self.likelihood, self.options, self.met, self.report = likelihood, options, met, report
        self.aim = soft or (likelihood, train)
        self.kept = kept or Kept(None, train.x.device)
        self.generator = Generator(train.x.device).manual_seed(options.seed)
        self.batches = sampled(train, options.samples, self.generator)
        # Validation has weights of mean one; curvature, which the loss is weighed against, has not.
        self._count = len(train) * (1.0 if train.weight is None else float(train.weight.mean()))
        masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in matrices(model).items()}
        if not masks:
            raise BayespareError("reduce: the model has no trainable weight that could be removed")
        keep = plan.all_units if plan else {}
        certain = {name: torch.full(line.shape, torch.inf).double() for name, line in keep.items()}
        whole = Size("dense", copy.deepcopy(model), masks, keep, log_odds=certain)
        self.sizes = [whole]
        # Share of the predicted rises that comes true; the loss that rises are measured from, and
        # the one after the last removal; whether removals go on that no prediction speaks for.
        self._trust, self._insist = 1.0, False
        self._start = self._after = validate(model, likelihood, self.batches).nll

    def run(self) -> list[Size]:
        """All rounds."""
        for number in range(1, self.options.rounds + 1):
            size = self._taken(number) or self._done(number)
            if size is None:
                break
            self.sizes.append(size)
            if self.met(size) and past_summits(self.sizes):
                break
        return self.sizes

    def between(self, last: Size, part: float) -> Size | None:
        """A part of a round, by cost alone; None if nothing is left that could go.

        Args:
            last: A size of :attr:`sizes`, or from here.
            part: Of a round: two halves remove what a round does.
        """
        number = last.round + part
        taken = self._taken(number)
        if taken is not None:
            return taken
        began, live = time.perf_counter(), self._live(last)
        share = 1 - (1 - self.options.share) ** part
        removal = live.decide(*self._measured(share), trust=self._trust, forced=True)
        if removal is None:
            return None
        return self._removed(last, live, removal, number, began)

    # ----------------------------------------------------------------- a round
    def _done(self, number: int) -> Size | None:
        """Do a round; None if nothing is to go."""
        began, last = time.perf_counter(), self.sizes[-1]
        live = self._live(last)
        removal = self._decided(live, number)
        if removal is None:
            return None
        return self._removed(last, live, removal, number, began)

    def _live(self, last: Size) -> Live:
        if self.plan:
            return LiveUnits(last.model, self.plan, last.keep)
        return LiveWeights(last.model, last.masks)

    def _measured(self, share: float) -> tuple[Any, ...]:
        """What decisions are made on, if so much may go."""
        return self.batches, self.likelihood, len(self.train), share, self.generator

    def _removed(
        self, last: Size, live: Live, removal: Removal, number: float, began: float
    ) -> Size:
        """Remove, measure, refit and train."""
        before = validate(live.model, self.likelihood, self.batches).nll
        if number == 2:
            # Trained towards soft targets, a network fits its labels less, whatever was removed.
            self._start += max(0.0, before - self._after)
        unlabelled = [x for x, *_ in self.batches[:REFIT_BATCHES]]
        refit = self.options.survivors
        reduced = silenced(live.model, removal.masks, unlabelled, survivors=refit)
        self._after = validate(reduced, self.likelihood, self.batches).nll
        left = live.trained(reduced, removal, self._between)
        size = self._size(last, number, left, removal)
        # The next prediction is scaled by what came true of this one.
        realised = self._count * (self._after - before)
        if removal.cost > 0:
            self._trust = min(1.0, max(0.05, realised / removal.cost))
        scores = validate(left.model, self.likelihood, Batches(self.valid, 1024, shuffle=False))
        self.report(
            {
                "phase": "reduce",
                "epoch": number,
                "removed": removal.removed,
                "candidates": removal.candidates,
                "nonzeros": size.nonzeros,
                "predicted_delta_f": removal.predicted,
                "predicted_rise": removal.cost,
                "realised_rise": realised,
                "gain": size.gain,
                "train_nll": self._after,
                "valid_score": scores.mean,
                "valid_nll": scores.nll,
                "seconds": time.perf_counter() - began,
            }
        )
        self._keep(size)
        return size

    def _decided(self, live: Live, number: int) -> Removal | None:
        """What goes, if anything.

        The evidence has a veto as long as it finds enough to remove. Predictions are often too
        high, for training gets much of a loss back; so then the cheapest go all the same, until
        what is measured has fallen. While a budget asks for less there is no veto.
        """
        enough = self.met(self.sizes[-1])
        measured = self._measured(self.options.share)

        def decided() -> Removal | None:
            forced = self._insist or not enough
            found = live.decide(*measured, trust=self._trust, forced=forced)
            return None if found is not None and enough and live.little(found) else found

        removal = decided()
        while number == 1 and self._trust > 0.1 and removal is None:
            # Nothing has been measured yet.
            self._trust *= 0.5
            removal = decided()
        if removal is None and number > 1 and not self._insist:
            self._insist = True
            removal = decided()
        return removal

    def _between(self, network: nn.Module, masks: dict[str, Tensor]) -> None:
        options = self.options
        tune(
            network,
            masks,
            *self.aim,
            options.between,
            options,
            self.generator,
            rate=options.rate_between,
        )

    def _size(self, last: Size, number: float, left: Left, removal: Removal) -> Size:
        """What a round leaves, with the sums over the rounds so far."""
        odds = {
            name: torch.where(last.keep[name] & ~left.keep[name], values, last.log_odds[name])
            for name, values in left.log_odds.items()
        }
        return Size(
            _name(number),
            left.model,
            left.masks,
            left.keep,
            last.gain + removal.gain,
            self._count * (self._after - self._start),
            last.log_odds | odds,
            number,
        )

    # -------------------------------------------------------------------- kept
    def _keep(self, size: Size) -> None:
        self.kept.put(
            f"round-{size.name}",
            size.tensors() | {"generator": self.generator.get_state()},
            gain=size.gain,
            rise=size.rise,
            trust=self._trust,
            insist=self._insist,
            start=self._start,
            after=self._after,
        )

    def _taken(self, number: float) -> Size | None:
        """A round of a run that was stopped; None if it did not get there."""
        step = self.kept.take(f"round-{_name(number)}")
        if step is None:
            return None
        was = step.numbers
        sums = {name: float(was[name]) for name in ("gain", "rise")}
        self.generator.set_state(step.tensors["generator"])
        self._trust, self._insist = float(was["trust"]), bool(was["insist"])
        self._start, self._after = float(was["start"]), float(was["after"])
        like = self.sizes[0].model
        return Size.restored(_name(number), like, step.tensors, **sums, round=number)


def _name(number: float) -> str:
    """Of what a round leaves, or a part of one: ``r07``, ``r07.5``."""
    whole, part = divmod(number, 1)
    return f"r{whole:02.0f}{f'{part:g}'[1:]}"


def silenced(
    model: nn.Module, masks: Mapping[str, Tensor], unlabelled: list[Tensor], *, survivors: bool
) -> nn.Module:
    """A copy in which what is removed is zero, and what survives refitted if so wanted.

    Args:
        model: Shapes whole.
        masks: Which entries stay, by parameter name.
        unlabelled: Inputs for the refit.
        survivors: Refit.
    """
    if survivors:
        return update_survivors(model, masks, unlabelled).model
    reduced = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in reduced.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
    return reduced
