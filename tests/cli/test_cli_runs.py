"""What can be done with a run: eval, predict, pick, explain, report."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_caller import QUICK, Caller, files
from safetensors.torch import load_file, save_file

import bayespare
import bayespare.cli.pick
from bayespare.data import load as load_data
from bayespare.load import load
from bayespare.structure.storage import pack
from bayespare.training.checkpoint import sha256


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def lines(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


# ------------------------------------------------------------------------- eval
def test_eval_says_what_fit_measured(cli: Caller, classifier: Path) -> None:
    metrics = read(classifier / "metrics.json")
    found = cli("eval", str(classifier), "--json").json
    for mine, theirs in (("plain", "compact"), ("averaged", "averaged")):
        assert found[mine] == {key: metrics[theirs][key] for key in found[mine]}
    assert found["rows"] == metrics["n_test"]
    assert f"small, test split: {metrics['n_test']} rows" in cli("eval", str(classifier)).out


def test_eval_says_whether_csr_pays(cli: Caller, run: Path) -> None:
    assert "CSR" not in cli("eval", str(run)).out
    tensors = load_file(run / "model.safetensors")
    name = next(key for key in tensors if key.startswith("fc1") and key.endswith("weight"))
    tensors[name].flatten()[3:] = 0
    save_file(pack(tensors), run / "model.safetensors")
    verdict = json.loads((run / "verdict.json").read_text())
    verdict["sha256"]["model.safetensors"] = sha256(run / "model.safetensors")
    (run / "verdict.json").write_text(json.dumps(verdict))
    assert any(key.endswith("#index") for key in load_file(run / "model.safetensors"))
    found = cli("eval", str(run), "--json").json["sparse_runtime"]
    assert set(found) == {"1", "256"}
    said = cli("eval", str(run)).out
    assert said.count("CSR") == 2
    assert "at batch 1" in said


def test_eval_in_the_users_units(cli: Caller, regressor: Path) -> None:
    metrics = read(regressor / "metrics.json")["compact"]
    found = cli("eval", f"run={regressor}", "--json").json["plain"]
    assert found == {key: metrics[key] for key in found}
    assert found["rmse"] > 100
    assert "inside the 90 % interval" in cli("eval", str(regressor)).out


def test_eval_of_the_runs_own_data_keeps_to_a_split(
    cli: Caller, classifier: Path, digits: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "same.npz"
    shutil.copy(digits, copy)
    test, same = (
        cli("eval", str(classifier), *words, "--json").json for words in ((), (f"data={copy}",))
    )
    assert same == test
    train = cli("eval", str(classifier), "split=train", "--json").json
    assert train["rows"] == read(classifier / "metrics.json")["n_train"]


def test_eval_of_other_data(cli: Caller, classifier: Path, digits: Path, tmp_path: Path) -> None:
    data = np.load(digits)
    np.savez(tmp_path / "new.npz", x=data["x"][:50], y=data["y"][:50])
    assert cli("eval", str(classifier), "data=new.npz", "--json").json["rows"] == 50
    refused = cli("eval", str(classifier), "data=new.npz", "split=train")
    assert "split=train is for the run's own data" in refused.error
    np.savez(tmp_path / "bare.npz", x=data["x"][:50])
    assert "no targets to compare with" in cli("eval", str(classifier), "data=bare.npz").error
    np.savez(tmp_path / "odd.npz", x=data["x"][:50, :4], y=data["y"][:50])
    assert "the model needs (8, 8)" in cli("eval", str(classifier), "data=odd.npz").error


# ---------------------------------------------------------------------- predict
def test_predict_writes_what_the_model_says(
    cli: Caller, classifier: Path, digits: Path, tmp_path: Path
) -> None:
    said = cli("predict", str(classifier), f"data={digits}", "out=p.csv", "--json")
    assert said.json["rows"] == 400
    rows = lines(tmp_path / "p.csv")
    assert rows[0] == ["row", "label", *(f"p({i})" for i in range(10)), "epistemic_nats"]
    assert [row[0] for row in rows[1:]] == [str(i) for i in range(400)]
    run = load(classifier)
    x = run.transform.apply(np.load(digits)["x"], None)  # type: ignore[arg-type]
    expected = run.predict(x)
    probs = np.array([[float(v) for v in row[2:12]] for row in rows[1:]])
    np.testing.assert_allclose(probs, expected.probs.numpy(), rtol=1e-8)  # type: ignore[union-attr]
    assert [int(row[1]) for row in rows[1:]] == probs.argmax(axis=1).tolist()
    epistemic = [float(row[12]) for row in rows[1:]]
    np.testing.assert_allclose(epistemic, expected.epistemic.numpy(), rtol=1e-8)
    assert min(epistemic) >= 0 < max(epistemic)


def test_predict_a_quantity_of_rows_without_targets(
    cli: Caller, regressor: Path, table: Path, tmp_path: Path
) -> None:
    bare = [line.rpartition(",")[0] for line in table.read_text().splitlines()[:21]]
    (tmp_path / "new.csv").write_text("\n".join(bare))
    assert cli("predict", str(regressor), "data=new.csv", "out=p.csv").code == 0
    rows = lines(tmp_path / "p.csv")
    assert rows[0] == ["row", "mean", "std", "epistemic_std"]
    assert len(rows) == 21
    for _, mean, std, epistemic in rows[1:]:
        assert float(std) > float(epistemic) > 0
        assert abs(float(mean)) > 100


def test_predict_overwrites_only_when_asked(
    cli: Caller, classifier: Path, digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text("mine")
    words = ("predict", str(classifier), f"data={digits}", "out=p.csv")
    refused = cli(*words)
    assert (refused.code, (tmp_path / "p.csv").read_text()) == (2, "mine")
    assert "p.csv: exists" in refused.error
    assert cli(*words, "exist_ok=true").code == 0
    assert (tmp_path / "p.csv").read_text().startswith("row,label")
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("data=digits",), "out= is missing"),
        (("out=p.csv",), "data= is missing"),
        (("data=digits", "out=no/p.csv"), "there is no folder no"),
        (("data=digits", "out=."), "is a folder"),
        (("data=digits", "out=p.csv"), "the model needs (8, 8)"),
    ],
)
def test_what_predict_refuses(
    cli: Caller, classifier: Path, words: tuple[str, ...], complaint: str, tmp_path: Path
) -> None:
    said = cli("predict", str(classifier), *words)
    assert said.code == 2
    assert complaint in said.error
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------- pick
def test_pick_changes_the_size_and_measures_it(cli: Caller, run: Path) -> None:
    points = read(run / "frontier.json")
    assert len(points) > 1, "these tests need a frontier of two networks"
    other = next(point for point in points if not point["chosen"])
    before = read(run / "metrics.json")
    said = cli("pick", str(run), f"name={other['name']}")
    assert said.code == 0, said.err
    assert f"{other['name']} " in next(line for line in said.out.splitlines() if "<- " in line)
    metrics = read(run / "metrics.json")
    assert metrics["compact"]["parameters"] == other["parameters"]
    assert metrics["compact"].keys() == before["compact"].keys()
    assert metrics["measured_on"] == "test"
    scores = metrics["dense"].keys() - {"latency_ms", "peak_memory_bytes"}
    assert all(metrics["dense"][key] == before["dense"][key] for key in scores)
    assert [p["name"] for p in read(run / "frontier.json") if p["chosen"]] == [other["name"]]
    loaded = load(run)
    assert sum(p.numel() for p in loaded.model.parameters()) == other["parameters"]
    kept = {group["name"]: len(group["kept"]) for group in read(run / "plan.json")["groups"]}
    assert kept == {name: k for name, (k, _) in loaded.verdict.kept.items()}
    assert metrics["units"] == {name: list(k) for name, k in loaded.verdict.kept.items()}
    evaluated = cli("eval", str(run), "--json").json
    assert evaluated["plain"] == {key: metrics["compact"][key] for key in evaluated["plain"]}
    assert evaluated["averaged"] == metrics["averaged"]


def test_pick_there_and_back_restores_the_model(cli: Caller, run: Path) -> None:
    points = read(run / "frontier.json")
    first = next(point["name"] for point in points if point["chosen"])
    other = next(point["name"] for point in points if not point["chosen"])
    names = ("model.safetensors", "posterior.safetensors", "verdict.json", "plan.json")
    before = {name: (run / name).read_bytes() for name in (*names, "frontier.json")}
    scores = read(run / "metrics.json")["compact"]
    assert cli("pick", str(run), f"name={other}").code == 0
    assert (run / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert cli("pick", str(run), f"name={first}").code == 0
    assert {name: (run / name).read_bytes() for name in before} == before
    again = read(run / "metrics.json")["compact"]
    for key in scores.keys() - {"latency_ms", "peak_memory_bytes"}:
        assert again[key] == scores[key]


def test_pick_takes_the_best_within_the_budget(cli: Caller, run: Path) -> None:
    points = read(run / "frontier.json")
    for i, (accuracy, parameters) in enumerate([(0.9, 100), (0.95, 300), (0.95, 200), (1.0, 400)]):
        point = {**points[0], "name": f"p{i}", "valid_accuracy": accuracy}
        points.append({**point, "parameters": parameters, "macs": 10 * parameters})
        shutil.copytree(run / "frontier" / points[0]["name"], run / "frontier" / f"p{i}")
    for point in points:
        if not point["name"].startswith("p"):
            point["parameters"] = point["macs"] = 10**9
    (run / "frontier.json").write_text(json.dumps(points))
    for words, expected in (
        (["max_params=350"], "p2"),
        (["max_params=150"], "p0"),
        (["max_params=4_00"], "p3"),
        (["max_macs=1e3"], "p0"),
        (["max_macs=2e3", "max_params=1e6"], "p2"),
    ):
        assert cli("pick", str(run), *words, "--json").json["chosen"] == expected


def test_pick_by_a_share_of_the_parameters(cli: Caller, run: Path) -> None:
    points = read(run / "frontier.json")
    whole = read(run / "metrics.json")["parameters_before"]
    smallest = min(point["parameters"] for point in points)
    share = 1 - (smallest + 0.5) / whole
    assert cli("pick", str(run), f"sparsity={share}", "--json").code == 0
    chosen = next(point for point in read(run / "frontier.json") if point["chosen"])
    assert chosen["parameters"] == smallest


def test_pick_by_time_measures_the_networks_that_meet_the_rest(
    cli: Caller, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = sorted(read(run / "frontier.json"), key=lambda point: point["parameters"])
    for rank, point in enumerate(points):
        point["valid_accuracy"] = 0.9 + 0.01 * rank
    (run / "frontier.json").write_text(json.dumps(points))
    asked: list[list[int]] = []

    def clock(models: dict[str, torch.nn.Module], example: torch.Tensor) -> dict[str, float]:
        sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in models.items()}
        asked.append(sorted(sizes.values()))
        return {name: size / 1000 for name, size in sizes.items()}

    monkeypatch.setattr(bayespare.cli.pick, "milliseconds", clock)
    sizes = [point["parameters"] for point in points]
    assert len(sizes) > 1
    for words, expected, timed in (
        ((f"max_latency_ms={sizes[-1] / 1000}",), points[-1]["name"], sizes),
        ((f"max_latency_ms={sizes[0] / 1000}",), points[0]["name"], sizes),
        ((f"max_params={sizes[0]}", "max_latency_ms=1e3"), points[0]["name"], sizes[:1]),
    ):
        said = cli("pick", str(run), *words, "--json")
        assert said.json["chosen"] == expected
        assert asked.pop() == timed
        warned = [w for w in said.json["metrics"]["warnings"] if "max_latency_ms" in w]
        assert not warned
    monkeypatch.setattr(
        bayespare.cli.pick, "milliseconds", lambda models, _: dict.fromkeys(models, 0)
    )
    said = cli("pick", str(run), "max_latency_ms=1e-6", "--json")
    assert any("measured again" in text for text in said.json["metrics"]["warnings"])


def test_what_is_to_be_said_of_a_run_is_said_of_every_pick(cli: Caller, run: Path) -> None:
    metrics = read(run / "metrics.json")
    metrics["run_warnings"] = ["the dense network diverged"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    picked = cli("pick", str(run), "max_params=1e9", "--json").json["metrics"]
    assert picked["warnings"][0] == "the dense network diverged"


def test_pick_to_another_folder(cli: Caller, run: Path, tmp_path: Path) -> None:
    before = files(run)
    other = next(p for p in read(run / "frontier.json") if not p["chosen"])
    said = cli("pick", str(run), f"name={other['name']}", "to=copy2", "--json")
    assert said.json["folder"] == "copy2"
    assert files(run) == before
    assert set(files(tmp_path / "copy2")) == set(before)
    small = load("copy2").model
    assert sum(p.numel() for p in small.parameters()) == other["parameters"]
    assert "to=copy2: exists" in cli("pick", str(run), f"name={other['name']}", "to=copy2").error
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_pick_without_the_data_says_so(
    cli: Caller, run: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read(run / "config.json")
    config["keys"]["data"] = "gone.npz"
    (run / "config.json").write_text(json.dumps(config))
    other = next(p for p in read(run / "frontier.json") if not p["chosen"])
    said = cli("pick", str(run), f"name={other['name']}")
    assert said.code == 0, said.err
    assert "scores are those on validation data: data 'gone.npz'" in said.out
    metrics = read(run / "metrics.json")
    assert metrics["compact_measured_on"] == "validation"
    assert metrics["compact"]["accuracy"] == other["valid_accuracy"]
    assert "averaged" not in metrics
    config["keys"]["data"] = str(digits)
    (run / "config.json").write_text(json.dumps(config))
    assert cli("pick", str(run), f"name={other['name']}").code == 0
    assert "compact_measured_on" not in read(run / "metrics.json")


def test_what_pick_refuses(cli: Caller, run: Path) -> None:
    before = files(run)
    smallest = min(point["parameters"] for point in read(run / "frontier.json"))
    name = read(run / "frontier.json")[0]["name"]
    for words, complaint in (
        (["max_params=1"], "max_params=1: no network of the frontier is that small (there are "),
        (["max_params=1"], f"{smallest:,} parameters"),
        (["max_macs=1"], "max_macs=1: no network"),
        (["sparsity=0.9999"], "sparsity=0.9999: leaves none of 1,"),
        (["sparsity=0.99"], "sparsity=0.99: no network of the frontier is that small"),
        (["max_latency_ms=1e-9"], "max_latency_ms=1e-09: no network of the frontier is that small"),
        (["max_latency_ms=1e-9"], " ms a row"),
        (["max_params=9", "sparsity=0.5"], "say the same in two ways"),
        ([f"name={name}", "max_params=9"], "give name= or max_params=9, not both"),
        ([], "give max_params=, max_macs=, max_latency_ms=, sparsity= or name="),
        ([f"name={name}x"], f"did you mean '{name}'?"),
        (["name=../.."], "no such network"),
        (["net=mlp:25", "max_params=1e9"], "the run was fitted with net=mlp:24"),
    ):
        said = cli("pick", str(run), *words)
        assert said.code == 2
        assert complaint in said.error
    assert files(run) == before
    (run / "frontier.json").write_text('[{"name": 3}]')
    assert "frontier.json: the file is damaged" in cli("pick", str(run), "max_params=9").error


# -------------------------------------------------------------- explain, report
def test_explain_a_run_a_net_and_data(cli: Caller, classifier: Path) -> None:
    said = cli("explain", str(classifier))
    assert "fc1.weight" in said.out
    assert "units kept" in said.out
    groups = cli("explain", str(classifier), "--json").json["groups"]
    assert {g["name"]: g["size"] for g in groups} == {"input": 64, "fc1": 24}
    assert all(0 < group["kept"] <= group["size"] for group in groups)
    net = cli("explain", "net=lenet5", "inputs=1,28,28")
    assert "conv1 (20 channels)" in net.out
    assert "network output" in net.out
    assert "fc1 (7 units)" in cli("explain", "data=iris", "net=mlp:7").out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "say what to explain"),
        (("net=lenet5",), "say what to explain"),
        (("net=lenet5", "inputs=28,28"), "needs images"),
        (("data=iris", "inputs=4"), "leave inputs= away"),
        (("runs/x",), "runs/x: there is no such folder"),
        (("net=mlp:4", "inputs=1000000,1000000"), "more than"),
    ],
)
def test_what_explain_refuses(cli: Caller, words: tuple[str, ...], complaint: str) -> None:
    said = cli("explain", *words)
    assert said.code == 2
    assert complaint in said.error


def test_report_is_written_again(cli: Caller, run: Path) -> None:
    page = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert cli("report", str(run), "--json").json == {"report": str(run / "report.html")}
    # The page's title is that of its folder.
    assert len((run / "report.html").read_text()) == pytest.approx(len(page), abs=20)


@pytest.mark.parametrize("verb", ["pick", "eval", "predict", "report"])
def test_verbs_about_runs_need_one(cli: Caller, verb: str, tmp_path: Path) -> None:
    extra = ("data=digits", "out=p.csv") if verb == "predict" else ()
    assert f"bayespare {verb} runs/NAME" in cli(verb, *extra).error
    assert "runs/x: there is no such folder" in cli(verb, "runs/x", *extra).error
    (tmp_path / "empty").mkdir()
    assert "empty: holds no run" in cli(verb, "empty", *extra).error


# ---------------------------------------------------------------- the users' own
def test_a_users_own_network_is_never_imported_unasked(
    cli: Caller, tmp_path: Path, digits: Path
) -> None:
    code = (
        "from pathlib import Path\n"
        "from torch import nn\n"
        "Path('imported').write_text('')\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(),\n"
        "                         nn.Linear(12, 10))\n"
    )
    (tmp_path / "their_net.py").write_text(code)
    words = [word for word in QUICK if not word.startswith("net=")]
    said = cli("fit", f"data={digits}", "net=their_net:make", *words, "name=a")
    assert said.code == 0, said.err
    imported = tmp_path / "imported"
    imported.unlink()
    assert "add net=" not in said.out
    refused = cli("eval", "runs/a")
    assert refused.code == 2
    assert "loading never imports" in refused.error
    assert "net=their_net:make" in refused.error
    given = cli("eval", "runs/a", "net=their_net:make", "--json")
    metrics = read(Path("runs/a/metrics.json"))
    assert given.json["plain"]["nll"] == metrics["compact"]["nll"]


def test_a_run_made_in_python_can_be_picked_from(cli: Caller, tmp_path: Path) -> None:
    splits = load_data("iris")
    model = bayespare.nets.build("mlp:8", inputs=(4,), outputs=3, seed=0)
    made = bayespare.sparsify(
        model, splits.train, valid=splits.valid, test=splits.test, epochs=2, baseline=False
    )
    made.save("run")
    assert "give data=FILE" in cli("eval", "run").error or "Python" in cli("eval", "run").error
    run = load("run", model)
    expected = made.predict(splits.test.x)
    assert torch.equal(run.predict(splits.test.x).log_probs, expected.log_probs)  # type: ignore[union-attr]
