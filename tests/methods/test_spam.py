"""SpaM: its precisions, log-odds and posterior are those of the Laplace approximation it names."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from cases import NETS, MethodCase, planned, started, train
from torch import nn

from bayespare import methods, nets, sparsify, trace
from bayespare.assess import narrowing
from bayespare.bayes import scores
from bayespare.bayes.curvature import Curvature, curvature
from bayespare.bayes.likelihood import Gaussian
from bayespare.bayes.marginal import Decay, Laplace, Prior, laplace, learn
from bayespare.bayes.marginal.updates import best_log_precision
from bayespare.bayes.posterior import GaussianPosterior
from bayespare.bayes.scores import posterior_log_odds
from bayespare.data import from_tensors, load
from bayespare.errors import BayespareError
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


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("settings", ["default", "faithful"])
def test_a_sparsity_of_weights_is_reached_by_rank_of_opd(settings, scope):
    """At half of the way half of it where it goes on while training, nothing where it does not."""
    common = {"unit": "weight", "sparsity": 0.8, "scope": scope, "every": 1, "cap": 1.0}
    fit = started(MethodCase("spam", {**common, "settings": settings, "steps": 5}), MLP)
    whole = fit.parameters()
    fit.method.progress = 0.5
    train(fit, MLP)
    fit.update()
    assert fit.parameters() <= 0.6 * whole if settings == "default" else fit.parameters() == whole
    fit.method.progress = 1.0
    train(fit, MLP)
    weights, damage = fit.method.weights, {}
    for name, mean in weights.parameters_by_name().items():
        precision = weights.get("curvature", name) + weights.get("log_precision", name).exp()
        damage[name] = (precision * mean.detach().square()).double()
    keep = scores.masks(damage, 0.8, scope=scope)
    fit.decide()
    left = {n: int(p.count_nonzero()) for n, p in weights.parameters_by_name().items()}
    if settings == "faithful":
        assert 0 <= sum(int(m.sum()) for m in keep.values()) - sum(left.values()) <= 9
        assert whole * 0.2 - 9 <= fit.parameters() <= whole * 0.2
    else:
        assert fit.parameters() <= 0.2 * whole


def test_online_sparsities_of_the_publication():
    """TV9; a last step that is no multiple of ten epochs, and shares below where it starts."""
    published = {10: 0.189, 20: 0.278, 50: 0.545, 90: 0.901, 100: 0.99}
    for epoch, share in published.items():
        assert scores.online_sparsity(epoch, 100, 0.99) == pytest.approx(share, abs=1e-12)
        assert scores.online_sparsity(epoch + 9, 109, 0.99) == pytest.approx(share, abs=1e-12)
    assert scores.online_sparsity(9, 100, 0.99) == 0
    assert scores.online_sparsity(10, 100, 0.05) == pytest.approx(0.05)
    assert scores.online_sparsity(10, 10, 0.7) == pytest.approx(0.7)


def test_published_online_pruning_zeroes_for_a_while():
    """Every tenth epoch the share of the schedule, which grows back; at the end it is all gone."""
    case = {"settings": "faithful", "unit": "weight", "sparsity": 0.8, "online": True, "steps": 5}
    fit = started(MethodCase("spam", case), MLP)
    method, zeros = fit.method, {}
    whole = sum(p.numel() for p in method.weights.parameters_by_name().values())
    for epoch in range(1, 31):
        method.progress = epoch / 30
        train(fit, MLP)
        before = whole - sum(int(p.count_nonzero()) for p in method.means().values())
        fit.update()
        means = method.means()
        zeros[epoch] = before, whole - sum(int(p.count_nonzero()) for p in means.values())
        if epoch in (10, 20):
            # What the history says of an epoch is the network at the share it has come to.
            asked = scores.online_sparsity(epoch, 30, 0.8)
            assert zeros[epoch][1] == pytest.approx(asked * method.total, abs=1)
            assert fit.parameters() <= (1 - asked) * method.total + 1
            odds = method.weight_log_odds()
            assert all(bool(((v <= 0) == (means[n] == 0)).all()) for n, v in odds.items())
    assert all(before == after for epoch, (before, after) in zeros.items() if epoch % 10)
    for epoch in (11, 21):
        assert zeros[epoch][0] < 0.5 * zeros[epoch - 1][1]
    assert not any(bool((~method.weights.get("there", n)).any()) for n in method.sizes)
    fit.decide()
    assert 0.2 * whole - 9 <= fit.parameters() <= 0.2 * whole


def test_removed_weights_stay_zero_in_training_and_know_no_spread():
    fit = started(MethodCase("spam", {"unit": "weight", "sparsity": 0.6}), MLP)
    fit.method.progress = 1.0
    train(fit, MLP)
    fit.update()
    gone = {n: ~fit.method.weights.get("there", n) for n in fit.method.weights.parameter_names()}
    assert sum(int(mask.sum()) for mask in gone.values()) > 20
    train(fit, MLP)
    means, stds = fit.method.means(), fit.method.standard_deviations()
    assert all(not means[n][mask].any() and not stds[n][mask].any() for n, mask in gone.items())
    precisions = fit.method.weights.get("shared", "fc2.weight").unique()
    there = ~gone["fc2.weight"]
    weight, bend = means["fc2.weight"][there], fit.method.weights.get("curvature", "fc2.weight")
    share = (bend[there] / (bend[there] + precisions.exp())).sum()
    assert float(share / weight.square().sum()) == pytest.approx(float(precisions.exp()), rel=1e-2)


def test_published_units_go_by_the_same_share_of_every_group():
    case = {"settings": "faithful", "sparsity": 0.5, "every": 1, "steps": 5}
    fit = started(MethodCase("spam", case), MLP)
    fit.method.progress = 0.5
    train(fit, MLP)
    fit.update()
    assert all(bool((odds > 0).all()) for odds in fit.method.log_odds().values())
    fit.method.progress = 1.0
    train(fit, MLP)
    fit.decide()
    kept = {name: int(line.sum()) for name, line in fit.method.keep.items()}
    assert kept == {"input": 10, "fc1": 6, "fc2": 4}


def test_published_precisions_follow_adam_and_look_every_so_often():
    """From where they were left; a hand-written loop takes the same steps."""
    fit = started(MethodCase("spam", {"settings": "faithful", "every": 2, "steps": 3}), MLP)
    fit.method.progress = 0.0
    train(fit, MLP)
    assert not fit.method.weights.known
    train(fit, MLP, epochs=3)
    weights = fit.method.weights
    means = {n: p.detach().clone() for n, p in weights.parameters_by_name().items()}
    before = {n: weights.get("log_precision", n).clone() for n in means}
    assert any(bool(log.any()) for log in before.values())
    fit.method.observe(fit.likelihood, planned(MLP)[2])
    assert all(torch.equal(weights.get("log_precision", n), before[n]) for n in means)
    fit.method.observe(fit.likelihood, planned(MLP)[2])
    for name, mean in means.items():
        log = before[name].double().requires_grad_()
        bend, square = weights.get("curvature", name).double(), mean.double().square()
        adam = torch.optim.Adam([log], lr=0.1)
        for _ in range(3):
            adam.zero_grad()
            loss = (bend + log.exp()).log().sum() - log.sum() + (log.exp() * square).sum()
            (0.5 * loss / 96).backward()
            adam.step()
        assert torch.allclose(weights.get("log_precision", name), log.float(), atol=1e-3)


@pytest.mark.parametrize("kind", ["scalar", "layer", "unit", "parameter"])
def test_a_prior_begins_where_one_was_left(kind):
    shapes = {"a": torch.zeros(4, 3, 2, 2), "b": torch.zeros(4)}
    old, new = Prior(shapes, kind), Prior(shapes, kind)
    with torch.no_grad():
        for log in old.logs:
            log.normal_()
    new.start_at({n: v.detach() for n, v in old.log_precisions().items()})
    for name, value in old.log_precisions().items():
        assert torch.allclose(new.log_precisions()[name], value, atol=1e-6)


def test_a_posterior_that_is_too_wide_is_narrowed():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    x = torch.randn(200, 4)
    data = from_tensors(x, model(x).argmax(1))
    wide = GaussianPosterior({"weight": torch.full((3, 4), 5.0)})
    found = wide.scaled(narrowing(wide, model, data, None))
    assert found.std["weight"].max() < 0.5
    losses = [
        evaluate(predict(model, x, task="classification", posterior=p, samples=8), data.y)["nll"]
        for p in (wide, found)
    ]
    assert losses[1] < losses[0]
    exact = GaussianPosterior({"weight": torch.full((3, 4), 1e-9)})
    assert narrowing(exact, model, data, None) * exact.std["weight"].max() <= 1e-9


# ------------------------------------------------------------------- curvature
@pytest.mark.parametrize("prior", ["scalar", "layer", "unit", "parameter"])
@pytest.mark.parametrize("structure", ["diag", "kfac"])
def test_evidence_grows_on_digits_while_training(structure, prior):
    """Of the model that is trained: by its weights and by its precisions."""
    splits = load("digits")
    x, y = splits.train.x[:300], splits.train.y[:300]
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    parameters = dict(model.named_parameters())
    learnt = Prior(parameters, prior)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    evidences = []
    for epoch in range(25):
        decay = Decay(learnt, parameters, 1 / len(x))
        for rows in torch.arange(300).split(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            decay.add()
            optimizer.step()
        if epoch % 8 == 0:
            found = laplace(model, "classification", [(x, y)], kind="ggn", structure=structure)
            before = float(found.log_evidence(learnt).detach())
            learn(learnt, found, steps=5)
            evidences += [before, float(found.log_evidence(learnt).detach())]
    assert all(after > before for before, after in pairwise(evidences))
    assert evidences[-1] > evidences[0] + 100


def test_kronecker_curvature_is_what_is_noted():
    fit = started(MethodCase("spam", {"curvature": "kfac", "kind": "ef", "prior": "layer"}), MLP)
    train(fit, MLP)
    method, data = fit.method, planned(MLP)[2]
    method.observe(fit.likelihood, data)
    method.looking = True
    found = curvature(fit.network, fit.likelihood, [(data.x, data.y)], kind="ef", structure="kfac")
    method.looking = False
    for name in method.weights.parameter_names():
        expected = found.factors[name].diagonal() / max(method.tempering, 1e-3)
        got = method.weights.get("curvature", name)
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_what_a_curvature_cannot_do_is_refused():
    case = MethodCase("spam", {"curvature": "kfac", "unit": "weight"})
    with pytest.raises(BayespareError, match="use unit=unit or curvature=diag"):
        started(case, MLP)
    fit = started(MethodCase("spam", {"curvature": "kfac", "max_memory_gb": 1e-6}), MLP)
    with pytest.raises(BayespareError, match="the limit is max_memory_gb=1e-06"):
        fit.method.observe(fit.likelihood, planned(MLP)[2])


@pytest.mark.parametrize("settings", ["default", "faithful"])
def test_faithful_kronecker_factors_are_in_the_form_published(settings, monkeypatch):
    asked = []
    noted = lambda prior, laplace, *_, **__: asked.append(laplace.published)  # noqa: E731
    fit = started(MethodCase("spam", {"curvature": "kfac", "settings": settings}), MLP)
    monkeypatch.setattr("bayespare.methods.spam.learn", noted)
    fit.method._learn(fit_curvature(fit), learning=False)
    assert asked == [settings == "faithful"]


def fit_curvature(fit) -> Curvature:
    data = planned(MLP)[2]
    fit.method.looking = True
    found = curvature(fit.network, fit.likelihood, [(data.x, data.y)], structure="kfac")
    fit.method.looking = False
    return found


class Slope(nn.Module):
    """A parameter in an operation that curvature has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return torch.addcmul(x, self.weight, x.tanh())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_memory_gb": 1e-6}, "the limit is max_memory_gb=1e-06"),
        ({}, r"'1\.weight': the parameter goes into .*addcmul"),
    ],
)
def test_what_its_curvature_cannot_do_is_said_before_anything_is_trained(settings, says):
    middle = nn.BatchNorm2d(2) if settings else Slope()
    model = nn.Sequential(nn.Conv2d(1, 2, 3), middle, nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    train = from_tensors(torch.randn(90, 1, 6, 6), torch.arange(90) % 3)
    rows = []
    with pytest.raises(BayespareError, match=says):
        sparsify(model, train, method="spam", settings=settings, epochs=4, report=rows.append)
    assert rows == []


def test_the_noise_is_what_is_left_on_validation_data():
    """Of training data alone it is MacKay's: more than the residual, by what has been used up."""
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    y = x[:, :1] + 0.5 * torch.randn(60, 1)
    model = nets.build("mlp:8", inputs=(4,), outputs=1, seed=0)
    plan = trace(model, x[:4])
    method = methods.build("spam")
    method.attach(model, plan, examples=40, generator=torch.Generator().manual_seed(0))
    likelihood = Gaussian()
    train_part, held = from_tensors(x[:40], y[:40]), from_tensors(x[40:], y[40:])
    left = {}
    for name, part in (("train", train_part), ("held", held)):
        with torch.no_grad():
            left[name] = float((part.y - model(part.x).view_as(part.y)).square().mean().sqrt())
    method.observe(likelihood, train_part, held)
    assert likelihood.noise_std == pytest.approx(left["held"], rel=1e-4)
    method.observe(likelihood, train_part)
    assert left["train"] < likelihood.noise_std < 3.2 * left["train"]


@pytest.mark.parametrize("tempering", [0.05, 1.0])
def test_noise_of_training_data_alone_counts_what_the_tempered_posterior_uses(tempering):
    torch.manual_seed(0)
    x = torch.randn(200, 4)
    data = from_tensors(x, x[:, :1] + 0.5 * torch.randn(200, 1))
    model = nets.build("mlp:8", inputs=(4,), outputs=1, seed=0)
    likelihood = Gaussian()
    bends = curvature(model, likelihood, [(data.x, data.y)], kind="ggn").diagonals()
    method = methods.build("spam", kind="ggn", samples=None)
    method.attach(model, trace(model, x[:4]), examples=200, generator=torch.Generator())
    method.tempering = tempering
    method.observe(likelihood, data)
    used = 0.0
    for name, bend in bends.items():
        precision = method.weights.get("log_precision", name).exp()
        used += float((bend / (bend + tempering * precision)).sum())
    with torch.no_grad():
        squares = float((data.y - model(data.x).view_as(data.y)).square().sum())
    assert likelihood.noise_std == pytest.approx((squares / (200 - used)) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("structure", ["diag", "kfac"])
@pytest.mark.parametrize("validated", [False, True])
def test_a_weighted_example_is_looked_at_as_that_many(structure, validated):
    """Curvature, precisions and noise; ones are as no weights at all."""
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    data = from_tensors(x, x[:, :1] + 0.5 * torch.randn(60, 1))
    times = torch.randint(0, 4, (60,))

    def looked(data, held):
        model = nets.build("mlp:8", inputs=(4,), outputs=1, seed=0)
        plan = trace(model, x[:4])
        settings = {"kind": "ggn", "curvature": structure, "samples": None}
        method = methods.build("spam", **settings)
        generator = torch.Generator().manual_seed(0)
        method.attach(model, plan, examples=len(data), generator=generator)
        likelihood = Gaussian()
        method.observe(likelihood, data, held if validated else None)
        found = [
            method.weights.get(key, name)
            for key in ("curvature", "log_precision", "shared")
            for name in method.weights.parameter_names()
        ]
        return [*found, likelihood.log_noise.detach()]

    def parts(data):
        return data.subset(torch.arange(40)), data.subset(torch.arange(40, 60))

    copies = [
        part.subset(torch.arange(len(part)).repeat_interleave(often))
        for part, often in zip(parts(data), times.split([40, 20]), strict=True)
    ]
    weighted = looked(*parts(replace(data, weight=times.float())))
    for found, expected in zip(weighted, looked(*copies), strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    ones = looked(*parts(replace(data, weight=torch.ones(60))))
    for found, expected in zip(ones, looked(*parts(data)), strict=True):
        assert torch.equal(found, expected)


def test_regression_is_tempered_upwards_from_one_and_ends_untempered():
    torch.manual_seed(0)
    x = torch.randn(120, 4)
    data = from_tensors(x, x[:, :1] - x[:, 1:2] + 0.3 * torch.randn(120, 1))
    model = nets.build("mlp:8", inputs=(4,), outputs=1, seed=0)
    result = sparsify(model, data, method="spam", epochs=8, baseline=False)
    explored = [row["tempering"] for row in result.history if row["phase"] == "explore"]
    assert explored == sorted(explored)
    assert 1 <= explored[0] < explored[-1] == 2
    for point in result.frontier:
        cooled = [r["tempering"] for r in result.history if r["phase"] == f"cool {point.name}"]
        assert set(cooled) == {1.0}
