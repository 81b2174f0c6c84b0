"""``bayespare export``: the run's network as a file, with what it takes to use it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cli_caller import Caller

from bayespare.cli.folder import EXPORTS, FILES
from bayespare.export import SUFFIXES
from bayespare.load import load


def test_an_onnx_file_goes_into_the_folder_and_predicts_what_the_run_predicts(
    cli: Caller, run: Path
) -> None:
    said = cli("export", str(run), "--json")
    assert said.code == 0, said.err
    path = run / "model.onnx"
    answer = said.json
    assert (answer["out"], answer["format"]) == (str(path), "onnx")
    assert answer["bytes"] == path.stat().st_size
    assert 0 <= answer["difference"] <= 1e-5
    assert answer["inputs"] == [8, 8]
    loaded = load(run)
    x = torch.rand(5, 8, 8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, {"input": x.numpy()})[0]
    with torch.no_grad():
        expected = loaded.model(x).numpy()
    assert abs(got - expected).max() <= 1e-5 * abs(expected).max()
    about = json.loads({p.key: p.value for p in onnx.load(path).metadata_props}["bayespare"])
    assert about["classes"] == [str(i) for i in range(10)]
    assert about["output"] == "logits of 10 classes"
    assert about["transform"] == loaded.config.transform
    assert str(run) not in path.read_bytes().decode("latin-1")


def test_a_regression_says_how_its_output_becomes_the_target(
    cli: Caller, regressor: Path, tmp_path: Path
) -> None:
    path = tmp_path / "house.pt2"
    said = cli("export", f"run={regressor}", "format=torch", f"out={path}")
    assert said.code == 0, said.err
    mean, std = load(regressor).config.target_scale
    assert f"times {std:.9g} plus {mean:.9g}" in said.out
    assert f"{path}: {path.stat().st_size:,} bytes" in said.out
    about = {"bayespare": ""}
    module = torch.export.load(path, extra_files=about).module()
    assert json.loads(about["bayespare"])["target_scale"] == [mean, std]
    loaded = load(regressor)
    x = torch.randn(3, *loaded.config.inputs)
    np.testing.assert_allclose(module(x).detach(), loaded.model(x).detach(), rtol=1e-5, atol=1e-6)


def test_an_existing_file_is_refused_unless_it_may_be_replaced(cli: Caller, run: Path) -> None:
    path = run / "model.pt2"
    path.write_text("mine")
    said = cli("export", str(run), "format=torch")
    assert said.code == 2
    assert said.error == f"{path}: exists; choose another file, or give exist_ok=true"
    assert path.read_text() == "mine"
    assert cli("export", str(run), "format=torch", "exist_ok=true").code == 0
    assert path.read_bytes()[:2] == b"PK"


def test_another_pick_takes_the_exported_files_away(cli: Caller, run: Path) -> None:
    assert set(EXPORTS) == {f"model{suffix}" for suffix in SUFFIXES.values()}
    assert set(EXPORTS) < set(FILES)  # a run that is replaced takes them along, too
    assert cli("export", str(run), "format=torch").code == 0
    name = json.loads((run / "frontier.json").read_text())[-1]["name"]
    copy = run.parent / "other"
    assert cli("pick", str(run), f"name={name}", f"to={copy}").code == 0
    assert (run / "model.pt2").exists()
    assert not (copy / "model.pt2").exists()
    assert cli("pick", str(run), f"name={name}").code == 0
    assert not (run / "model.pt2").exists()


def test_bad_input_is_one_line(
    cli: Caller, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(classifier)
    for words, message in (
        (("export",), "export: say which run"),
        (("export", "nowhere"), "nowhere: there is no such folder"),
        (("export", run, "format=onxn"), "must be onnx or torch (did you mean 'onnx'?)"),
        (("export", run, f"out={tmp_path}"), "is a folder"),
        (("export", run, "out=no/such.onnx"), "there is no folder no"),
        (("export", run, "formt=onnx"), "did you mean 'format'?"),
    ):
        said = cli(*words)
        assert (said.code, message in said.error) == (2, True), said.err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    said = cli("export", run, f"out={tmp_path / 'a.onnx'}")
    assert said.code == 2
    assert "pip install 'bayespare[export]'" in said.error
    assert not list(tmp_path.glob("*"))
