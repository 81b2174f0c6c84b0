"""``torchrun -m bayespare fit``: two processes, one of them killed, then both again to the end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bayespare

pytestmark = pytest.mark.processes

PATIENCE = 120

if not Path("/proc/self/environ").exists():
    pytest.skip("finds the processes of torchrun in /proc", allow_module_level=True)


def torchrun(*words: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program += ["--nproc-per-node=2", "-m", "bayespare", *words]
    source = str(Path(bayespare.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        program, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def process_of(rank: int, launcher: subprocess.Popen[str]) -> int:
    """The id of a rank's process."""
    children = Path(f"/proc/{launcher.pid}/task").glob("*/children")
    for child in " ".join(path.read_text() for path in children).split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError("torchrun has no such process")


def test_a_killed_rank_ends_the_others_and_the_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    keys = ["data=digits", "net=mlp:32", "quick=true", f"project={tmp_path}", "name=a"]
    running = torchrun("fit", *keys)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (folder / "checkpoint" / "state.json").is_file():
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.02)
        os.kill(process_of(1, running), signal.SIGKILL)
        _, said = running.communicate(timeout=PATIENCE)
    finally:
        running.kill()
    assert running.returncode != 0
    assert f"go on with: torchrun --nproc-per-node=N -m bayespare fit resume={folder}" in said
    assert f"the last finished epoch is kept in {folder / 'checkpoint'}" in said
    assert not (folder / "metrics.json").exists()

    again = torchrun("fit", f"resume={folder}", "--json")
    try:
        said, complained = again.communicate(timeout=PATIENCE)
    finally:
        again.kill()
    assert again.returncode == 0, complained
    printed = json.loads(said)
    assert printed["metrics"]["compact"]["accuracy"] > 0.9
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    epochs = [(row["phase"], row["epoch"]) for row in rows]
    assert len(epochs) == len(set(epochs)) > 10
    assert not (folder / "checkpoint").exists()
    small = bayespare.load(folder).model
    assert sum(p.numel() for p in small.parameters()) == printed["metrics"]["compact"]["parameters"]
