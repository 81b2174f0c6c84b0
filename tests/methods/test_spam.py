"""SpaM: its precisions, log-odds and posterior are those of the Laplace approximation it names."""

import pytest
import torch
from cases import NETS, MethodCase, planned, started, train

from bayespare.assess import narrowed
from bayespare.bayes.curvature import Curvature
from bayespare.bayes.marginal import Laplace, Prior, learn
from bayespare.bayes.marginal.updates import best_log_precision
from bayespare.bayes.posterior import GaussianPosterior
from bayespare.bayes.scores import posterior_log_odds
from bayespare.data import from_tensors
from bayespare.measure import evaluate, predict
from bayespare.methods.wiring import block_sums

MLP = NETS[0]


def fitted(**settings):
    fit = started(MethodCase("spam", settings), MLP)
    train(fit, MLP, epochs=2)
    return fit


def test_precisions_are_the_best_for_the_curvature_that_was_measured():
    weights = fitted().method.weights
    for name, mean in weights.parameters_by_name().items():
        bend = weights.get("curvature", name)
        best = best_log_precision(mean.detach(), bend).float()
        free = (bend > 0) & (best.abs() < 11)
        assert torch.allclose(weights.get("log_precision", name)[free], best[free], atol=1e-4)


@pytest.mark.parametrize("tempering", [0.25, 1.0])
def test_log_odds_are_the_change_of_evidence_at_a_shared_precision(tempering):
    """Summed over the outgoing weights; the likelihood counts 1 / tempering as often."""
    fit = started(MethodCase("spam"), MLP)
    fit.method.tempering = tempering
    train(fit, MLP)
    weights, plan = fit.method.weights, fit.method.plan
    means = weights.parameters_by_name()
    # What was measured already has the factor in it.
    bends = {name: tempering * weights.get("curvature", name) for name in means}
    found = Laplace(means, Curvature(bends, {}, 96), temperature=tempering)
    prior = Prior(means, "layer")
    learn(prior, found, steps=30)
    odds = posterior_log_odds(found, prior)
    by_layer = {n.removesuffix(".weight"): v for n, v in odds.items() if n.endswith("weight")}
    for name, value in block_sums(plan, by_layer).items():
        assert torch.allclose(fit.method.log_odds()[name].double(), value, rtol=1e-3, atol=1e-3)


def test_the_penalty_is_the_prior_at_its_precisions():
    fit = fitted(prior="layer")
    weights = fit.method.weights
    expected = sum(
        float(0.5 * (weights.get("log_precision", n).exp() * p.detach().square()).sum())
        for n, p in weights.parameters_by_name().items()
    )
    assert float(fit.method.kl().detach()) == pytest.approx(expected, rel=1e-5)
    assert float(fit.method.penalty().detach()) == pytest.approx(expected / 96, rel=1e-5)
    (level,) = weights.get("log_precision", "fc1.weight").unique()
    assert weights.get("log_precision", "fc2.weight").unique() != level


def test_nothing_is_judged_before_the_first_look():
    method = started(MethodCase("spam"), MLP).method
    assert all(bool(odds.isposinf().all()) for odds in method.log_odds().values())
    assert method.standard_deviations() == {}
    assert method.update() == {}


def test_a_look_removes_once_and_no_more_than_its_cap():
    fit = fitted(cap=0.3)
    with torch.no_grad():
        for name, value in fit.method.weights.parameters_by_name().items():
            if name == "fc2.weight":
                value[:, :9] = 0
    fit.method.observe(fit.likelihood, planned(MLP)[2])
    assert (fit.method.log_odds()["fc1"] < 0).sum() >= 9
    stayed = fit.method.update(fit.optimizer)
    assert int(stayed["fc1"].sum()) == 12 - 4  # 0.3 of twelve, rounded up
    assert fit.method.update(fit.optimizer) == {}


def test_a_posterior_that_is_too_wide_is_narrowed():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    x = torch.randn(200, 4)
    data = from_tensors(x, model(x).argmax(1))
    wide = GaussianPosterior({"weight": torch.full((3, 4), 5.0)})
    found = narrowed(wide, model, data, None)
    assert found.std["weight"].max() < 0.5
    losses = [
        evaluate(predict(model, x, task="classification", posterior=p, samples=8), data.y)["nll"]
        for p in (wide, found)
    ]
    assert losses[1] < losses[0]
    exact = GaussianPosterior({"weight": torch.full((3, 4), 1e-9)})
    assert narrowed(exact, model, data, None).std["weight"].max() <= 1e-9
