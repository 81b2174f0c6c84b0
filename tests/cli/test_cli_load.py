"""``bayespare.load``: the same predictions in another process, and damaged files refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bayespare import nets
from bayespare.errors import BayespareError
from bayespare.load import LoadedRun, load
from bayespare.result import summary_line

PREDICT = """
import sys, torch
from safetensors.torch import save_file
from bayespare.load import load
run = load(sys.argv[1])
x = torch.randn(50, *run.config.inputs, generator=torch.Generator().manual_seed(1))
prediction = run.predict(x)
with torch.no_grad():
    plain = run.model(x)
answer = getattr(prediction, "log_probs", None)
answer = prediction.mean if answer is None else answer
save_file({"plain": plain, "answer": answer, "epistemic": prediction.epistemic}, sys.argv[2])
"""


def answers(folder: Path) -> dict[str, torch.Tensor]:
    run = load(folder)
    x = torch.randn(50, *run.config.inputs, generator=torch.Generator().manual_seed(1))
    prediction: Any = run.predict(x)
    answer = prediction.log_probs if run.config.task == "classification" else prediction.mean
    with torch.no_grad():
        return {"plain": run.model(x), "answer": answer, "epistemic": prediction.epistemic}


@pytest.mark.parametrize("name", ["classifier", "regressor"])
def test_a_fresh_process_predicts_the_same_bits(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(name)
    out = tmp_path / "answers.safetensors"
    subprocess.run(
        [sys.executable, "-c", PREDICT, str(folder), str(out)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    theirs, ours = load_file(out), answers(folder)
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)


def test_loading_draws_no_random_numbers_and_leaves_an_ordinary_module(classifier: Path) -> None:
    state = torch.random.get_rng_state()
    run = load(str(classifier))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not run.model.training
    assert all(p.device.type == "cpu" and p.requires_grad for p in run.model.parameters())
    assert run.classes == tuple(str(i) for i in range(10))
    assert run.target.classes == run.classes
    assert {name: odds.shape[0] for name, odds in run.log_odds.items()} == {"input": 64, "fc1": 24}
    for group in run.plan.groups:
        assert bool((run.log_odds[group.name][run.verdict.of(group)] > 0).all())


def test_a_given_network_takes_the_place_of_the_named_one(classifier: Path) -> None:
    model = nets.build("mlp:24", inputs=(8, 8), outputs=10, seed=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run, own = load(classifier), load(classifier, model)
    x = torch.randn(9, 8, 8)
    assert torch.equal(run.model(x), own.model(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(BayespareError, match="plan is for another model"):
        load(classifier, nets.build("mlp:25", inputs=(8, 8), outputs=10))


def test_every_network_of_the_frontier_loads(classifier: Path) -> None:
    for row in json.loads((classifier / "frontier.json").read_text()):
        run = load(classifier, point=row["name"])
        assert sum(p.numel() for p in run.model.parameters()) == row["parameters"]
    with pytest.raises(BayespareError, match=r"no network '\.\./\.\.'"):
        load(classifier, point="../..")


# ---------------------------------------------------------------------- damage
def change_json(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        changed = change(content)
        (folder / name).write_text(json.dumps(content if changed is None else changed))

    return damage


def change_tensors(
    name: str, change: Callable[[dict[str, torch.Tensor]], Any]
) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)

    return damage


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rename(tensors: dict[str, torch.Tensor]) -> None:
    tensors["fc2.wieght"] = tensors.pop("fc2.weight")


def first_slot(content: Any) -> Any:
    return content["groups"][0]["slots"][0]


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (remove("config.json"), "holds no run"),
    "no model": (remove("model.safetensors"), "model.safetensors: no such file"),
    "no verdict": (remove("verdict.json"), "verdict.json: cannot be read"),
    "no structure": (remove("structure.json"), "structure.json: cannot be read"),
    "no posterior": (remove("posterior.safetensors"), "posterior.safetensors: no such file"),
    "cut config": (cut("config.json"), "config.json: not valid JSON"),
    "cut structure": (cut("structure.json"), "structure.json: not valid JSON"),
    "cut verdict": (cut("verdict.json"), "verdict.json: not valid JSON"),
    "cut model": (cut("model.safetensors"), "model.safetensors: not a safetensors file"),
    "cut posterior": (cut("posterior.safetensors"), "posterior.safetensors: not a safetensors"),
    "deep JSON": (
        lambda folder: (folder / "verdict.json").write_text("[" * 10**6) and None,
        "verdict.json: not valid JSON",
    ),
    "config is a list": (change_json("config.json", lambda c: []), "config.json: the whole file"),
    "no outputs": (change_json("config.json", lambda c: c.pop("outputs") and None), "outputs"),
    "other outputs": (
        change_json("config.json", lambda c: c.update(outputs=11)),
        "model.safetensors",
    ),
    "huge inputs": (change_json("config.json", lambda c: c.update(inputs=[10**12])), "inputs"),
    "negative inputs": (change_json("config.json", lambda c: c.update(inputs=[-8, -8])), "inputs"),
    "unknown task": (change_json("config.json", lambda c: c.update(task="magic")), "task"),
    "no net": (change_json("config.json", lambda c: c.pop("net") and None), "given in Python"),
    "net with code": (
        change_json("config.json", lambda c: c.update(net="os:getcwd")),
        "loading never imports",
    ),
    "another net": (change_json("config.json", lambda c: c.update(net="mlp:23")), "another model"),
    "huge net": (
        change_json("config.json", lambda c: c.update(net="mlp:1048576,1048576,1048576")),
        "another model",
    ),
    "plan without groups": (change_json("structure.json", lambda c: {}), "the plan is damaged"),
    "huge group": (
        change_json("structure.json", lambda c: c["groups"][1].update(size=10**15)),
        "structure.json",
    ),
    "huge run": (
        change_json("structure.json", lambda c: first_slot(c).update(owner=[[0, 1, 10**15]])),
        "structure.json: the plan is damaged",
    ),
    "negative dimension": (
        change_json("structure.json", lambda c: first_slot(c).update(dim=-9)),
        "structure.json",
    ),
    "unknown tensor": (
        change_json("structure.json", lambda c: first_slot(c).update(tensor="fc9.weight")),
        "structure.json: the plan is for another model",
    ),
    "unknown group": (
        change_json("verdict.json", lambda c: c["keep"].update(fc9=[0])),
        "verdict.json",
    ),
    "index too large": (
        change_json("verdict.json", lambda c: c["keep"].update(fc1=[24])),
        "verdict.json: the file is damaged",
    ),
    "negative index": (
        change_json("verdict.json", lambda c: c["keep"].update(fc1=[-1])),
        "verdict.json: the file is damaged",
    ),
    "index of text": (
        change_json("verdict.json", lambda c: c["keep"].update(fc1=["x"])),
        "verdict.json: the file is damaged",
    ),
    "one unit fewer": (
        change_json("verdict.json", lambda c: c["keep"].update(fc1=c["keep"]["fc1"][1:])),
        "model.safetensors: fc",
    ),
    "another shape": (
        change_tensors("model.safetensors", lambda t: t.update({"fc2.bias": torch.zeros(9)})),
        "fc2.bias is torch.float32 of shape (9,), the network needs torch.float32 of shape (10,)",
    ),
    "another type": (
        change_tensors(
            "model.safetensors", lambda t: t.update({"fc2.bias": torch.zeros(10).half()})
        ),
        "fc2.bias is torch.float16",
    ),
    "another name": (
        change_tensors("model.safetensors", rename),
        "has no 'fc2.weight' (did you mean 'fc2.wieght'?)",
    ),
    "one tensor more": (
        change_tensors("model.safetensors", lambda t: t.update(more=torch.zeros(1))),
        "the network has no 'more'",
    ),
    "selection out of range": (
        change_tensors("model.safetensors", lambda t: t["fc1.0.index"].fill_(64)),
        "model.safetensors: the network does not run on inputs of shape (8, 8)",
    ),
    "negative spread": (
        change_tensors("posterior.safetensors", lambda t: t["fc2.weight"].fill_(-1)),
        "posterior.safetensors: posterior of 'fc2.weight'",
    ),
    "spread of another shape": (
        change_tensors("posterior.safetensors", lambda t: t.update({"fc2.weight": torch.ones(3)})),
        "posterior.safetensors: posterior of 'fc2.weight'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_damage_is_named_in_one_line(name: str, run: Path) -> None:
    damage, complaint = CASES[name]
    damage(run)
    with pytest.raises(BayespareError) as caught:
        load(run)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(BayespareError, match="nowhere: there is no such folder"):
        load("nowhere")


def test_a_damaged_transform_is_named(run: Path) -> None:
    change_json("config.json", lambda c: c["transform"].pop("mean") and None)(run)
    with pytest.raises(BayespareError, match=r"config\.json: the stored transform is damaged"):
        _ = load(run).transform


def test_a_loaded_run_prints_as_the_result_did(classifier: Path, run: Path) -> None:
    loaded = load(classifier)
    metrics = json.loads((classifier / "metrics.json").read_text())
    line = summary_line(metrics)
    assert str(loaded) == f"{classifier}: {line}"
    assert repr(loaded) == f"<bayespare.LoadedRun {loaded}>"
    assert line.startswith(f"params {metrics['parameters_before']:,} -> ")
    # The scores are those of the chosen network, and of no other.
    other = next(
        p.name
        for p in (classifier / "frontier").iterdir()
        if size(load(classifier, point=p.name)) != size(loaded)
    )
    assert str(load(classifier, point=other)).endswith(
        f": params {size(load(classifier, point=other)):,}"
    )
    (run / "metrics.json").unlink()
    assert str(load(run)) == f"{run}: params {size(loaded):,}"


def size(run: LoadedRun) -> int:
    return sum(parameter.numel() for parameter in run.model.parameters())
