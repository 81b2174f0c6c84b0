"""Features that never vary go from a trained network, and what they added to it stays."""

from dataclasses import replace

import pytest
import torch
from small_runs import SHORT, Problem, small_mlp, table
from torch import Tensor, nn

from bayespare.structure import Verdict, mask
from bayespare.training.candidates import constant_features
from bayespare.training.fit import Fit
from bayespare.training.grown import grown

CASES = {
    "ss-ig": Problem(method="ss-ig"),
    "non-centred": Problem(settings={"centred": False}),
    "bmr": Problem(method="bmr"),
    "flat-ff": Problem(method="flat-ff"),
}


def without_bias() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))


def at_means(problem: Problem, fit: Fit, x: Tensor) -> Tensor:
    """Output of the network as the method has it, all that is left open."""
    whole = grown(problem.make(), fit.method)
    with torch.no_grad():
        return mask(whole, Verdict(fit.method.whole, fit.method.keep))(x)


@pytest.mark.parametrize("problem", CASES.values(), ids=CASES)
def test_the_biases_take_what_they_added(problem):
    fit, data = problem.start(), table()
    before = at_means(problem, fit, data.x)
    fit.fold(constant_features(fit, data), problem.make(), data.x[:2])
    assert fit.method.keep["input"].tolist() == [True] * 5 + [False]
    torch.testing.assert_close(at_means(problem, fit, data.x), before)


def test_without_a_bias_they_stay():
    problem, data = Problem(without_bias), table()
    fit = problem.start()
    fit.fold(constant_features(fit, data), problem.make(), data.x[:2])
    assert fit.method.keep["input"].all()


def test_where_none_varies_the_one_that_is_left_counts_once():
    problem, data = Problem(), table()
    x = data.x[:1].expand(120, -1)
    fit = problem.start()
    before = at_means(problem, fit, x)
    fit.fold(constant_features(fit, replace(data, x=x)), problem.make(), x[:2])
    assert fit.method.keep["input"].sum() == 1
    torch.testing.assert_close(at_means(problem, fit, x), before)


@pytest.mark.parametrize(
    ("trained", "warm", "folds"), [(True, 0, True), (False, 1, True), (False, 0, False)]
)
def test_only_what_has_been_trained_is_kept(trained, warm, folds, monkeypatch):
    """Of random weights there is nothing to keep."""
    calls = []
    original = Fit.fold
    monkeypatch.setattr(Fit, "fold", lambda *a: (calls.append(a), original(*a)))
    problem = Problem(small_mlp, schedule=replace(SHORT, warm=warm), trained=trained)
    search = problem.search()
    search._prepare()
    assert bool(calls) == folds
    assert not search.fit.method.keep["input"][-1]
