"""Bad input to ``fit``: one line that says what and where, exit code 2, nothing written."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_caller import QUICK, Caller

TABLE = "a,b,y\n" + "".join(f"{i},{i % 5},{'uv'[i % 2]}\n" for i in range(40))


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def arrays(**values: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.savez(folder / "d.npz", **values)


def truncated_npz(folder: Path) -> None:
    np.savez(folder / "d.npz", x=np.zeros((50, 4)), y=np.arange(50) % 2)
    whole = (folder / "d.npz").read_bytes()
    (folder / "d.npz").write_bytes(whole[: len(whole) // 2])


def truncated_gz(folder: Path) -> None:
    (folder / "mnist").mkdir()
    for part, count in (("train", 60), ("t10k", 20)):
        images = b"\x00\x00\x08\x03" + count.to_bytes(4, "big") + b"\x00\x00\x00\x04" * 2
        labels = b"\x00\x00\x08\x01" + count.to_bytes(4, "big")
        packed = gzip.compress(images + np.random.default_rng(0).bytes(count * 16))
        (folder / f"mnist/{part}-images-idx3-ubyte.gz").write_bytes(packed[: len(packed) // 2])
        values = bytes(i % 3 for i in range(count))
        (folder / f"mnist/{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels + values))


def unequal_idx(folder: Path) -> None:
    (folder / "mnist").mkdir()
    images = b"\x00\x00\x08\x03" + (60).to_bytes(4, "big") + b"\x00\x00\x00\x04" * 2 + bytes(960)
    labels = b"\x00\x00\x08\x01" + (59).to_bytes(4, "big") + bytes(i % 3 for i in range(59))
    (folder / "mnist/train-images-idx3-ubyte").write_bytes(images)
    (folder / "mnist/train-labels-idx1-ubyte").write_bytes(labels)


def user_net(code: str) -> Callable[[Path], None]:
    return text("own_net.py", f"import torch\nfrom torch import nn\n{code}\n")


def holed(value: str) -> str:
    return TABLE.replace("\n7,2,v\n", f"\n7,{value},v\n")


X, Y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
DIGITS = ("data=digits", *QUICK)

CASES: dict[str, tuple[Callable[[Path], None] | None, tuple[str, ...], tuple[str, ...]]] = {
    "missing file": (None, ("data=nowhere.npz",), ("nowhere.npz", "no such file")),
    "mistyped data": (None, ("data=digit",), ("'digit'", "did you mean 'digits'?")),
    "no data": (None, (), ("say which data", "data=digits")),
    "unreadable file": (text("d.npz", "not zipped"), ("data=d.npz",), ("d.npz",)),
    "unknown kind": (text("d.doc", "x"), ("data=d.doc",), ("d.doc", "unknown kind of file")),
    "truncated npz": (truncated_npz, ("data=d.npz",), ("d.npz",)),
    "truncated gz": (truncated_gz, ("data=mnist",), ("train-images-idx3-ubyte.gz",)),
    "counts differ": (unequal_idx, ("data=mnist",), ("60", "59")),
    "counts differ in npz": (arrays(x=X, y=Y[:-1]), ("data=d.npz",), ("d.npz", "60", "59")),
    "no target": (text("t.csv", TABLE), ("data=t.csv",), ("t.csv", "target=", "a, b, y")),
    "wrong target": (
        text("t.csv", TABLE),
        ("data=t.csv", "target=Y"),
        ("t.csv: there is no column 'Y'", "a, b, y"),
    ),
    "constant target": (
        text("t.csv", TABLE.replace(",u", ",v")),
        ("data=t.csv", "target=y"),
        ("t.csv", "'y'", "one value only ('v')"),
    ),
    "one class": (arrays(x=X, y=Y * 0), ("data=d.npz",), ("d.npz", "one value only")),
    "missing value": (
        text("t.csv", holed("")),
        ("data=t.csv", "target=y"),
        ("column 'b'", "row 8 (line 9)", "impute=mean"),
    ),
    "infinite value": (
        text("t.csv", holed("inf")),
        ("data=t.csv", "target=y"),
        ("column 'b'", "row 8 (line 9)"),
    ),
    "NaN in npz": (
        arrays(x=np.where(np.arange(240).reshape(60, 4) == 21, np.nan, X), y=Y),
        ("data=d.npz",),
        ("d.npz", "row 5"),
    ),
    "free text as labels": (
        text("t.csv", "a,y\n" + "".join(f"{i},text number {i}\n" for i in range(60))),
        ("data=t.csv", "target=y"),
        ("'y'", "60 distinct texts", "not class labels"),
    ),
    "decimals as labels": (
        arrays(x=X, y=Y + 0.5),
        ("data=d.npz", "task=classification"),
        ("needs labels", "0.5"),
    ),
    "fewer rows than a batch": (
        arrays(x=X, y=Y),
        ("data=d.npz", "batch=512"),
        ("batch=512", "must be between 1 and"),
    ),
    "unknown method": (None, (*DIGITS, "method=ss-gsh"), ("'ss-gsh'", "did you mean 'ss-ghs'?")),
    "unknown net": (None, ("data=digits", "net=mpl:4"), ("'mpl:4'", "did you mean 'mlp'?")),
    "wrong width": (None, ("data=digits", "net=mlp:4x"), ("'mlp:4x'", "'4x'", "whole number")),
    "net that does not fit": (None, ("data=digits", "net=lenet5"), ("'lenet5'", "needs images")),
    "no such module": (None, ("data=digits", "net=nowhere:make"), ("'nowhere'", "no module")),
    "unknown key": (None, (*DIGITS, "methd=ss-ig"), ("'methd'", "did you mean 'method'?")),
    "unknown value": (
        None,
        (*DIGITS, "precision=bf15"),
        ("precision=bf15", "float32 or bf16", "did you mean 'bf16'?"),
    ),
    "target of no table": (None, (*DIGITS, "target=y"), ("digits", "target=y", "not a table")),
    "impute of no table": (None, (*DIGITS, "impute=mean"), ("impute=mean is for tables",)),
    "drop of no table": (None, (*DIGITS, "drop=a"), ("drop=a is for tables",)),
    "drop of no column": (
        text("t.csv", TABLE),
        ("data=t.csv", "target=y", "drop=a,c"),
        ("t.csv", "no column 'c'"),
    ),
    "nothing removable": (
        user_net("def make(inputs, outputs): return nn.Sequential(nn.Flatten(), nn.Softmax(1))"),
        ("data=digits", "net=own_net:make"),
        ("own_net:make", "64", "10"),
    ),
    "nothing removable, right outputs": (
        user_net(
            "class Fixed(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.w = nn.Parameter(torch.randn(64, 10))\n"
            "    def forward(self, x):\n"
            "        return torch.fft.fft(x.flatten(1)).real @ self.w\n"
            "def make(): return Fixed()"
        ),
        ("data=digits", "net=own_net:make"),
        ("nothing in this model can be removed",),
    ),
    "wrong outputs": (
        user_net("def make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))"),
        ("data=digits", "net=own_net:make"),
        ("own_net:make", "(2, 7)", "10 classes need (2, 10)"),
    ),
    "wrong inputs": (
        user_net("def make(): return nn.Linear(63, 10)"),
        ("data=digits", "net=own_net:make"),
        ("own_net:make", "does not run on inputs of shape (64,)"),
    ),
    "token ids": (
        lambda folder: (
            np.savez(folder / "d.npz", x=np.arange(240).reshape(60, 4), y=Y),
            user_net(
                "def make():\n"
                "    return nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(16, 3))"
            )(folder),
        )[-1],
        ("data=d.npz", "net=own_net:make"),
        ("d.npz, training rows: layer '0' looks up numbers from 0 to 49", "the largest is 2"),
    ),
    "no GPU": (None, (*DIGITS, "device=cuda"), ("device=cuda", "no GPU", "device=cpu")),
    "other device": (None, (*DIGITS, "device=mps"), ("device=mps", "cpu and cuda only")),
    "huge seed": (None, (*DIGITS, "seed=99999999999999999999"), ("seed", "below 2^63")),
    "no device": (None, (*DIGITS, "device=gpu"), ("device=gpu", "auto, cpu, cuda")),
    "a group that is not there": (
        None,
        (*DIGITS, "keep=fc1,fc9"),
        ("keep=fc1,fc9: the plan has no 'fc9'", "did you mean 'fc"),
    ),
    "everything kept": (None, (*DIGITS, "keep=input,fc1,fc2"), ("nothing is left",)),
    "a unit for later": (
        None,
        (*DIGITS, "unit=weight"),
        ("unit=weight: ss-ghs decides about unit or feature", "bmr"),
    ),
    "features of faithful": (
        None,
        (*DIGITS, "unit=feature", "settings=faithful"),
        ("unit=feature: settings=faithful gates hidden units alone",),
    ),
    "features of images": (
        user_net(
            "def make():\n"
            "    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.ReLU(),\n"
            "                         nn.Flatten(), nn.Linear(144, 10))"
        ),
        ("data=digits", "net=own_net:make", "unit=feature"),
        ("unit=feature: no input feature can be removed",),
    ),
    "two ways to say one size": (
        None,
        (*DIGITS, "sparsity=0.5", "max_params=100"),
        ("sparsity= and max_params= say the same",),
    ),
    "parameters out of reach": (None, (*DIGITS, "max_params=9"), ("max_params=9: out of reach",)),
    "MACs out of reach": (None, (*DIGITS, "max_macs=9"), ("max_macs=9: out of reach", "MACs")),
    "time out of reach": (
        None,
        (*DIGITS, "max_latency_ms=1e-5"),
        ("max_latency_ms=1e-05: out of reach", "ms a row"),
    ),
    "too many ways to say how long": (
        None,
        (*DIGITS, "time=10m"),
        ("epochs= and time= exclude each other",),
    ),
    "missing cfg": (None, (*DIGITS, "cfg=no.yaml"), ("cfg=no.yaml", "No such file")),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_writes_nothing(cli: Caller, name: str, tmp_path: Path) -> None:
    prepare, words, said = CASES[name]
    if "no GPU" in name and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    # A module of the same name, from another test.
    sys.modules.pop("own_net", None)
    if prepare is not None:
        prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = cli("fit", *words)
    assert result.code == 2, result
    assert result.out == ""
    for part in said:
        assert part in result.error
    made = set(tmp_path.rglob("*")) - set(before)
    assert not [path for path in made if "__pycache__" not in str(path)]


def test_a_folder_that_exists_is_left_alone(cli: Caller, tmp_path: Path) -> None:
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/model.safetensors").write_text("old")
    result = cli("fit", *DIGITS, "name=a")
    assert result.code == 2
    assert "runs/a: exists and is not empty" in result.error
    assert "exist_ok=true" in result.error
    assert (tmp_path / "runs/a/model.safetensors").read_text() == "old"
    assert len(list((tmp_path / "runs/a").iterdir())) == 1


def test_bad_input_leaves_the_run_that_was_to_be_replaced(cli: Caller, tmp_path: Path) -> None:
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/config.json").write_text("{}")
    result = cli("fit", *DIGITS, "name=a", "exist_ok=true", "batch=100000")
    assert result.code == 2
    assert (tmp_path / "runs/a/config.json").read_text() == "{}"


def test_a_loss_that_stops_being_finite(cli: Caller, tmp_path: Path) -> None:
    code = (
        "class Blow(nn.Module):\n"
        "    def forward(self, x): return x * float('nan') if self.training else x\n"
        "def make():\n"
        "    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10), Blow())"
    )
    sys.modules.pop("own_net", None)
    user_net(code)(tmp_path)
    result = cli("fit", "data=digits", "net=own_net:make", "epochs=2", "name=a")
    assert result.code == 2
    assert "the loss became nan" in result.error
    assert "no good state was reached" in result.error
    assert not (tmp_path / "runs/a/model.safetensors").exists()


def test_a_project_that_cannot_be_made(cli: Caller, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    result = cli("fit", *DIGITS)
    assert result.code == 2
    assert "runs: " in result.error
