"""Damaged and hostile files are read, or refused in a line.

``benchmarks/faults.py`` tries 10,000 of them.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_inputs import TARGETS, limited, make_samples, try_one
from hypothesis import given, settings
from hypothesis import strategies as st

import bayespare
from bayespare import data
from bayespare.cli.main import main
from bayespare.errors import BayespareError
from bayespare.report.markup import CONTROLS
from bayespare.training.checkpoint import Checkpoint
from bayespare.training.history import read_history

HUGE = 10**12


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    make_samples(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_read_or_refused(
    name: str, samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("place") / "p"

    @settings(max_examples=8 if name == "stopped" else 40)
    @given(seed=st.integers(0, 2**32))
    def check(seed: int) -> None:
        try_one(samples, name, random.Random(seed), place)

    check()


# --------------------------------------------------- promises of more than there is


def npz_that_promises(rows: int, path: Path, told: int | None = None) -> None:
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": (rows, 10)}
    np.lib.format.write_array_header_2_0(header, about)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 400)
    if told is not None:  # the directory says that the member is as long as its header says
        content = path.read_bytes()
        size = struct.pack("<I", len(header.getvalue()) + 400)
        path.write_bytes(content.replace(size, struct.pack("<I", told)))


def test_headers_that_promise_too_much_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    npz_that_promises(HUGE, tmp_path / "a.npz")
    npz_that_promises(2**24, tmp_path / "b.npz", told=2**31)
    images = struct.pack(">IIII", 0x803, 2**31, 2**15, 2**15) + bytes(100)
    (tmp_path / "c-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "d-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    for name in ("a.npz", "b.npz", "c-images-idx3-ubyte", "d-images-idx3-ubyte.gz"):
        with pytest.raises(BayespareError, match="promises"), limited():
            data.load(str(tmp_path / name))


def test_a_member_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    """Found by the fuzzer: the directory says that a name is UTF-8, and it is not."""
    np.savez(tmp_path / "a.npz", **{"\u00e9": np.zeros((4, 2)), "y": np.zeros(4)})
    path = tmp_path / "a.npz"
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xff\xff"))
    with pytest.raises(BayespareError, match=r"a\.npz: truncated or not an \.npz file"):
        data.load(str(path))


def test_what_is_packed_too_well_is_refused_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """True promises of more than the machine holds; here it is said to hold 4 MB."""
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((2**20, 2), np.float32))
    rows = pa.chunked_array([pa.array(np.zeros(2**20))])
    pq.write_table(pa.table({"a": rows, "b": rows}), tmp_path / "b.parquet")
    images = struct.pack(">IIII", 0x803, 2**13, 32, 32) + bytes(2**23)
    (tmp_path / "c-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    assert all(path.stat().st_size < 2**17 for path in tmp_path.iterdir())
    monkeypatch.setattr(os, "sysconf", lambda name: 2**11)
    for name in ("a.npz", "b.parquet", "c-images-idx3-ubyte.gz"):
        target = {"target": "b"} if name == "b.parquet" else {}
        with pytest.raises(BayespareError, match=rf"{name}.*promises [\d,]+ bytes, more than"):
            data.load(str(tmp_path / name), **target)


def test_safetensors_that_promise_too_much_are_refused(samples: Path, tmp_path: Path) -> None:
    run = copy_of(samples, tmp_path)
    header = json.dumps({"fc1.weight": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4]}})
    content = struct.pack("<Q", len(header)) + header.encode() + bytes(4)
    (run / "model.safetensors").write_bytes(content)
    with pytest.raises(BayespareError, match=r"model\.safetensors: not a safetensors"), limited():
        bayespare.load(run)
    (run / "model.safetensors").write_bytes(struct.pack("<Q", HUGE) + b"{}")
    with pytest.raises(BayespareError, match=r"model\.safetensors: not a safetensors"), limited():
        bayespare.load(run)


@pytest.mark.parametrize("name", ["model.safetensors", "posterior.safetensors"])
def test_a_flipped_bit_in_a_weight_is_seen(samples: Path, tmp_path: Path, name: str) -> None:
    run = copy_of(samples, tmp_path)
    content = bytearray((run / name).read_bytes())
    content[-2] ^= 1
    (run / name).write_bytes(bytes(content))
    with pytest.raises(BayespareError, match=rf"{name}: is damaged: not what was written"):
        bayespare.load(run)
    stopped = copy_of(samples, tmp_path / "s", "stopped") / "checkpoint"
    for path in stopped.glob("fit-*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(bytes(content))
    with pytest.raises(BayespareError, match="is damaged: not what was written"):
        Checkpoint(stopped).load()


# ------------------------------------------------------------ ways out of the folder


def copy_of(samples: Path, place: Path, kind: str = "run") -> Path:
    """A run whose files may be changed."""
    shutil.copytree(samples / kind, place / "copy")
    return place / "copy/runs/a"


@pytest.mark.parametrize("name", ["model.safetensors", "frontier", "config.json", "checkpoint"])
def test_links_out_of_a_run_are_refused(
    samples: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(samples, tmp_path)
    away = tmp_path / "away"
    if (run / name).exists():
        (run / name).rename(away)
    else:
        away.mkdir()
        (away / "mine.safetensors").write_bytes(b"precious")
    (run / name).symlink_to(away)
    with pytest.raises(BayespareError, match="is a link that leads out of the run's folder"):
        bayespare.load(run)
    for words in (["pick", str(run), "max_params=1e6"], ["fit", f"resume={run}"]):
        assert main(words) == 2
        assert "is a link that leads out" in capsys.readouterr().err
    (run / name).unlink()
    (run / name).symlink_to("../a/metrics.json")  # inside: nothing to fear


@pytest.mark.parametrize("name", ["../../outside/x", "/tmp/x", "..", "a/b", "a\\b", "", "a\0b"])
def test_names_in_a_checkpoint_cannot_lead_out_of_the_folder(
    samples: Path, tmp_path: Path, name: str
) -> None:
    run = copy_of(samples, tmp_path, "stopped")
    path = run / "checkpoint/state.json"
    before = run / "checkpoint/state-before.json"
    before.unlink(missing_ok=True)
    state = json.loads(path.read_text())
    part = next(iter(state["files"]))
    for files in (
        {**state["files"], part: name},
        {**state["files"], name: state["files"][part]},
    ):
        path.write_text(json.dumps({**state, "files": files}))
        with pytest.raises(BayespareError, match="refuses to read"):
            Checkpoint(run / "checkpoint").load()
    candidates = state["meta"]["candidates"]
    assert candidates
    candidates[0]["name"] = name
    state["files"] |= {f"candidate-{name}": state["files"][part]}
    path.write_text(json.dumps(state))
    assert main(["fit", f"resume={run}"]) == 2
    assert not (run / "frontier").exists()


def test_epochs_that_never_end_are_refused(samples: Path, tmp_path: Path) -> None:
    run = copy_of(samples, tmp_path, "stopped")
    path = run / "checkpoint/state.json"
    state = json.loads(path.read_text())
    state["meta"]["fit"]["epoch"] = -(10**9)
    path.write_text(json.dumps(state))
    with limited():
        assert main(["fit", f"resume={run}"]) == 2


@pytest.mark.parametrize(
    "content", [b'[1]\n{"a": 1}\n', b'\xff\n{"a": 1}\n', b"[" * 9000 + b"\n{}\n"]
)
def test_a_damaged_history_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(content)
    with pytest.raises(BayespareError, match=r"history\.jsonl line 1: not valid JSON"):
        read_history(path)


# --------------------------------------------------------------------- exotic names


def test_exotic_names_are_text_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Column names, labels and the file's name: markup, controls, other directions, emoji."""
    odd = ["<img src=x>", "a`|`b\u202e", "\u0007\u001b[31m", "](javascript:x)", "🙈"]
    lines = [",".join([*odd, "y"])]
    draw = np.random.default_rng(0)
    for i in range(60):
        cells = [f"{v:.2f}" for v in draw.normal(size=len(odd))]
        lines.append(",".join([*cells, "</script><b>" if i % 2 else "\u202eevil\u001b[2Jx"]))
    table = tmp_path / "<b>t&amp;.csv"
    table.write_text("\n".join(lines), encoding="utf-8")
    words = ("target=y", "net=mlp:6", "epochs=2", "baseline=false", "batch=8", "name=a")
    assert main(["fit", f"data={table}", *words, f"project={tmp_path}"]) == 0
    page = (tmp_path / "a/report.html").read_text(encoding="utf-8")
    card = (tmp_path / "a/README.md").read_text(encoding="utf-8")
    assert main(["eval", str(tmp_path / "a")]) == 0
    assert main(["explain", str(tmp_path / "a")]) == 0
    assert main(["predict", str(tmp_path / "a"), f"data={tmp_path / odd[2]}.csv", "out=x"]) == 2
    said = capsys.readouterr()
    for text in (page, card, said.out, said.err):
        assert not set(map(ord, text)) & set(CONTROLS)
    assert "<img src=x" not in page
    assert "</script><b>" not in page
    assert "🙈" in page
    assert "](javascript:" not in card.replace("`](javascript:x)`", "")
