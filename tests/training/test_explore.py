"""An epoch of exploring: where it is looked at, and what rises meanwhile."""

from dataclasses import replace

import pytest
import torch
from small_runs import SHORT, Problem, table

from bayespare.data import Batches
from bayespare.training.explore import explore_epoch
from bayespare.training.fit import Sample
from bayespare.training.loop import EpochSummary


def explored(explore: int) -> tuple[list[int], list[float], EpochSummary]:
    """Looks, the tempering at each, and the summary of an epoch of seven steps, the second."""
    problem, looks, temperings = Problem(), [], []
    fit, data = problem.start(), table()
    fit.epoch = 1

    def look(step: int) -> None:
        assert fit.network.training
        looks.append(step)
        temperings.append(fit.method.tempering)
        fit.copy()

    batches = Batches(
        data, 16, generator=torch.Generator().manual_seed(0), shuffle=True, drop_last=True
    )
    summary, checks = explore_epoch(
        fit,
        batches,
        replace(SHORT, explore=explore),
        alone=False,
        sample=Sample.of(data, 20),
        precision="float32",
        look=look,
    )
    assert all(check is None for check in checks)  # gates foretell nothing
    return looks, temperings, summary


@pytest.mark.parametrize(
    ("explore", "steps"), [(40, []), (12, []), (6, [3]), (4, [2, 4]), (2, [1, 2, 3, 4, 5])]
)
def test_few_epochs_are_looked_at_within(explore, steps):
    looks, temperings, _ = explored(explore)
    assert looks == steps
    schedule = replace(SHORT, explore=explore)
    expected = [schedule.rising(schedule.progress(1, step / 7)) for step in steps]
    assert temperings == pytest.approx(expected)


@pytest.mark.parametrize("explore", [1, 2, 3, 12, 40])
def test_the_rise_takes_all_but_the_first_part(explore):
    schedule = replace(SHORT, explore=explore)
    first = 1 / schedule.parts
    assert schedule.progress(0, first) == pytest.approx(0)
    assert schedule.progress(explore - 1, 1.0) == pytest.approx(1)
    steady = [schedule.progress(epoch, share) for epoch in range(3) for share in (0.2, 0.8)]
    assert steady == sorted(steady)
    assert schedule.parts == 1 or schedule.parts * explore >= 12


def test_an_epoch_in_parts_is_summed_up_by_steps():
    parts = [(3, EpochSummary(1.0, 0.5, 2.0)), (1, EpochSummary(5.0, 0.1, 1.0))]
    whole = EpochSummary.joined(parts)
    assert (whole.nll, whole.penalty, whole.seconds) == pytest.approx((2.0, 0.4, 3.0))
