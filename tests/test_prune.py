"""``prune``: every criterion has its own ranking, and the same refit, training and measurements."""

import copy
from typing import get_args

import pytest
import torch
from torch import nn

import bayespare
from bayespare import nets
from bayespare.bayes import scores
from bayespare.bayes.likelihood import likelihood_for
from bayespare.data import from_tensors
from bayespare.errors import BayespareError
from bayespare.posthoc.criteria import unit_scores, weight_scores
from bayespare.posthoc.settings import Criterion
from test_reduce import digits, taught

QUICK = {"finetune": 1, "samples": 300}
SHORT = {"finetune": 0, "samples": 300}
CRITERIA = get_args(Criterion)


def nonzeros(model: nn.Module) -> int:
    return sum(int(p.count_nonzero()) for p in model.parameters())


@pytest.mark.parametrize(
    ("criterion", "unit"), [*((c, "weight") for c in CRITERIA), ("opd", "unit"), ("grasp", "unit")]
)
def test_every_criterion_gives_a_smaller_network_that_is_measured(criterion, unit, tmp_path):
    model, splits = digits("mlp:48,24")
    before = copy.deepcopy(model.state_dict())
    result = bayespare.prune(
        model,
        splits.train,
        valid=splits.valid,
        test=splits.test,
        criterion=criterion,
        unit=unit,
        sparsity=0.5,
        **SHORT,
    )
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    metrics = result.metrics
    if unit == "unit":
        assert {n: k for n, (k, _) in metrics["units"].items() if n != "input"} == {
            "fc1": 24,
            "fc2": 12,
        }
    else:
        whole = sum(p.numel() for p in model.parameters())
        assert abs(metrics["compact"]["nonzeros"] - 0.5 * whole) < 0.03 * whole
    assert metrics["method"] == "prune"
    assert metrics["compact"]["accuracy"] > (0.5 if criterion != "random" else 0.2)
    loaded = bayespare.load(result.save(tmp_path / "run"), copy.deepcopy(model))
    assert torch.equal(loaded.model(splits.test.x[:3]), result.model(splits.test.x[:3]))


def test_convolutions_are_pruned_too():
    model, splits = digits("lenet5")
    for unit in ("unit", "weight"):
        result = bayespare.prune(
            model, splits.train, valid=splits.valid, sparsity=0.3, unit=unit, **SHORT
        )
        size = "parameters" if unit == "unit" else "nonzeros"
        assert result.metrics["compact"][size] < 0.85 * result.metrics["dense"][size]
        assert result.metrics["compact_equals_masked"] <= 1e-5


def test_without_refit_and_training_weights_are_the_ones_given_by_rank():
    model, splits = digits("mlp:48,24")
    common = {"unit": "weight", "sparsity": 0.6, "survivors": False, "finetune": 0}
    result = bayespare.prune(
        model, splits.train, valid=splits.valid, criterion="magnitude", **common
    )
    masks = scores.masks(scores.magnitude(dict(model.named_parameters())), 0.6)
    expected = copy.deepcopy(model)
    scores.apply_masks(expected, masks)
    x = splits.test.x
    assert torch.allclose(result.model(x), expected(x), atol=1e-5)
    refitted = bayespare.prune(
        model,
        splits.train,
        valid=splits.valid,
        criterion="magnitude",
        **{**common, "survivors": True},
    )
    gap = [(r.model(x) - model(x)).square().mean() for r in (result, refitted)]
    assert gap[1] < 0.5 * gap[0]


def test_several_shares_make_a_frontier_and_rounds_rank_anew():
    model, splits = digits("mlp:48,24")
    rows = []
    result = bayespare.prune(
        model,
        splits.train,
        valid=splits.valid,
        unit="weight",
        criterion="snip",
        sparsity=(0.9, 0.5),
        rounds=2,
        report=rows.append,
        **SHORT,
    )
    assert [p.name for p in result.frontier] == ["s90", "s50"]
    whole = sum(p.numel() for p in model.parameters())
    removals = [row for row in rows if row["phase"] == "prune"]
    left = [row["nonzeros"] / whole for row in removals]
    assert [row["epoch"] for row in removals] == [1, 2, 3, 4]
    assert [row["sparsity"] for row in removals] == [0.5, 0.5, 0.9, 0.9]
    assert left == pytest.approx([0.5**0.5, 0.5, 0.1**0.5, 0.1], abs=0.01)


def test_a_share_does_not_depend_on_the_others():
    model, splits = digits("mlp:48,24")
    given = {"valid": splits.valid, "unit": "weight", "rounds": 2, **SHORT}
    alone = bayespare.prune(model, splits.train, sparsity=0.8, **given)
    both = bayespare.prune(model, splits.train, sparsity=(0.5, 0.8), **given)
    state = next(p for p in both.frontier if p.name == "s80").model.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in alone.model.state_dict().items())


def test_scores_of_units_are_sums_over_what_computes_them():
    model, splits = digits("mlp:48,24")
    plan = bayespare.trace(model, splits.train.x[:4])
    weights = weight_scores(
        "l2",
        model,
        likelihood_for("classification"),
        [],
        1,
        torch.Generator(),
    )
    found = unit_scores(plan, weights)
    rows = model.fc1.weight.square().sum(1) + model.fc1.bias.square()
    assert set(found) == {"fc1", "fc2"}
    assert torch.allclose(found["fc1"], rows.detach().double(), rtol=1e-5)


def test_opd_is_that_of_the_precisions_of_highest_evidence():
    model, splits = digits("mlp:48,24")
    some = splits.train.subset(torch.arange(200))
    batches = [(some.x, some.y)]
    arguments = (model, likelihood_for("classification"), batches, 200)
    found = weight_scores("opd", *arguments, torch.Generator().manual_seed(0), prior="parameter")
    bend = bayespare.bayes.curvature.curvature(
        model, "classification", batches, generator=torch.Generator().manual_seed(0)
    ).diagonal
    for name, score in found.items():
        # At the closed form P theta^2 = H / delta.
        there = bend[name] > 1e-4
        square = dict(model.named_parameters())[name].detach().square()
        h = bend[name]
        delta = 0.5 * (-h + (h * h + 4 * h / square).sqrt())
        inner = there & (delta < 1e5) & (delta > 1e-4)
        assert torch.allclose(score[inner], (h / delta)[inner], rtol=2e-2)


def test_regression_is_pruned_too():
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    y = (x[:, :1] - x[:, 1:2] * x[:, 2:3]) + 0.1 * torch.randn(400, 1)
    train = from_tensors(x[:300], y[:300])
    valid = from_tensors(x[300:], y[300:])
    model = taught(nets.build("mlp:32", inputs=(6,), outputs=1, seed=0), train, 20)
    result = bayespare.prune(model, train, valid=valid, sparsity=0.5, **QUICK)
    assert result.metrics["compact"]["rmse"] < 2 * result.metrics["dense"]["rmse"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "sparsity= is missing"),
        ({"sparsity": 1.5}, "between 0 and 1"),
        ({"sparsity": "0.9"}, "sparsity='0.9': must be a number between 0 and 1"),
        ({"sparsity": [0.5, "0.9"]}, "sparsity='0.9': must be a number between 0 and 1"),
        ({"sparsity": 0.5, "lr": "1"}, "lr='1': must be a number above 0"),
        ({"sparsity": 0.5, "criterion": "magnitud"}, "did you mean 'magnitude'"),
        ({"sparsity": 0.5, "scope": "globl"}, "did you mean 'global'"),
        ({"sparsity": 0.5, "prior": "layr"}, "did you mean 'layer'"),
        ({"sparsity": 0.5, "criterion": "l2", "prior": "unit"}, "only criterion=opd has a prior"),
        ({"sparsity": 0.5, "rounds": 0}, "rounds=0"),
        ({"sparsity": 0.5, "share": 0.1}, "unknown option 'share'"),
    ],
)
def test_bad_options_are_refused(options, says):
    model, splits = digits("mlp:48,24")
    with pytest.raises(BayespareError, match=says):
        bayespare.prune(model, splits.train, **options)


@pytest.mark.parametrize("unit", ["unit", "weight"])
def test_where_the_loss_is_zero_predictions_are_those_of_the_network(unit):
    """Without curvature nothing bounds the spread but validation data."""
    torch.manual_seed(0)
    y = torch.arange(600) % 4
    x = torch.randn(600, 20) + 8 * nn.functional.one_hot(y, 20)
    model = nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(800):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x[:400]), y[:400]).backward()
        adam.step()
    train, valid, test = (
        from_tensors(x[a], y[a]) for a in (slice(400), slice(400, 500), slice(500, 600))
    )
    result = bayespare.prune(
        model, train, valid=valid, test=test, sparsity=0.5, finetune=15, unit=unit
    )
    plain = float((result.model(x[500:]).argmax(1) == y[500:]).float().mean())
    averaged = float((result.predict(x[500:]).probs.argmax(1) == y[500:]).float().mean())
    assert plain > 0.95
    assert averaged >= plain - 0.02


@pytest.mark.parametrize("unit", ["unit", "weight"])
def test_a_network_of_tokens_is_loaded_again(unit, tmp_path):
    torch.manual_seed(0)
    x = torch.randint(0, 9, (120, 6))
    y = (x[:, 0] > 4).long()

    def fresh() -> nn.Module:
        return nn.Sequential(
            nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 2)
        )

    tokens = from_tensors(x, y, tokens=True)
    options = {"sparsity": 0.5, "finetune": 1, "force": True, "unit": unit}
    result = bayespare.prune(fresh(), tokens, valid=tokens, **options)
    result.save(tmp_path / "run")
    loaded = bayespare.load(tmp_path / "run", fresh())
    assert torch.equal(loaded.model(x), result.model(x))
