"""What the tests of the command line share: tiny data, runs made once, and a caller."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_caller import QUICK, Caller, Said
from sklearn.datasets import load_digits

from bayespare.cli.main import main


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Caller:
    """Run a command line in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Said:
        capsys.readouterr()
        code = main(words)
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 of the digits in an .npz file."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    data = load_digits()
    np.savez(path, x=data.images[:400].astype(np.float32), y=data.target[:400])
    return path


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with numbers, a category and a quantity to predict."""
    path = tmp_path_factory.mktemp("data") / "house.csv"
    draw = np.random.default_rng(0)
    lines = ["size,age,kind,noise,price"]
    for _ in range(200):
        size, age, kind = draw.uniform(20, 200), draw.uniform(0, 90), draw.integers(3)
        price = 1000 * size - 500 * age + 20000 * kind + draw.normal(0, 3000)
        lines.append(f"{size:.2f},{age:.1f},{'abc'[kind]},{draw.normal():.3f},{price:.2f}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A finished run with two sizes or more on its frontier; not to be changed."""
    project = tmp_path_factory.mktemp("runs")
    words = ("net=mlp:24", "epochs=40", "batch=8", "prior=0.0001")
    assert main(["fit", f"data={digits}", *words, f"project={project}", "name=done"]) == 0
    return project / "done"


@pytest.fixture(scope="session")
def regressor(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Path:
    """A finished run on a table; not to be changed."""
    project = tmp_path_factory.mktemp("runs")
    words = ("target=price", *QUICK)
    assert main(["fit", f"data={table}", *words, f"project={project}", "name=done"]) == 0
    return project / "done"


@pytest.fixture
def run(classifier: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be changed."""
    folder = tmp_path / "copy"
    shutil.copytree(classifier, folder)
    return folder
