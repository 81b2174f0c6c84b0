"""What a run can be told: how long, how fast, of what; and what it refuses."""

import json
import math
from typing import Any

import pytest
import torch
from digits_runs import Killed, digits_net, short, tensors_of
from torch import Tensor, nn

from bayespare import (
    BayespareError,
    NonFiniteLossError,
    Options,
    UnsupportedStructureError,
    data,
    nets,
    pipeline,
    sparsify,
    trace,
)
from bayespare import options as options_module
from bayespare.training import budget
from bayespare.training.fit import Fit
from bayespare.training.pace import Pace

# ------------------------------------------------------ how long, how fast, of what


def test_a_first_look(digits):
    train, test = digits
    got = sparsify(digits_net(), train, test=test, quick=True, batch=3, device="cpu")
    assert got.config["epochs"] == 7
    assert got.metrics["quick"]
    assert "dense" not in got.metrics
    assert {row["phase"] for row in got.history}.isdisjoint({"dense"})
    assert got.metrics["warnings"][0].startswith("quick=true: 7 epochs in place of 67, and no")


def test_few_epochs_of_few_rows_are_not_undone_by_a_poor_teacher():
    splits = data.load("wine", seed=51)
    model = nets.build("mlp:64,64", inputs=(13,), outputs=3, seed=51)
    rows = {"valid": splits.valid, "test": splits.test}
    result = sparsify(model, splits.train, epochs=10, seed=51, **rows)
    # Towards the dense network of three epochs it came to more than that of ten.
    compact, dense = result.metrics["compact"], result.metrics["dense"]
    assert compact["nll"] < 0.75 * dense["nll"]
    assert compact["accuracy"] >= dense["accuracy"]


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


# -------------------------------------------------------------- how small


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


@pytest.mark.parametrize(("limits", "behind"), [({"max_params": 90}, True), ({}, False)], ids=str)
def test_a_network_that_is_measurably_worse_than_the_dense_one_is_said_to_be(
    limits, behind, digits
):
    got = short(digits, epochs=20, **limits)
    said = [
        t for t in got.metrics["warnings"] if t.startswith("on validation data the accuracy is")
    ]
    assert bool(said) == behind
    if behind:
        chosen = next(p.summary for p in got.frontier if p.summary["chosen"])
        assert f"is {chosen['valid_accuracy']:.4g}, the dense network's" in said[0]


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
