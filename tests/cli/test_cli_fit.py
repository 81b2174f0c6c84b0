"""``fit``: what it writes, what it says, and that a stop loses nothing."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_caller import QUICK, Caller, files

import bayespare.options
import bayespare.training.baseline
import bayespare.training.search
from bayespare.cli.fit import threads
from bayespare.cli.folder import FILES, alone_in, default_name
from bayespare.cli.keys import FitKeys
from bayespare.cli.prepare import options_for
from bayespare.load import load
from bayespare.options import Options
from bayespare.training.checkpoint import read_tensors
from bayespare.training.history import History, read_history
from bayespare.training.pace import Pace


def test_fit_writes_a_whole_folder_and_says_where(cli: Caller, digits: Path) -> None:
    said = cli("fit", f"data={digits}", "net=mlp:16,8", "epochs=2")
    assert said.code == 0, said.err
    folder = Path("runs/small-mlp-16-8-ss-ghs")
    names = {path.name for path in folder.iterdir()}
    # Export alone writes these two.
    assert names == {*FILES, "frontier"} - {"model.onnx", "model.pt2"}
    for words in (
        "small: classification: the target holds 10 distinct whole numbers",
        "plan: 88 units can be removed: input 64 features, fc1 16 units, fc2 8 units",
        f"run folder: {folder}",
        "accuracy",
        "<- chosen",
        f"report: {folder}/report.html",
    ):
        assert words in said.out
    # Where no bar can be drawn, an epoch is a line on standard error now and then.
    assert "s left: phase=warm epoch=1" in said.err
    log = (folder / "log.txt").read_text()
    assert "phase=explore epoch=1" in log
    assert "<- chosen" in log


def test_the_config_holds_what_the_run_was_told(classifier: Path, digits: Path) -> None:
    config = json.loads((classifier / "config.json").read_text())
    assert config["keys"]["data"] == str(digits)
    assert config["keys"]["prior"] == 0.0001
    assert (config["net"], config["method"], config["seed"]) == ("mlp:24", "ss-ghs", 0)
    assert config["data"] == "small"
    assert config["transform"]["kind"] == "standardize"
    assert config["target"]["classes"] == config["classes"] == [str(i) for i in range(10)]
    assert len(config["data_fingerprint"]) == 64
    metrics = json.loads((classifier / "metrics.json").read_text())
    assert metrics["measured_on"] == "test"
    assert metrics["dense"]["parameters"] > metrics["compact"]["parameters"]


def test_json_is_one_object(cli: Caller, digits: Path) -> None:
    said = cli("fit", f"data={digits}", *QUICK, "--json")
    found = said.json
    assert found["folder"] == "runs/small-mlp-16-8-ss-ghs"
    assert found["chosen"] in [point["name"] for point in found["frontier"]]
    assert 0 <= found["metrics"]["compact"]["accuracy"] <= 1
    assert "dense" not in found["metrics"]


def test_the_default_folder_gets_a_number_when_it_is_taken(cli: Caller, digits: Path) -> None:
    names = [cli("fit", f"data={digits}", *QUICK, "--json").json["folder"] for _ in range(2)]
    assert names == ["runs/small-mlp-16-8-ss-ghs", "runs/small-mlp-16-8-ss-ghs-2"]


def test_default_names_hold_no_odd_characters() -> None:
    assert default_name("my data", "mlp:4,4", "ss-ig") == "my-data-mlp-4-4-ss-ig"
    assert default_name("../..", "x", "") == "x"
    assert default_name("", "") == "run"


def test_a_run_is_replaced_only_when_asked(cli: Caller, digits: Path) -> None:
    words = ("fit", f"data={digits}", *QUICK, "name=a")
    assert cli(*words).code == 0
    before = files(Path("runs/a"))
    said = cli(*words, "seed=1")
    assert said.code == 2
    assert "runs/a: exists and is not empty" in said.error
    assert files(Path("runs/a")) == before
    # One that fails takes nobody's place.
    failed = cli(*words, "lr=1e9", "exist_ok=true")
    assert failed.code == 2
    assert "the run that was there is kept in runs/a/.replaced" in failed.err
    assert cli("eval", "runs/a/.replaced").code == 0
    assert cli(*words, "seed=1", "exist_ok=true").code == 0
    assert not Path("runs/a/.replaced").exists()
    assert json.loads(Path("runs/a/config.json").read_text())["seed"] == 1


def test_files_that_are_no_run_are_never_replaced(cli: Caller, digits: Path) -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/README.md").write_text("precious")
    said = cli("fit", f"data={digits}", *QUICK, "name=mine", "exist_ok=true")
    assert said.code == 2
    assert "holds files but no run" in said.error
    assert Path("runs/mine/README.md").read_text() == "precious"


def test_a_table_gets_a_small_network_and_its_own_columns(regressor: Path) -> None:
    config = json.loads((regressor / "config.json").read_text())
    assert config["task"] == "regression"
    assert config["features"] == ["size", "age", "kind=a", "kind=b", "kind=c", "noise"]
    plan = json.loads((regressor / "plan.json").read_text())
    assert plan["groups"][0]["size"] == 4
    assert json.loads((regressor / "metrics.json").read_text())["compact"]["rmse"] > 0


def test_a_table_is_fitted_by_node_pip_if_no_method_is_named(cli: Caller, table: Path) -> None:
    words = ("fit", f"data={table}", "target=price", *QUICK)
    said = cli(*words, "name=a")
    assert said.code == 0, said.err
    assert "method: node-pip, which judges the columns of a table" in said.out
    assert json.loads(Path("runs/a/config.json").read_text())["method"] == "node-pip"
    named = cli(*words, "method=ss-ghs", "name=b")
    assert "method:" not in named.out
    assert json.loads(Path("runs/b/config.json").read_text())["method"] == "ss-ghs"


def test_default_networks(cli: Caller, table: Path) -> None:
    assert "fc1 (64 units)" in cli("explain", f"data={table}", "target=price").out
    assert "fc1 (400 units)" in cli("explain", "data=digits").out
    assert "fc1 (64 units)" in cli("explain", "data=wine").out


def test_the_card_and_the_report_escape_what_users_wrote(cli: Caller, tmp_path: Path) -> None:
    lines = ["x,y,`<b>k`"]
    for i in range(60):
        lines.append(f"{i % 7},{i % 3},{'<script>alert(1)</script>' if i % 2 else '``` # | x'}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    said = cli("fit", "data=t.csv", "target=`<b>k`", *QUICK, "batch=8", "name=a")
    assert said.code == 0, said.err
    assert "<script>" not in Path("runs/a/report.html").read_text()
    card = Path("runs/a/README.md").read_text()
    assert "`<script>alert(1)</script>`" in card
    assert "``` #" not in card


def test_options_are_the_keys() -> None:
    """Every option can be given on the command line, and reaches the run."""
    options = vars(options_for(FitKeys()))
    assert options == vars(Options())
    assert options.keys() <= FitKeys.model_fields.keys()
    given = {
        "max_macs": 9,
        "max_latency_ms": 0.5,
        "sparsity": 0.5,
        "unit": "feature",
        "keep": ("a",),
        "quick": True,
        "finetune": 3,
        "survivors": False,
        "lr": 0.1,
        "baseline": False,
        "samples": 7,
    }
    told = vars(options_for(FitKeys(**given)))
    assert {key: told[key] for key in given} == given


def test_a_first_look_is_quick_and_says_what_it_is(
    cli: Caller, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bayespare.options, "QUICK", 200)
    said = cli("fit", f"data={digits}", "net=mlp:16,8", "quick=true", "name=a")
    assert said.code == 0, said.err
    told = r"^(warning: )?quick=true: 4 epochs in place of \d+, and no dense network is trained"
    assert len(re.findall(told, said.out, re.M)) == 2
    assert said.out.index("quick=true") < said.out.index("run folder")
    assert f"1/{Options(epochs=4).schedule(288).total}, about" in said.err
    metrics = json.loads(Path("runs/a/metrics.json").read_text())
    assert metrics["quick"] is True
    assert "dense" not in metrics
    assert "quick=true: 4 epochs" in Path("runs/a/report.html").read_text()
    for other in ("epochs=3", "time=3"):
        refused = cli("fit", f"data={digits}", "quick=true", other)
        assert refused.error == f"{other[:-1]} and quick=true exclude each other; give one of them"


def test_a_time_becomes_epochs_that_a_resumed_run_keeps(
    cli: Caller, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bayespare.options, "measure_pace", lambda *_: Pace(1.0, 2.0))
    words = ("fit", f"data={digits}", "net=mlp:16", "baseline=false", "name=a")
    said = cli(*words, "time=1s")
    assert said.code == 2
    assert "time=1.0: the fewest epochs that make sense (4) need about" in said.error
    assert not Path("runs").exists()
    with pytest.MonkeyPatch.context() as patch:
        Stop(patch, 2)
        said = cli(*words, "time=40s")
    assert said.code == 130
    config = json.loads(Path("runs/a/config.json").read_text())
    epochs = config["keys"]["epochs"]
    assert f"time: {epochs} epochs fit into 40s" in said.out
    assert config["time"] == 40
    assert 6 < epochs < 40
    monkeypatch.setattr(bayespare.options, "measure_pace", None)
    refused = cli("fit", "resume=runs/a", "time=50s")
    assert "time=50.0 cannot be changed on resume; the run began with time=40.0" in refused.error
    resumed = cli("fit", "resume=runs/a", "time=40s")
    assert resumed.code == 0, resumed.err
    config = json.loads(Path("runs/a/config.json").read_text())
    assert (config["epochs"], config["keys"]["epochs"], config["time"]) == (epochs, epochs, 40)


def test_what_is_kept_is_kept(cli: Caller, digits: Path) -> None:
    words = ("fit", f"data={digits}", *QUICK)
    said = cli(*words, "keep=fc1", "name=a")
    assert said.code == 0, said.err
    assert "plan: 72 units can be removed: input 64 features, fc2 8 units" in said.out
    assert load("runs/a").model.fc1[1].weight.shape[0] == 16
    assert cli("eval", "runs/a").code == 0
    assert "kept whole, as asked" in cli("explain", "runs/a").out
    said = cli(*words, "unit=feature", "name=b")
    assert "plan: 64 units can be removed: input 64 features" in said.out
    assert json.loads(Path("runs/b/config.json").read_text())["unit"] == "feature"


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with threads(None):
        assert torch.get_num_threads() == before


class Stop:
    """Raises Ctrl-C after a number of epochs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left = after
        original = bayespare.training.search.Search._save

        def save(search: Any, *state: Any) -> None:
            original(search, *state)
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(bayespare.training.search.Search, "_save", save)


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    cli: Caller, digits: Path, after: int
) -> None:
    words = ("fit", f"data={digits}", "net=mlp:16", "epochs=8", "baseline=false")
    assert cli(*words, "name=whole").code == 0
    with pytest.MonkeyPatch.context() as patch:
        Stop(patch, after)
        said = cli(*words, "name=cut")
    assert said.code == 130
    line = said.err.splitlines()[-1]
    assert "the last finished epoch is kept in runs/cut/checkpoint" in line
    assert line.endswith("go on with: bayespare fit resume=runs/cut")

    unfinished = cli("eval", "runs/cut")
    assert unfinished.code == 2
    assert "bayespare fit resume=runs/cut" in unfinished.error

    resumed = cli("fit", "resume=runs/cut", "threads=1")
    assert resumed.code == 0, resumed.err
    whole, cut = Path("runs/whole"), Path("runs/cut")
    for name in ("model.safetensors", "posterior.safetensors"):
        one, other = read_tensors(whole / name), read_tensors(cut / name)
        assert all(torch.equal(one[key], other[key]) for key in {*one, *other})
    for name in ("verdict.json", "plan.json", "frontier.json"):
        assert (whole / name).read_text() == (cut / name).read_text()
    one, other = (read_history(folder / "history.jsonl") for folder in (whole, cut))
    for row in (*one, *other):
        row.pop("seconds")
    assert one == other
    assert not (cut / "checkpoint").exists()
    finished = cli("fit", "resume=runs/cut")
    assert finished.code == 2
    assert "the run is finished" in finished.error


def test_what_resume_refuses(cli: Caller, digits: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data.npz"
    copy.write_bytes(digits.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        Stop(patch, 1)
        assert cli("fit", f"data={copy}", *QUICK, "name=cut").code == 130
    before = files(Path("runs/cut"))
    refused = cli("fit", "resume=runs/cut", "seed=3")
    assert refused.code == 2
    assert "seed=3 cannot be changed on resume; the run began with seed=0" in refused.error
    assert cli("fit", "resume=runs/nowhere").error == "runs/nowhere: there is no such folder"
    copy.unlink()
    assert "there is no such file" in cli("fit", "resume=runs/cut").error
    np.savez(copy, x=np.random.default_rng(0).normal(size=(99, 64)), y=np.arange(99) % 10)
    assert "the data have changed since the run began" in cli("fit", "resume=runs/cut").error
    assert files(Path("runs/cut")) == before


def test_a_stop_before_the_first_checkpoint_can_be_resumed_too(
    cli: Caller, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bayespare.training.baseline, "run_epoch", stop)
        said = cli("fit", f"data={digits}", *QUICK, "name=a")
    assert said.code == 130
    assert "so the run will start over" in said.err
    assert cli("fit", "resume=runs/a").code == 0


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process started in the background ignores SIGINT, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_a_real_interrupt(digits: Path, tmp_path: Path, way: signal.Signals) -> None:
    words = ["fit", f"data={digits}", "net=mlp:16", "epochs=2000", "batch=16", "name=a"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bayespare", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    history = tmp_path / "runs/a/history.jsonl"
    while len(read_history(history)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(way)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].endswith("go on with: bayespare fit resume=runs/a")


def limited(kilobytes: int) -> Any:
    """What makes every longer file fail to be written, like a full disk."""
    size = kilobytes * 1024
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_is_said_in_a_line_and_loses_nothing(
    cli: Caller, digits: Path, tmp_path: Path
) -> None:
    """The checkpoint of this network needs 50 kB."""
    words = ["fit", f"data={digits}", "net=mlp:64", "epochs=6", "baseline=false", "name=a"]
    said = subprocess.run(
        [sys.executable, "-m", "bayespare", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=limited(30),
    )
    assert said.returncode == 2
    line = said.stderr.splitlines()[-1]
    assert re.match(r"bayespare: runs/a/checkpoint/.*: cannot be written \(.*too large", line)
    assert line.endswith("go on with: bayespare fit resume=runs/a")
    assert "Traceback" not in said.stderr
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("*.safetensors"))
    resumed = cli("fit", "resume=runs/a")
    assert resumed.code == 0, resumed.err


def test_what_a_kill_leaves_goes_when_the_run_goes_on(cli: Caller, run: Path) -> None:
    """A kill between the results and the end of the checkpoint's removal."""
    (run / "checkpoint").mkdir()
    (run / "checkpoint/fit-000007.safetensors").write_bytes(b"half")
    (run / "frontier/.model.safetensors.1.part").write_bytes(b"half")
    said = cli("fit", f"resume={run}")
    assert "the run is finished" in said.error
    assert not (run / "checkpoint").exists()
    assert not list(run.rglob("*.part"))


def test_two_processes_cannot_work_in_one_folder(cli: Caller, digits: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Stop(patch, 1)
        assert cli("fit", f"data={digits}", *QUICK, "name=a").code == 130
    before = files(Path("runs/a"))
    with alone_in(Path("runs/a")):
        assert cli("fit", "resume=runs/a").error == "runs/a: another process is working there"
        again = cli("fit", f"data={digits}", *QUICK, "name=a", "exist_ok=true")
        assert again.error == "runs/a: another process is working there"
    assert files(Path("runs/a")) == before


def test_a_row_that_comes_again_replaces_what_followed_it(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path, resume=False)
    for epoch in (1, 2, 3):
        history.add({"phase": "a", "epoch": epoch, "try": 1})
    with path.open("a") as file:
        file.write('{"phase": "a", "ep')
    history = History(path, resume=True)
    history.add({"phase": "a", "epoch": 2, "try": 2})
    assert [(row["epoch"], row["try"]) for row in history.rows] == [(1, 1), (2, 2)]
    assert read_history(path) == history.rows
    assert History(path, resume=False).rows == []
