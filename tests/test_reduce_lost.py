"""How many examples a smaller network loses: the estimate the size of ``reduce`` is chosen by."""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from bayespare import data, nets
from bayespare.posthoc import ReduceOptions
from bayespare.posthoc.lost import Standing, as_good, lost, tempered_losses
from bayespare.posthoc.reduction import Reduction
from bayespare.training.loop import Scores

CLASSES = 5


def truth(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels drawn from them: a network that is exactly as sure as it should be."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)
    y = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits, y


def standing(logits: torch.Tensor, y: torch.Tensor) -> Standing:
    losses = functional.cross_entropy(logits, y, reduction="none")
    scores = Scores((logits.argmax(1) == y).double(), losses)
    return Standing(scores, tempered_losses(logits, y))


def test_the_tempered_nll_is_the_lowest_of_a_grid():
    logits, y = truth(2000)
    grid = torch.logspace(-1, 1, 2001, dtype=torch.float64)
    lowest = min(float(functional.cross_entropy(3 * logits / t, y)) for t in grid)
    assert float(tempered_losses(3 * logits, y).mean()) == pytest.approx(lowest, abs=1e-6)


def test_on_few_rows_fewer_right_is_not_as_good_however_low_the_loss():
    """A network far too sure of itself has a loss that a ruined one need not exceed."""
    logits, y = truth(400)
    sure = standing(8 * logits, y)
    poor = standing(logits + 3 * torch.randn(400, CLASSES, generator=torch.manual_seed(1)), y)
    assert poor.scores.loss < sure.scores.loss
    assert poor.scores.mean < sure.scores.mean - 0.1
    assert not as_good(poor, sure)
    assert as_good(standing(logits, y), sure)


@given(st.floats(0.2, 5.0))
def test_what_one_temperature_cures_is_no_loss(factor):
    logits, y = truth(500)
    assert lost(standing(factor * logits, y), standing(logits, y)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2])
def test_the_estimates_count_as_they_are_precise(share):
    logits, y = truth(3000)
    small, whole = blinded(logits, y, share), standing(logits, y)
    wrong = float((whole.scores.score < 1).double().mean())
    counted, implied = [], []
    for row in range(3000):
        counted.append(float(whole.scores.score[row] - small.scores.score[row]))
        rise = float(small.tempered[row] - whole.tempered[row])
        implied.append(rise * wrong / float(whole.tempered.mean()))
    if share == 0:
        assert lost(small, whole) == 0
        return
    weight = [1 / statistics.variance(values) for values in (counted, implied)]
    means = [statistics.fmean(values) for values in (counted, implied)]
    wanted = (weight[0] * means[0] + weight[1] * means[1]) / sum(weight)
    assert lost(small, whole) == pytest.approx(wanted, rel=1e-6)


def test_it_finds_what_is_lost_with_less_error_than_counting():
    """Networks that know less by a known amount, judged by samples, against all rows."""
    noise = torch.Generator().manual_seed(1)
    logits, y = truth(200_000)
    worse = logits + 0.3 * torch.randn(logits.shape, generator=noise, dtype=torch.float64)
    exact = float((logits.argmax(1) == y).double().mean() - (worse.argmax(1) == y).double().mean())
    assert exact > 0.003
    errors, counted = [], []
    for part in torch.arange(200_000).view(100, 2000):
        small, whole = standing(worse[part], y[part]), standing(logits[part], y[part])
        errors.append(lost(small, whole) - exact)
        counted.append(whole.scores.mean - small.scores.mean - exact)
    own, count = torch.tensor(errors), torch.tensor(counted)
    assert float(own.std()) < 0.6 * float(count.std())
    assert abs(float(own.mean())) < 0.5 * exact


def test_a_network_without_an_error_can_be_compared():
    logits, y = truth(2000)
    sure = 50 * functional.one_hot(y, CLASSES).double()
    assert math.isfinite(lost(standing(logits, y), standing(sure, y)))
    assert lost(standing(sure, y), standing(sure, y)) == 0


def test_half_a_point_is_good_and_more_is_not():
    """Errors and likelihood fall together, as of a network that loses so many answers at random."""
    logits, y = truth(20_000)
    whole = standing(logits, y)
    good = [as_good(blinded(logits, y, share), whole) for share in (0.0, 0.003, 0.02, 0.1)]
    assert good == [True, True, False, False]


def blinded(logits: torch.Tensor, y: torch.Tensor, share: float) -> Standing:
    """The same network, except that of some rows it knows nothing."""
    dim = logits.clone()
    dim[: int(share * len(y))] = 0
    return standing(dim, y)


def test_on_few_rows_only_what_is_measurably_worse_is_refused():
    logits, y = truth(300)
    whole = standing(logits, y)
    assert as_good(blinded(logits, y, 0.003), whole)
    assert not as_good(blinded(logits, y, 0.5), whole)


def test_of_numbers_a_twentieth_of_the_squared_error_may_be_lost():
    def numbers(error: float) -> Standing:
        square = torch.full((2000,), error, dtype=torch.float64)
        return Standing(Scores(-square, square), square)

    assert as_good(numbers(1.04), numbers(1.0))
    assert not as_good(numbers(1.06), numbers(1.0))


def test_rows_that_count_more_weigh_more_in_every_estimate():
    """A validation row of weight 2 is one that is there twice."""
    splits = data.load("digits")
    model = nets.build("mlp:8", inputs=(64,), outputs=10, seed=0)
    weight = torch.ones(len(splits.valid))
    weight[::3] = 2
    twice = splits.valid.joined(splits.valid.subset(torch.arange(0, len(weight), 3)))
    options = ReduceOptions(force=True)
    found = []
    for valid in (replace(splits.valid, weight=weight), twice):
        run = Reduction(model, splits.train, valid, None, options, None)
        found.append(run.problem.standing(model.eval()))
    weighted, repeated = found
    assert weighted.scores.mean == pytest.approx(repeated.scores.mean, rel=1e-6)
    assert weighted.scores.nll == pytest.approx(repeated.scores.nll, rel=1e-6)
    # The temperature is that of the rows as they are: a detail that moves the third digit.
    assert float(weighted.tempered.mean()) == pytest.approx(
        float(repeated.tempered.mean()), rel=1e-2
    )
