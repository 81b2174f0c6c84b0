"""The whole job in one call, on the small real data sets, and the three-call form beside it."""

import copy
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayespare import (
    BayespareError,
    NonFiniteLossError,
    Options,
    Result,
    UnsupportedStructureError,
    count,
    nets,
    pipeline,
    sparsify,
    trace,
)
from bayespare import options as options_module
from bayespare.bayes.posterior import GaussianPosterior
from bayespare.data import Dataset, from_tensors, load
from bayespare.methods import registry as methods
from bayespare.training import budget
from bayespare.training.fit import Fit
from bayespare.training.pace import Pace

METHODS = ["ss-ig", "ss-gl", "ss-ghs"]


class Killed(Exception):
    """Stands for a process that ends."""


@pytest.fixture(scope="module")
def digits() -> tuple[Dataset, Dataset]:
    """A few hundred digits, half of the classes."""
    splits = load("digits")
    few = replace(splits.train, classes=splits.train.classes[:5])
    train, test = (
        replace(part, classes=few.classes).subset(part.y < 5)
        for part in (splits.train, splits.test)
    )
    return train.subset(torch.arange(400)), test


def digits_net() -> nn.Module:
    return nets.build("mlp:32,16", inputs=(64,), outputs=5, seed=0)


def short(digits: tuple[Dataset, Dataset], **options: Any) -> Result:
    train, test = digits
    settings = {"epochs": 8, "batch": 32, "device": "cpu"}
    return sparsify(digits_net(), train, test=test, **{**settings, **options})


@pytest.fixture(scope="module")
def result(digits: tuple[Dataset, Dataset]) -> Result:
    """One run that is longer than the others and looked at from all sides."""
    return short(digits, epochs=48, batch=16)


def tensors_of(result: Result) -> dict[str, Tensor]:
    named = {}
    for point in result.frontier:
        for part in (point.model.state_dict(), point.posterior.std):
            named |= {f"{point.name}/{len(named)}/{name}": t for name, t in part.items()}
    return named | {f"odds/{name}": odds for name, odds in result.log_odds.items()}


def assert_same_run(first: Result, second: Result) -> None:
    one, other = tensors_of(first), tensors_of(second)
    assert list(one) == list(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert first.point.name == second.point.name
    timed = {"latency_ms", "peak_memory_bytes", "time_s", "load_average"}

    def untimed(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: untimed(v) for k, v in value.items() if k not in timed}
        return value

    assert untimed(first.metrics) == untimed(second.metrics)


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

    def narrowed(posterior, model, valid, noise_std):
        looked.append(len(valid))
        return GaussianPosterior({name: 0.25 * std for name, std in posterior.std.items()})

    monkeypatch.setattr("bayespare.assess.narrowed", narrowed)
    got = short(digits, method="bmr", settings=settings, epochs=3, baseline=False)
    assert bool(looked) == narrows
    assert set(looked) <= {got.metrics["n_valid"]}


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


def test_a_budget_is_met(digits):
    got = short(digits, epochs=24, batch=16, baseline=False, max_params=1500)
    assert got.metrics["compact"]["parameters"] <= 1500
    assert all(p.summary["parameters"] <= 1500 for p in got.frontier)
    assert got.config["max_params"] == 1500


@pytest.mark.parametrize(
    ("limits", "key", "most"),
    [({"max_macs": 1500}, "macs", 1500), ({"sparsity": 0.6}, "parameters", 1077)],
    ids=str,
)
def test_other_budgets_are_met_too(limits, key, most, digits):
    got = short(digits, baseline=False, finetune=1, **limits)
    assert got.metrics["compact"][key] <= most
    assert all(p.summary[key] <= most for p in got.frontier)
    assert {name: got.config[name] for name in limits} == limits


def test_a_time_that_is_longer_when_it_is_measured_again_is_said(digits, monkeypatch):
    monkeypatch.setattr(
        budget, "latency", lambda models, *_, **__: {n: {"1": 1e-9} for n in models}
    )
    got = short(digits, epochs=2, baseline=False, max_latency_ms=1e-6)
    (warning,) = [text for text in got.metrics["warnings"] if "max_latency_ms" in text]
    assert "max_latency_ms=1e-06: measured again" in warning
    assert f"{got.metrics['compact']['latency_ms']['1']:.3g} ms" in warning


# ------------------------------------------------------ how long, how fast, of what


def test_a_first_look(digits):
    train, test = digits
    got = sparsify(digits_net(), train, test=test, quick=True, batch=3, device="cpu")
    assert got.config["epochs"] == 7
    assert got.metrics["quick"]
    assert "dense" not in got.metrics
    assert {row["phase"] for row in got.history}.isdisjoint({"dense"})
    assert got.metrics["warnings"][0].startswith("quick=true: 7 epochs, a tenth of the usual")


def test_without_fine_tuning_the_network_is_as_it_was_decided(digits):
    got = short(digits, epochs=3, finetune=0, baseline=False)
    stages = got.metrics["stages"]
    # Cut and whole add up in another order.
    assert stages["finetuned"] == pytest.approx(stages["pruned"], rel=1e-6)
    assert not [row for row in got.history if row["phase"].startswith("cool")]
    assert got.metrics["time_s"]["finetuning"] == 0
    more = short(digits, epochs=3, finetune=2, baseline=False)
    cooled = [row["epoch"] for row in more.history if row["phase"].startswith("cool")]
    assert cooled == [1, 2] * len(more.frontier)


def test_the_learning_rate_reaches_every_phase(digits, monkeypatch):
    rates: dict[str, float] = {}
    original = Fit.start.__func__

    def start(cls: type[Fit], *arguments: Any) -> Fit:
        rates["method"] = arguments[-1]
        return original(cls, *arguments)

    def dense(*_: Any, rate: float, **__: Any) -> None:
        rates["dense"] = rate

    monkeypatch.setattr(Fit, "start", classmethod(start))
    monkeypatch.setattr(pipeline, "train_dense", dense)
    usual, slow = (short(digits, epochs=2, lr=lr) for lr in (1e-3, 1e-4))
    assert rates == {"method": pytest.approx(0.1), "dense": 1e-4}
    assert slow.config["lr"] == 1e-4
    # An epoch at a tenth of the rate gets less far.
    assert slow.history[1]["train_nll"] > usual.history[1]["train_nll"] + 0.05


@pytest.mark.parametrize("folder", [None, "run"])
def test_a_time_is_turned_into_epochs_once(folder, digits, tmp_path, monkeypatch):
    """A run that goes on has the epochs it began with, however fast the machine is then."""
    train, _ = digits
    held = train.subset(torch.arange(360))  # a tenth is held out
    where = None if folder is None else tmp_path / folder
    options = {"time": "30s", "batch": 32, "device": "cpu", "folder": where, "baseline": False}
    epochs = []
    for pace in (Pace(0.5, 1.0), Pace(1.0, 2.0)):
        monkeypatch.setattr(options_module, "measure_pace", lambda *_, pace=pace: pace)
        asked = Options(**{k: v for k, v in options.items() if k != "folder"})
        epochs.insert(0, asked.timed(digits_net(), trace(digits_net(), train.x[:4]), held).epochs)

    def kill(row: dict[str, Any]) -> None:
        raise Killed

    with pytest.raises(Killed):
        sparsify(digits_net(), train, report=kill, **options)
    monkeypatch.setattr(options_module, "measure_pace", lambda *_: Pace(0.5, 1.0))
    got = sparsify(digits_net(), train, **options)
    assert got.config["time"] == "30s"
    if folder is None:
        assert got.config["epochs"] == epochs[1] > epochs[0]
    else:
        assert got.config["epochs"] == epochs[0]


def test_groups_that_are_kept_and_features_alone(digits):
    kept = short(digits, epochs=3, baseline=False, keep=("fc1",))
    assert set(kept.verdict.kept) == {"input", "fc2"}
    assert kept.model.fc1[1].weight.shape[0] == 32
    assert kept.config["keep"] == ["fc1"]
    alone = short(digits, epochs=3, baseline=False, unit="feature")
    assert set(alone.verdict.kept) == {"input"}
    assert alone.verdict.kept["input"][0] < 64
    assert alone.model.fc2.weight.shape == (16, 32)
    assert alone.metrics["compact_equals_masked"] <= 1e-5


@pytest.mark.parametrize("how", ["stops", "ends in nothing"])
def test_a_dense_network_that_diverges_loses_nothing(how, digits, monkeypatch, caplog):
    whole = short(digits, epochs=2, baseline=False)

    def diverge(network: nn.Module, *_: Any, **__: Any) -> None:
        if how == "stops":
            raise NonFiniteLossError("the loss became nan")
        with torch.no_grad():
            network.fc1.weight.fill_(torch.nan)

    monkeypatch.setattr(pipeline, "train_dense", diverge)
    got = short(digits, epochs=2)
    one, other = tensors_of(got), tensors_of(whole)
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert "dense" not in got.metrics
    assert got.metrics["time_s"]["dense_training"] is None
    assert got.metrics["warnings"][0].startswith("the dense network diverged (")
    assert got.metrics["warnings"][0] in caplog.text
    json.dumps(got.metrics, allow_nan=False)


# ----------------------------------------------------- the same again, or killed


def dropping() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 5))


@pytest.mark.parametrize("make", [digits_net, dropping])
def test_the_same_seed_gives_the_same_result(make, digits):
    train, test = digits
    options = {"test": test, "epochs": 3, "batch": 32, "device": "cpu"}
    torch.manual_seed(1)
    first = sparsify(make(), train, **options)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    model = make()
    torch.set_rng_state(state)
    second = sparsify(model, train, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_run(first, second)
    third = sparsify(make(), train, seed=1, **options)
    assert third.metrics["compact"]["nll"] != first.metrics["compact"]["nll"]


@pytest.mark.parametrize("make", [digits_net, dropping])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_a_killed_run_goes_on_where_it_was(make, count, digits, tmp_path):
    train, test = digits
    options = {"test": test, "epochs": 6, "batch": 32, "device": "cpu"}
    whole = sparsify(make(), train, folder=tmp_path / "whole", **options)
    calls = itertools.count(1)

    def kill(row: dict[str, Any]) -> None:
        if next(calls) == count:
            raise Killed

    with pytest.raises(Killed):
        sparsify(make(), train, folder=tmp_path / "killed", report=kill, **options)
    resumed = sparsify(make(), train, folder=tmp_path / "killed", **options)
    assert_same_run(whole, resumed)
    keys = [[(row["phase"], row["epoch"]) for row in run.history] for run in (whole, resumed)]
    assert keys[0] == keys[1]


def test_a_killed_run_goes_on_as_the_run_it_was_alone(digits, tmp_path):
    train, _ = digits
    options = {"epochs": 6, "batch": 32, "device": "cpu", "folder": tmp_path, "baseline": False}

    def kill(row: dict[str, Any]) -> None:
        if row["phase"] == "explore" and row["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        sparsify(digits_net(), train, report=kill, **options)
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}
    other = nets.build("mlp:32,16", inputs=(64,), outputs=5, seed=7)
    half = train.subset(torch.arange(len(train) // 2))
    for model, data, changed, complaint in (
        (digits_net(), train, {"method": "bmr"}, "began with method=ss-ghs, not bmr"),
        (digits_net(), train, {"settings": {"prior": 0.123}}, "began with settings="),
        (digits_net(), train, {"max_params": 900}, "began with max_params=None, not 900"),
        (digits_net(), half, {}, "began with other data"),
        (other, train, {}, "began with other network weights"),
    ):
        with pytest.raises(BayespareError, match=complaint):
            sparsify(model, data, **{**options, **changed})
    assert {p.name: p.read_bytes() for p in (tmp_path / "checkpoint").iterdir()} == before
    assert len(sparsify(digits_net(), train, **options).history) > 3


def test_bf16_gives_a_finite_result(digits):
    got = short(digits, epochs=4, precision="bf16")
    assert got.config["precision"] == "bf16"
    assert all(torch.isfinite(t).all() for n, t in tensors_of(got).items() if "odds" not in n)
    assert got.metrics["compact"]["accuracy"] > 0.5
    assert all(p.dtype == torch.float32 for p in got.model.parameters())


def test_a_saved_run_holds_its_files(result, tmp_path):
    folder = result.save(tmp_path / "run")
    assert folder == Path(tmp_path / "run")
    for name in ("config", "plan", "metrics", "structure", "frontier", "verdict"):
        json.loads((folder / f"{name}.json").read_text())
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert rows == json.loads(json.dumps(result.history))
    assert {p.name for p in (folder / "frontier").iterdir()} >= {p.name for p in result.frontier}
    assert not list(folder.rglob("*.part"))
    plan = json.loads((folder / "plan.json").read_text())
    for group in plan["groups"]:
        assert (
            group["kept"] == result.verdict.of(result.plan[group["name"]]).nonzero()[:, 0].tolist()
        )
        assert len(group["log_odds"]) == group["size"]


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epoch": 3}, "epoch"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch": 0}, "batch=0"),
        ({"batch": 361}, "batch=361.*360"),
        ({"method": "ss-gsh"}, "did you mean 'ss-ghs'"),
        ({"settings": {"kl_evry": 2}}, "kl_evry"),
        ({"device": "gpu"}, "device=gpu"),
        ({"precision": "fp16"}, "precision"),
        ({"tempering": -1.0}, "tempering"),
        ({"tempering": "high"}, "tempering"),
        ({"samples": 0}, "samples"),
        ({"max_params": 0}, "max_params"),
        ({"max_params": 13}, "max_params=13: out of reach: one unit left in every group"),
        ({"max_latency_ms": 1e-6}, "max_latency_ms=1e-06: out of reach"),
        ({"sparsity": 0.9999}, "sparsity=0.9999: leaves none"),
        ({"keep": ("fc11",)}, "keep=fc11: .*'fc11' .did you mean 'fc1'"),
        ({"unit": "head"}, "unit=head: ss-ghs decides about unit or feature"),
        ({"epochs": None, "time": 1e-3}, "time=0.001: the fewest epochs that make sense"),
        ({"time": 60}, "epochs= and time= exclude each other"),
        ({"lr": -1.0}, "lr=-1.0"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_anything_is_trained(options, says, digits):
    train, _ = digits
    trained: list[Any] = []
    defaults = {"epochs": 1, "batch": 32, "device": "cpu", "baseline": False}
    with pytest.raises(BayespareError, match=says) as caught:
        sparsify(digits_net(), train, report=trained.append, **{**defaults, **options})
    assert "\n" not in str(caught.value)
    assert trained == []


def test_a_network_with_nothing_to_remove_is_refused(digits):
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :5]

    with pytest.raises(UnsupportedStructureError, match="nothing"):
        sparsify(Fixed(), digits[0], epochs=1)


def test_a_network_of_the_wrong_size_is_refused(digits):
    for model in (
        nets.build("mlp:8", inputs=(63,), outputs=5),
        nets.build("mlp:8", inputs=(64,), outputs=4),
    ):
        with pytest.raises(BayespareError) as caught:
            sparsify(model, digits[0], epochs=1, batch=32)
        assert "\n" not in str(caught.value)


def test_a_network_that_overflows_stops_with_a_message(digits):
    model = digits_net()
    with torch.no_grad():
        model.fc2.weight.fill_(torch.inf)
    with pytest.raises(NonFiniteLossError, match="the loss became"):
        sparsify(model, digits[0], epochs=2, batch=32)


def test_sizes_of_batches_and_epochs_follow_the_data():
    options = Options()
    assert [options.batch_for(n) for n in (10, 100, 700, 1437, 54_000)] == [10, 16, 16, 32, 256]
    assert options.epochs_for(54_000) == 60
    assert options.epochs_for(1437) == math.ceil(8000 / (1437 // 32))
    assert Options(epochs=3, batch=7).epochs_for(10) == 3
    assert options.schedule(54_000).candidates == 3
    assert Options(settings={"settings": "faithful"}).schedule(54_000).warm == 0


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
