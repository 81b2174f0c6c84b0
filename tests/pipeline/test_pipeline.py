"""The whole job in one call, on the small real data sets, and the three-call form beside it."""

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from digits_runs import METHODS, assert_same_run, digits_net, short, tensors_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayespare import (
    count,
    nets,
    sparsify,
    trace,
)
from bayespare.data import Dataset, from_tensors, load
from bayespare.methods import registry as methods
from bayespare.result import summary_line

# -------------------------------------------------------------- classification


def test_a_network_gets_smaller_and_stays_good(result, digits):
    dense, small = result.metrics["dense"], result.metrics["compact"]
    assert dense["parameters"] == result.metrics["parameters_before"] == 64 * 32 + 32 + 528 + 85
    sizes = [point.summary["parameters"] for point in result.frontier]
    assert min(sizes) < 0.7 * dense["parameters"]
    assert small["parameters"] < 0.9 * dense["parameters"]
    assert small["accuracy"] > dense["accuracy"] - 0.05 > 0.85
    counted = count(result.model, digits[1].x[:1])
    for key in ("parameters", "macs", "nonzeros", "bytes"):
        assert small[key] == getattr(counted, key)
    assert small["parameters"] == sum(p.numel() for p in result.model.parameters())
    assert result.metrics["compact_equals_masked"] <= 1e-5


def test_the_metrics_hold_what_is_promised(result):
    metrics = result.metrics
    for name in ("dense", "compact"):
        wanted = {"accuracy", "nll", "ece", "brier", "parameters", "nonzeros", "bytes", "macs"}
        assert wanted <= set(metrics[name])
        assert set(metrics[name]["latency_ms"]) == {"1", "256"}
        assert metrics[name]["peak_memory_bytes"] > 0
    assert set(metrics["stages"]) == {"dense", "relaxed", "pruned", "finetuned"}
    assert (metrics["method"], metrics["seed"], metrics["measured_on"]) == ("ss-ghs", 0, "test")
    assert metrics["n_train"] + metrics["n_valid"] == 400
    assert set(metrics["time_s"]) == {"dense_training", "training", "finetuning"}
    assert all(seconds > 0 for seconds in metrics["time_s"].values())
    assert metrics["units"] == {n: list(k) for n, k in result.verdict.kept.items()}
    json.dumps(metrics, allow_nan=False)
    json.dumps(result.config, allow_nan=False)
    text = str(result)
    assert f"{metrics['parameters_before']:,} -> {metrics['compact']['parameters']:,}" in text
    assert "\n" not in text
    assert ("warning" in text) == bool(metrics["warnings"])
    told = summary_line({**metrics, "warnings": ["a", "b"]})
    assert told.endswith(" | 2 warnings in metrics['warnings']")
    assert repr(result) == f"<bayespare.Result: {text}>"
    assert len(repr(result.frontier)) < 60 * len(result.frontier)


def test_the_metrics_are_those_of_the_model_on_the_test_data(result, digits):
    _, test = digits
    with torch.no_grad():
        output = result.model.eval()(test.x)
    compact = result.metrics["compact"]
    assert compact["accuracy"] == pytest.approx((output.argmax(1) == test.y).double().mean().item())
    loss = nn.functional.cross_entropy(output, test.y).item()
    assert compact["nll"] == pytest.approx(loss, rel=1e-4)


def test_the_model_is_made_of_stock_layers_and_its_posterior_fits(result, digits):
    names = {type(module).__module__ for module in result.model.modules()}
    assert all(n.startswith("torch.nn") or n == "bayespare.structure.select" for n in names)
    result.posterior.checked(result.model)
    prediction = result.predict(digits[1].x[:7], samples=8)
    assert prediction.probs.shape == (7, 5)
    torch.testing.assert_close(prediction.probs.sum(1).double(), torch.ones(7).double())


def test_the_frontier_is_sorted_and_holds_the_choice(result):
    sizes = [point.summary["parameters"] for point in result.frontier]
    assert sizes == sorted(sizes)
    assert [p.summary["chosen"] for p in result.frontier].count(True) == 1
    chosen = next(p for p in result.frontier if p.summary["chosen"])
    assert chosen is result.point
    assert chosen.model is result.model
    for point in result.frontier:
        assert point.summary["compact_equals_masked"] <= 1e-5
        assert sum(p.numel() for p in point.model.parameters()) == point.summary["parameters"]


def test_log_odds_and_verdict_speak_of_every_unit(result):
    for group in result.plan.groups:
        odds, keep = result.log_odds[group.name], result.verdict.of(group)
        assert len(odds) == len(keep) == group.size
    assert result.verdict.kept["input"][0] < 64


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("settings", [{}, {"settings": "faithful"}], ids=["default", "faithful"])
def test_every_method_goes_all_the_way(method, settings, digits):
    """On digits, whose constant pixels are removed first."""
    got = short(digits, method=method, settings=settings, epochs=3, baseline=False)
    assert got.metrics["compact_equals_masked"] <= 1e-5
    assert math.isfinite(got.metrics["compact"]["nll"])
    assert "dense" not in got.metrics
    assert got.metrics["compact"]["parameters"] < got.metrics["parameters_before"]


@pytest.mark.parametrize(("settings", "narrows"), [({}, True), ({"settings": "faithful"}, False)])
def test_posteriors_are_as_wide_as_validation_data_ask_for(settings, narrows, digits, monkeypatch):
    looked = []

    def narrowing(posterior, model, valid, noise_std):
        looked.append((posterior, len(valid)))
        return 0.25

    monkeypatch.setattr("bayespare.assess.narrowing", narrowing)
    got = short(digits, method="bmr", settings=settings, epochs=3, baseline=False)
    assert bool(looked) == narrows
    assert {rows for _, rows in looked} <= {got.metrics["n_valid"]}
    assert got.metrics["spread"] == (0.25 if narrows else 1.0)
    if narrows:
        wanted = [{n: 0.25 * std for n, std in fitted.std.items()} for fitted, _ in looked]
        assert any(all(torch.equal(got.posterior.std[n], w[n]) for n in w) for w in wanted)


@pytest.mark.parametrize("method", ["bmr", "spam"])
@pytest.mark.parametrize(("unit", "judged"), [("weight", False), ("unit", True)])
def test_units_that_follow_their_weights_are_not_called_undecided(method, unit, judged, digits):
    got = short(digits, method=method, unit=unit, epochs=3, baseline=False)
    assert bool(got.metrics["separation"]["undecided"]) is judged
    assert judged or not any("would separate" in text for text in got.metrics["warnings"])


def test_what_evidence_foretold_is_checked_and_noted(digits):
    got = short(digits, method="bmr", unit="weight", settings={"warm_up": 1}, baseline=False)
    checked = [row for row in got.history if "predicted_rise" in row]
    assert [r["predicted"] for r in got.metrics["criterion"]] == [
        row["predicted_rise"] for row in checked
    ]
    assert any(row["predicted_rise"] > 0 for row in checked)


def test_a_layer_that_learnt_nothing_is_in_the_warnings(digits, monkeypatch):
    monkeypatch.setattr("bayespare.methods.bmr.COLLAPSED", 2.0)
    got = short(digits, method="bmr", epochs=3, baseline=False)
    said = [text for text in got.metrics["warnings"] if "no better than before the data" in text]
    assert said
    assert len(said) == len(set(said))


@pytest.mark.parametrize("settings", [{}, {"settings": "faithful"}], ids=["default", "faithful"])
def test_convolutions_go_all_the_way(settings):
    torch.manual_seed(0)
    x = torch.randn(160, 1, 20, 20)
    x[:80, :, :10] += 1
    data = from_tensors(x, torch.arange(160) // 80)
    model = nets.build("lenet5", inputs=(1, 20, 20), outputs=2, seed=0)
    got = sparsify(model, data, epochs=2, batch=32, settings=settings, baseline=False, device="cpu")
    assert got.metrics["compact_equals_masked"] <= 1e-5
    assert got.metrics["measured_on"] == "validation"
    kept = got.verdict.kept
    assert set(kept) == {"conv1", "conv2", "fc1.inputs", "fc1"}
    if settings:
        assert kept["fc1.inputs"][0] == 4 * kept["conv2"][0] or kept["fc1.inputs"] == (200, 200)


# ------------------------------------------------------------------ regression


def test_regression_is_in_the_target_s_units():
    splits = load("diabetes")
    model = nets.build("mlp:16", inputs=(10,), outputs=1, seed=0)
    got = sparsify(
        model, splits.train, test=splits.test, epochs=60, batch=16, method="ss-gl", device="cpu"
    )
    mean, std = splits.train.target_scale
    truth = splits.test.y.double() * std + mean
    constant = (truth - mean).square().mean().sqrt().item()
    assert got.metrics["compact"]["rmse"] < 0.9 * constant
    assert got.metrics["compact"]["parameters"] < got.metrics["parameters_before"]
    assert 0.1 < got.point.noise_std < 1.5
    with torch.no_grad():
        output = got.model.eval()(splits.test.x)[:, 0].double() * std + mean
    rmse = (output - truth).square().mean().sqrt().item()
    assert got.metrics["compact"]["rmse"] == pytest.approx(rmse, rel=1e-4)
    assert got.point.summary["valid_rmse"] > 1
    # Of a Gaussian around the mean with that error it is this, in the target's units as well.
    best = math.log(got.point.summary["valid_rmse"] * math.sqrt(2 * math.pi * math.e))
    assert best - 0.01 < got.point.summary["valid_nll"] < best + 1
    assert got.task == "regression"


def test_one_hot_columns_go_together():
    torch.manual_seed(0)
    category = torch.randint(3, (200,))
    x = torch.cat((torch.randn(200, 2), nn.functional.one_hot(category, 3).float()), 1)
    data = from_tensors(x, (x[:, 0] > 0).long())
    data = replace(data, feature_groups=(0, 1, 2, 2, 2))
    model = nets.build("mlp:8", inputs=(5,), outputs=2, seed=0)
    got = sparsify(model, data, epochs=4, batch=16, baseline=False, device="cpu")
    assert got.verdict.kept["input"][1] == 3
    assert len(got.log_odds["input"]) == 3


# ---------------------------------------------------------------------- inputs


def test_a_loader_is_as_good_as_a_dataset(digits):
    train, test = digits

    def batches(data: Dataset) -> DataLoader[Any]:
        return DataLoader(TensorDataset(data.x, data.y), batch_size=37)

    options = {"epochs": 2, "batch": 32, "device": "cpu"}
    first = sparsify(digits_net(), batches(train), test=batches(test), **options)
    bare = [replace(d, transform=None, features=(), feature_groups=None) for d in (train, test)]
    assert_same_run(first, sparsify(digits_net(), bare[0], test=bare[1], **options))


def test_a_network_that_is_right_by_luck_is_trained():
    """Where classes lie far apart a random one may be; but it is not sure."""
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    x[:, 0] += 8 * y - 4
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[0].weight[:, 0], model[2].weight[1] = 0.1, 0.1
    assert (model(x).argmax(1) == y).all()
    got = sparsify(model, from_tensors(x, y), epochs=4, batch=32, device="cpu")
    assert got.metrics["time_s"]["dense_training"] is not None


@pytest.mark.parametrize(("steps", "sureness"), [(60, 1), (12, 1000)])
def test_a_trained_network_is_its_own_reference(steps, sureness, digits):
    """However large its loss is where it is wrong."""
    train, test = digits
    model = digits_net()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train.x), train.y).backward()
        optimizer.step()
    with torch.no_grad():
        list(model.children())[-1].weight *= sureness
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    got = sparsify(model, train, test=test, epochs=4, batch=32, device="cpu")
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert {row["phase"] for row in got.history if row["phase"] in ("warm", "dense")} == set()
    with torch.no_grad():
        accuracy = (model.eval()(test.x).argmax(1) == test.y).double().mean().item()
    assert got.metrics["dense"]["accuracy"] == pytest.approx(accuracy)
    assert got.metrics["time_s"]["dense_training"] is None


def test_without_test_data_the_figures_are_validation_s(digits):
    train, _ = digits
    got = sparsify(digits_net(), train, epochs=2, batch=32, baseline=False, device="cpu")
    assert got.metrics["measured_on"] == "validation"
    assert got.metrics["n_test"] == got.metrics["n_valid"] == 40
    chosen = got.point.summary
    assert got.metrics["compact"]["accuracy"] == pytest.approx(chosen["valid_accuracy"])


def test_given_validation_data_leave_the_training_data_whole(digits):
    train, test = digits
    got = sparsify(digits_net(), train, valid=test, epochs=2, batch=32, baseline=False)
    assert (got.metrics["n_train"], got.metrics["n_valid"]) == (400, len(test))


def test_test_data_choose_nothing(digits):
    train, test = digits
    wrong = replace(test, y=(test.y + 1) % 5)
    first = short(digits, epochs=2, baseline=False)
    second = short((train, wrong), epochs=2, baseline=False)
    one, other = tensors_of(first), tensors_of(second)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert first.metrics["compact"]["accuracy"] > second.metrics["compact"]["accuracy"]


# ------------------------------------------------------------ one's own loop


@pytest.mark.parametrize("method_name", METHODS)
def test_three_calls_are_enough_in_one_s_own_loop(method_name, digits):
    """attach, penalty, update: nothing of the pipeline, a plain optimiser, units go."""
    train, test = digits
    network = digits_net()
    plan = trace(network, train.x[:4])
    torch.manual_seed(0)
    method = methods.build(method_name)
    method.attach(network, plan, examples=len(train))
    method.tempering = 0.1
    optimizer = torch.optim.Adam(
        [{"params": network.parameters(), "lr": 2e-3}, {"params": method.parameters(), "lr": 0.05}]
    )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(train))
        for index in order.split(20):
            yield train.x[index], train.y[index]

    before = copy.deepcopy(method.keep)
    losses = []
    for epoch in range(40):
        if epoch == 30:
            method.decide(optimizer)
        network.train()
        for x, y in batches():
            loss = nn.functional.cross_entropy(network(x), y) + method.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        method.update(optimizer)
    kept = {name: int(line.sum()) for name, line in method.keep.items()}
    assert all(kept[name] <= len(line) for name, line in before.items())
    assert sum(kept.values()) < 0.8 * plan.size
    assert network.fc1.weight.shape == (kept["fc1"], kept["input"])
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    with torch.no_grad():
        accuracy = (network.eval()(test.x).argmax(1) == test.y).double().mean().item()
    assert accuracy > 0.85
