"""Saved runs of unusual networks: what is loaded says what was saved, to the last bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayespare
from bayespare import BayespareError, Result
from bayespare.cli.main import main
from bayespare.data import Dataset, from_tensors
from bayespare.measure import Prediction
from bayespare.training.checkpoint import read_tensors, write_tensors

QUICK: dict[str, Any] = {"method": "ss-ig", "epochs": 2, "device": "cpu", "baseline": False}
FEW: dict[str, Any] = {"rounds": 2, "between": 1, "finetune": 1, "samples": 100, "force": True}


def rows(number: int = 600) -> Dataset:
    """Two classes by the sum of two of eight features."""
    x = torch.randn(number, 8, generator=torch.Generator().manual_seed(0))
    return from_tensors(x, (x[:, 0] + x[:, 1] > 0).long())


class Bare(nn.Module):
    """Two readers without a bias, behind units of which some say the same always."""

    def __init__(self, dead: int = 0) -> None:
        super().__init__()
        self.a = nn.Linear(8, 16)
        self.b = nn.Linear(16, 12, bias=False)
        self.o = nn.Linear(12, 2, bias=False)
        with torch.no_grad():
            self.a.weight[:dead] = 0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.o(self.b(self.a(x).sigmoid()).relu())
        return out


def answers(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """What was predicted, and how sure that is."""
    found = getattr(prediction, "log_probs", getattr(prediction, "mean", None))
    assert found is not None
    return found, prediction.epistemic


def same(ours: Prediction, theirs: Prediction) -> bool:
    return all(torch.equal(a, b) for a, b in zip(answers(ours), answers(theirs), strict=True))


# ------------------------------------------------------------------ added biases
def reduced_by_weights(net: nn.Module) -> Result:
    return bayespare.reduce(net, rows(), unit="weight", device="cpu", **FEW)


def reduced_by_units(net: nn.Module) -> Result:
    still = {"between": 0, "finetune": 0, "survivors": False}
    return bayespare.reduce(net, rows(), unit="unit", device="cpu", **FEW | still)


@pytest.mark.parametrize("run", [reduced_by_weights, reduced_by_units])
def test_a_run_whose_readers_were_given_a_bias_is_loaded(run, tmp_path):
    net = Bare(dead=4)
    result = run(net)
    assert "b.bias" in result.model.state_dict()
    result.save(tmp_path)
    assert "b.bias" in json.loads((tmp_path / "verdict.json").read_text())["added_biases"]
    x = rows().x[:40]
    assert same(bayespare.load(tmp_path, net).predict(x), result.predict(x))
    for point in result.frontier:
        loaded = bayespare.load(tmp_path, Bare(), point=point.name)
        assert torch.equal(loaded.model(x), point.model(x))
        assert loaded.plan.to_json() == result.plan.to_json()
        assert loaded.verdict.plan.to_json() == point.verdict.plan.to_json()
    assert "b.bias" not in net.state_dict()


def test_a_bias_that_cannot_have_been_added_is_damage(tmp_path):
    net = Bare(dead=4)
    reduced_by_units(net).save(tmp_path)
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    for names, says in ((["a.bias"], "lacks a bias 'a.bias'"), (7, "damaged")):
        (tmp_path / "verdict.json").write_text(json.dumps(verdict | {"added_biases": names}))
        with pytest.raises(BayespareError, match=rf"verdict\.json: .*{says}"):
            bayespare.load(tmp_path, net)


def test_every_verb_takes_such_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    source = Path(__file__).read_text(encoding="utf-8")
    start, end = source.index("class Bare"), source.index("def answers")
    head = "import torch\nfrom torch import Tensor, nn\n\n"
    (tmp_path / "bare_net.py").write_text(head + source[start:end], encoding="utf-8")
    data = rows()
    lines = [",".join(f"f{i}" for i in range(8)) + ",y"]
    lines += [
        ",".join(f"{v:.5f}" for v in x) + f",{'ab'[y]}"
        for x, y in zip(data.x.tolist(), data.y.tolist(), strict=True)
    ]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    net = "net=bare_net:Bare"

    def call(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        code = main((*words, net, "--json"))
        said = capsys.readouterr()
        assert code == 0, said.err
        found: dict[str, Any] = json.loads(said.out)
        return found

    words = ("data=rows.csv", "target=y", "method=bmr", "unit=weight", "epochs=12")
    folder = call("fit", *words, "baseline=false", "name=done", "device=cpu")["folder"]
    assert json.loads((Path(folder) / "verdict.json").read_text())["added_biases"]
    name = json.loads((Path(folder) / "frontier.json").read_text())[0]["name"]
    assert call("pick", f"run={folder}", f"name={name}")["chosen"] == name
    assert call("export", f"run={folder}", "format=torch")["difference"] <= 1e-5
    assert call("predict", f"run={folder}", "data=rows.csv", "out=said.csv")
    assert call("eval", f"run={folder}", "data=rows.csv")


def test_files_do_not_depend_on_the_order_of_the_groups(tmp_path):
    result = reduced_by_units(Bare(dead=4))
    odds = result.point.log_odds
    assert len(odds) > 1
    turned = replace(result.point, log_odds=dict(reversed(list(odds.items()))))
    names = ("verdict.json", "plan.json")
    files = []
    for number, point in enumerate((result.point, turned)):
        result.point, result.log_odds = point, dict(point.log_odds)
        folder = result.save(tmp_path / str(number))
        files.append([(folder / name).read_bytes() for name in names])
    assert files[0] == files[1]


# ------------------------------------------------------------------------- ties
class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.c = nn.Linear(8, 6)
        self.o = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.o(self.c(self.b(self.a(x).relu()).relu()).relu())
        return out


def test_a_tied_network_is_still_tied(tmp_path):
    result = bayespare.sparsify(Tied(), rows(300), **QUICK)
    assert result.model.a.weight is result.model.b.weight
    result.save(tmp_path)
    loaded = bayespare.load(tmp_path, Tied())
    assert loaded.model.a.weight is loaded.model.b.weight
    sizes = [sum(p.numel() for p in run.model.parameters()) for run in (loaded, result)]
    assert sizes[0] == sizes[1] == result.metrics["compact"]["parameters"]
    x = rows().x[:40]
    assert same(loaded.predict(x), result.predict(x))

    path = tmp_path / "model.safetensors"
    tensors = read_tensors(path)
    changed = next(name for name in tensors if name.startswith("b") and name.endswith("weight"))
    write_tensors(path, tensors | {changed: tensors[changed] + 1})
    with pytest.raises(BayespareError, match=r"a.*\.weight and b.*\.weight differ"):
        bayespare.load(tmp_path, Tied())


# ---------------------------------------------------------------------- outputs
def test_a_network_may_have_more_outputs_than_there_are_classes(tmp_path):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    result = bayespare.sparsify(net, rows(300), **QUICK)
    result.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["outputs"] == 5
    loaded = bayespare.load(tmp_path, net)
    assert loaded.classes == ("0", "1")
    x = rows().x[:40]
    assert same(loaded.predict(x), result.predict(x))


# ----------------------------------------------------------------------- frozen
def test_frozen_parameters_count_as_all_others_do():
    net = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 2))
    net[0].requires_grad_(False)
    result = bayespare.sparsify(net, rows(300), **QUICK, max_params=300)
    assert result.metrics["parameters_before"] == sum(p.numel() for p in net.parameters())
    for point in result.frontier:
        physical = sum(p.numel() for p in point.model.parameters())
        assert point.summary["parameters"] == physical
        assert point.summary["nonzeros"] <= physical
        assert not point.model[0].weight.requires_grad
    assert result.metrics["compact"]["parameters"] <= 300
