"""The same run again, or one that was killed; and what is saved of it."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_runs import Killed, assert_same_run, digits_net, short, tensors_of
from torch import nn

from bayespare import (
    BayespareError,
    nets,
    sparsify,
)


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
