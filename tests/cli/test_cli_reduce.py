"""``bayespare reduce``: weights of any training in, a run folder like that of ``fit`` out."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_caller import Caller
from safetensors.torch import save_file

from bayespare import data, nets
from bayespare.posthoc.kept import Kept
from bayespare.training.checkpoint import read_tensors
from test_reduce import taught


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    splits = data.load("digits")
    model = nets.build("mlp:32", inputs=splits.train.inputs, outputs=10, seed=0)
    taught(model, splits.train, 4)
    folder = tmp_path_factory.mktemp("weights")
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(model.state_dict(), folder / "model.pt")
    training = {"epoch": 3, "model_state_dict": model.state_dict(), "optimizer": {"state": {}}}
    torch.save(training, folder / "training.pt")
    torch.save({"epoch": 3, "weights": model.state_dict()}, folder / "elsewhere.pt")
    torch.save(model, folder / "whole.pt")
    save_file({"fc1.weight": torch.zeros(2, 2)}, folder / "other.safetensors")
    (folder / "text.safetensors").write_text("no tensors")
    return folder


@pytest.mark.parametrize("file", ["model.safetensors", "model.pt", "training.pt"])
def test_it_writes_a_run_that_the_other_verbs_read(cli: Caller, weights, file):
    words = ("data=digits", "net=mlp:32", "rounds=3", "finetune=1", "name=small")
    said = cli("reduce", *words, f"weights={weights / file}")
    assert said.code == 0, said.err
    assert "smaller" in said.out
    assert cli("eval", "runs/small").code == 0
    assert cli("predict", "runs/small", "data=digits", "out=p.csv").code == 0
    assert cli("report", "runs/small").code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("data=digits", "net=mlp:32"), "weights= is missing"),
        (("net=mlp:32", "weights=x"), "data= is missing"),
        (("data=digits", "net=mlp:32", "weights=gone.pt"), "there is no such file"),
        (("data=digits", "net=mlp:32", "weights={w}/text.safetensors"), "no state dict"),
        (("data=digits", "net=mlp:32", "weights={w}/whole.pt"), "save the tensors alone"),
        (("data=digits", "net=mlp:32", "weights={w}/elsewhere.pt"), "nor one under state_dict"),
        (("data=digits", "net=mlp:32", "weights={w}/other.safetensors"), "has shape (2, 2)"),
        (("data=digits", "net=mlp:31", "weights={w}/model.pt"), "has shape (32, 64)"),
        (("data=digits", "net=mlp:32,8", "weights={w}/model.pt"), "fc2.weight"),
        (("data=digits", "net=mlp:32", "weights={w}/model.pt", "unit=wait"), "did you mean"),
        (("data=digits", "net=mlp:32", "weights={w}/model.pt", "max_params=2"), "out of reach"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(cli: Caller, weights, tmp_path, words, says):
    said = cli("reduce", *(word.format(w=weights) for word in words))
    assert said.code == 2, said.err
    assert says in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


class Trained:
    """Tables of two tasks as files, and networks that learnt them under every preparation."""

    def __init__(self, folder):
        self.folder = folder
        generator = torch.Generator().manual_seed(0)
        x = 5 + 40 * torch.rand(600, 4, generator=generator)
        y = 300 + 7 * x[:, 0] - 4 * x[:, 1] + 0.2 * x[:, 2] ** 2
        names = [f"c{i}" for i in range(4)]
        for task, target in (("price", y), ("kind", (y > y.median()).long())):
            rows = [",".join([*names, "y"])]
            rows += [
                f"{','.join(map(str, a))},{b}"
                for a, b in zip(x.tolist(), target.tolist(), strict=True)
            ]
            (folder / f"{task}.csv").write_text("\n".join(rows))

    def weights(self, task, form):
        path = self.folder / f"{task}_{form}.pt"
        splits = data.load(str(self.folder / f"{task}.csv"), target="y", standardize=form)
        model = nets.build("mlp:24", inputs=(4,), outputs=splits.train.outputs, seed=0)
        taught(model, splits.train, 15)
        torch.save(model.state_dict(), path)
        return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize(
    ("task", "form"),
    [
        ("price", "both"),
        ("price", "inputs"),
        ("price", "target"),
        ("price", "neither"),
        ("kind", "both"),
        ("kind", "neither"),
    ],
)
def test_it_finds_out_how_the_data_were_prepared(cli: Caller, trained, task, form):
    """Weights of other software, trained on numbers as stored, are not shown other numbers."""
    path = trained.weights(task, form)
    words = (f"data={trained.folder / task}.csv", "target=y", "net=mlp:24", f"weights={path}")
    quick = ("rounds=1", "finetune=0", "name=small", "force=true", "--json")
    said = cli("reduce", *words, *quick)
    assert said.code == 0, said.err
    config = json.loads(Path("runs/small/config.json").read_text())
    assert config["keys"]["standardize"] == form
    means = [column["mean"] for column in config["transform"]["columns"]]
    assert (means == [0.0] * 4) == (form in ("target", "neither"))
    if task == "price":
        assert (config["target"]["scale"] == [0.0, 1.0]) == (form in ("inputs", "neither"))


def test_what_is_said_of_the_preparation_is_believed(cli: Caller, trained):
    path = trained.weights("kind", "neither")
    words = (f"data={trained.folder / 'kind'}.csv", "target=y", "net=mlp:24", f"weights={path}")
    quick = ("rounds=1", "finetune=0", "force=true", "standardize=both", "name=small")
    said = cli("reduce", *words, *quick)
    assert said.code == 0, said.err
    assert json.loads(Path("runs/small/config.json").read_text())["keys"]["standardize"] == "both"


@pytest.mark.parametrize("verb", ["reduce", "prune"])
def test_a_curvature_that_takes_too_much_is_refused_before_it_is_taken(cli, weights, verb):
    words = ("data=digits", "net=mlp:32", f"weights={weights / 'model.pt'}", "name=big")
    share = ("sparsity=0.5",) if verb == "prune" else ()
    said = cli(verb, *words, *share, "max_memory_gb=1e-6")
    assert said.code == 2
    assert "the limit is max_memory_gb=1e-06" in said.err
    fitting = cli(verb, *words, *share, "finetune=0", "max_memory_gb=1", "exist_ok=true")
    assert fitting.code == 0, fitting.err
    assert re.search(r"^curvature takes [0-9.]+ MB \(of which .*", fitting.out, re.M)


def test_prune_ranks_by_the_criterion_and_gives_every_share(cli: Caller, weights):
    words = ("data=digits", "net=mlp:32", f"weights={weights / 'model.pt'}", "finetune=0")
    said = cli("prune", *words, "criterion=snip", "sparsity=0.5,0.75", "name=p", "--json")
    assert said.code == 0, said.err
    kept = {row["name"]: row["parameters"] for row in said.json["frontier"]}
    assert kept.keys() == {"s75", "s50"}
    assert kept["s75"] < kept["s50"] < 64 * 32
    assert cli("pick", "runs/p", "name=s75").code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "sparsity= is missing"),
        (("sparsity=2",), "between 0 and 1"),
        (("sparsity=0.5", "criterion=snap"), "did you mean 'snip'"),
        (("sparsity=0.5", "max_params=9"), "unknown key"),
    ],
)
def test_bad_input_of_prune_is_one_line(cli: Caller, weights, tmp_path, words, says):
    said = cli("prune", "data=digits", "net=mlp:32", f"weights={weights / 'model.pt'}", *words)
    assert said.code == 2, said.err
    assert says in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


class Stop:
    """Raises Ctrl-C after a number of steps."""

    def __init__(self, patch: pytest.MonkeyPatch, after: int) -> None:
        self.left = after
        original = Kept.put

        def put(kept: Kept, *step: Any, **numbers: Any) -> None:
            original(kept, *step, **numbers)
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

        patch.setattr(Kept, "put", put)


@pytest.mark.parametrize(
    ("verb", "options"),
    [("reduce", ("rounds=2",)), ("prune", ("sparsity=0.5,0.8", "criterion=snip", "rounds=2"))],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    cli: Caller, weights, monkeypatch, verb, options
):
    asked = (f"weights={weights / 'model.pt'}", "finetune=1", *options)
    words = (verb, "data=digits", "net=mlp:32", *asked)
    assert cli(*words, "name=whole").code == 0
    with monkeypatch.context() as patch:
        Stop(patch, 2)
        said = cli(*words, "name=cut")
    assert said.code == 130
    line = said.err.splitlines()[-1]
    assert "the last finished step is kept in runs/cut/checkpoint" in line
    assert line.endswith(f"go on with: bayespare {verb} resume=runs/cut")
    for other in (("eval",), ("pick", "max_params=900"), ("pick", "sparsity=0.5"), ("explain",)):
        told = cli(other[0], "runs/cut", *other[1:]).error
        assert told.startswith("runs/cut: the run is not finished (no model.safetensors); if it ")
        assert told.endswith(f"go on with: bayespare {verb} resume=runs/cut")
    wrong = {"reduce": "prune", "prune": "fit"}[verb]
    assert f"was begun by {verb}" in cli(wrong, "resume=runs/cut").error
    assert "seed=3 cannot be changed" in cli(verb, "resume=runs/cut", "seed=3").error

    resumed = cli(verb, "resume=runs/cut", "threads=1")
    assert resumed.code == 0, resumed.err
    whole, cut = Path("runs/whole"), Path("runs/cut")
    for name in ("model.safetensors", "posterior.safetensors"):
        one, other = read_tensors(whole / name), read_tensors(cut / name)
        assert all(torch.equal(one[key], other[key]) for key in {*one, *other})
    for name in ("verdict.json", "plan.json", "frontier.json", "config.json"):
        assert json.loads((whole / name).read_text()) == json.loads((cut / name).read_text())
    assert not (cut / "checkpoint").exists()
    assert "the run is finished" in cli(verb, "resume=runs/cut").error
