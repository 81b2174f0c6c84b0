"""Files of token ids, for networks that look them up: from fit to export, and what is refused."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_caller import Caller
from torch import nn

from bayespare.load import load

NET = """
from torch import nn


class Reader(nn.Module):
    def __init__(self, length, classes):
        super().__init__()
        self.tokens = nn.Embedding(50, 8)
        self.fc = nn.Sequential(nn.Linear(8 * length, 24), nn.ReLU(), nn.Linear(24, classes))

    def forward(self, x):
        return self.fc(self.tokens(x).flatten(1))


def build(inputs, outputs):
    return Reader(inputs[0], outputs)
"""
NET_KEY = "net=reader:build"
WORDS = (NET_KEY, "epochs=6")


@pytest.fixture
def ids(cli: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Six ids a row; files of them, and a network, in the current directory."""
    (tmp_path / "reader.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    x = np.random.default_rng(0).integers(0, 50, (400, 6))
    np.savez(tmp_path / "ids.npz", x=x, y=x[:, 0] % 2)
    rows = [",".join(map(str, [*row, row[0] % 2])) for row in x]
    (tmp_path / "ids.csv").write_text("\n".join(["a,b,c,d,e,f,label", *rows]) + "\n")
    np.savez(tmp_path / "new.npz", x=x[:5])
    np.savez(tmp_path / "odd.npz", x=np.where(np.arange(6) == 2, 77, x[:5]))
    np.savez(tmp_path / "decimals.npz", x=x + 0.5, y=x[:, 0] % 2)
    return x


def built() -> nn.Module:
    """The network as the user has it."""
    network: nn.Module = importlib.import_module("reader").build((6,), 2)
    return network


@pytest.mark.parametrize("data", [("data=ids.npz",), ("data=ids.csv", "target=label")])
def test_ids_in_a_file_are_looked_up(cli: Caller, ids: np.ndarray, data: tuple[str, ...]) -> None:
    assert cli("fit", *data, *WORDS, "name=run").code == 0
    run = load("runs/run", built())
    assert run.config.tokens
    # As trained: no id was standardised, whatever the file was read as.
    x = torch.tensor(ids[:9])
    assert torch.equal(run.predict(x).probs, run.predict(x.float()).probs)
    assert cli("eval", "runs/run", NET_KEY).code == 0
    assert cli("pick", "runs/run", NET_KEY, "max_latency_ms=100").code == 0
    said = cli("export", "runs/run", NET_KEY, "format=torch")
    assert "input: int64 (batch, 6)" in said.out


def test_a_network_of_ids_is_reduced(cli: Caller, ids: np.ndarray) -> None:
    torch.manual_seed(0)
    torch.save(built().state_dict(), "weights.pt")
    words = ("weights=weights.pt", "force=true", "rounds=1", "name=small")
    assert cli("reduce", "data=ids.npz", NET_KEY, *words).code == 0
    assert load("runs/small", built()).config.tokens
    assert cli("eval", "runs/small", NET_KEY).code == 0


def test_a_network_of_ids_is_explained(cli: Caller, ids: np.ndarray) -> None:
    said = cli("explain", NET_KEY, "data=ids.csv", "target=label")
    assert said.code == 0
    assert "tokens.weight" in said.out


def test_what_cannot_be_looked_up_is_refused(cli: Caller, ids: np.ndarray) -> None:
    said = cli("fit", "data=decimals.npz", *WORDS)
    assert said.code == 2
    assert "layer 'tokens' looks up whole numbers" in said.err
    said = cli("fit", "data=ids.npz", "standardize=both", *WORDS)
    assert said.code == 2
    assert "standardize=neither leaves them as they are" in said.err
    assert cli("fit", "data=ids.npz", *WORDS, "name=run").code == 0
    said = cli("predict", "runs/run", NET_KEY, "data=odd.npz", "out=p.csv")
    assert said.code == 2
    assert "the largest is 77" in said.err
    assert not Path("p.csv").exists()
    assert cli("predict", "runs/run", NET_KEY, "data=new.npz", "out=p.csv").code == 0
    assert len(Path("p.csv").read_text().splitlines()) == 6
