"""One epoch of exploring: the tempering rises, and units that have settled go."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice, pairwise

from bayespare.data import Batches
from bayespare.training.criterion import Checked
from bayespare.training.fit import Fit, Sample
from bayespare.training.loop import EpochSummary, Precision, run_epoch
from bayespare.training.schedule import Schedule


def explore_epoch(
    fit: Fit,
    batches: Batches,
    schedule: Schedule,
    *,
    alone: bool,
    sample: Sample,
    precision: Precision,
    look: Callable[[int], None],
) -> tuple[EpochSummary, list[Checked | None]]:
    """Train for one epoch at the tempering and the price of each step.

    Args:
        fit: Trained in place; its ``epoch`` is not counted here.
        batches: Of the training data.
        schedule: Says how the tempering rises.
        alone: Whether nothing but the prior keeps from overfitting.
        sample: Training data to check on what the method foretells.
        precision: Of the forward pass.
        look: Called with the number of steps taken, between the parts of the epoch; ranks are
            aligned then.

    Returns:
        What the epoch measured, and what came of each removal.
    """
    method, steps = fit.method, len(batches)
    every = max(10, steps // 4)
    checks: list[Checked | None] = []

    def rise(start: int, taken: int) -> None:
        step = start + taken
        progress = schedule.progress(fit.epoch, step / steps)
        method.tempering = schedule.rising(progress, alone=alone)
        method.price = schedule.price(progress)
        method.progress = min(1.0, (fit.epoch + step / steps) / schedule.explore)
        method.held = progress < schedule.hold
        if step % every == 0:
            checks.append(fit.update(sample))

    def rate(start: int, taken: int) -> float:
        return schedule.rate((fit.epoch + (start + taken) / steps) / schedule.explore)

    method.begin_epoch()
    rise(0, 0)
    parts = min(steps, schedule.parts)
    stream, measured = iter(batches), []
    for start, end in pairwise(steps * part // parts for part in range(parts + 1)):
        if start:
            checks.append(fit.update(sample))
            look(start)
        summary = run_epoch(
            fit.network,
            fit.likelihood,
            fit.optimizer,
            islice(stream, end - start),
            method=method,
            rate=partial(rate, start),
            after_step=partial(rise, start),
            precision=precision,
        )
        measured.append((end - start, summary))
    return EpochSummary.joined(measured), checks
