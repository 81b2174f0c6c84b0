"""Kills, full disks, damaged input and long use, at length: ``faults.py [PART ...]``.

The harness is that of ``tests/faults``. Every part writes ``results/faults/PART.json`` as it goes
and goes on where it stopped; ``kills=10`` and the like make a part shorter.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from records import write

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT.parent / "tests/faults"))
os.environ["OMP_NUM_THREADS"] = "1"

import fault_inputs as files  # noqa: E402
import fault_runs as runs  # noqa: E402

from bayespare.methods import registered  # noqa: E402

RESULTS = ROOT / "results/faults"
Record = dict[str, Any]


def main() -> None:
    """Do the parts that are named, or all."""
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    warnings.simplefilter("ignore")  # damaged files make numpy and torch warn
    for name, (part, count) in PARTS.items():
        if not words or name in words:
            part(int(words.get(name) or count))
            print(name, (RESULTS / f"{name}.json").read_text()[:600], flush=True)


def known(name: str) -> Record:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def note(name: str, record: Record) -> None:
    path = RESULTS / f"{name}.json"
    write(path, record)


def kills(count: int) -> None:
    """Kill runs of all methods at random moments; each must end as if nobody had killed it."""
    record = known("kills")
    done: list[Record] = record.get("runs", [])
    wholes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        table = runs.make_data(base / "d.npz")
        while len(done) < count:
            method = registered()[len(done) % len(registered())]
            if method not in wholes:
                wholes[method] = runs.uninterrupted(method, table, base / method / "whole")
            draw = random.Random(len(done))
            folder = base / method / str(len(done))
            found = runs.kill_and_resume(method, table, folder, wholes[method], draw)
            done.append(vars(found))
            stops = [stop for run in done for stop in run["kills"]]
            note(
                "kills",
                {
                    "runs_killed": len(done),
                    "kills": len(stops),
                    "identical": sum(run["identical"] for run in done),
                    "runs_with_stray_files": sum(bool(run["stray"]) for run in done),
                    "signals": Counter(stop[0] for stop in stops),
                    "killed_while": Counter(stop[1] for stop in stops),
                    "runs": done,
                },
            )
            shutil.rmtree(folder)


def disk(count: int) -> None:
    """Limits to the length of files from a few bytes on, and small file systems that fill up."""
    done: list[Record] = []
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        table = runs.make_data(base / "d.npz")
        wholes = {m: runs.uninterrupted(m, table, base / m) for m in ("ss-ghs", "bmr", "spam")}
        for number in range(count):
            method = list(wholes)[number % len(wholes)]
            size = int(10 ** draw.uniform(2, 5))  # standard error is a file here
            folder = base / f"limit{number}"
            found = runs.starve_and_resume(method, table, folder, wholes[method], size)
            done.append({"kind": "limit", **found})
            folder = base / f"full{number}"
            done += _small_disk(method, table, folder, wholes[method], 4096 * draw.randint(2, 60))
            failed = [run for run in done if run["exit_code"] != 0]
            note(
                "disk",
                {
                    "runs": len(done),
                    "on_a_small_file_system": sum(run["kind"] == "tmpfs" for run in done),
                    "out_of_room": len(failed),
                    "said_in_one_line": sum(
                        not run["traceback"] and run["exit_code"] == 2 for run in failed
                    ),
                    "with_temporary_files_left": sum(bool(run["parts"]) for run in done),
                    "identical_after_resume": sum(run["identical"] for run in done),
                    "each": done,
                },
            )


def _small_disk(method: str, table: Path, folder: Path, whole: Any, size: int) -> list[Record]:
    """The same on a file system of so many bytes, which grows before the run goes on."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        return []

    def grow() -> None:
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)

    try:
        found = runs.starve_and_resume(method, table, folder / "in", whole, None, grow)
        return [{"kind": "tmpfs", **found, "most_bytes": size}]
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def repeats(count: int) -> None:
    """Fits in one process: memory and open files."""
    curve: list[list[int]] = []

    def said(number: int, memory: int, files: int) -> None:
        curve.append([number, memory, files])

    note("repeats", {**runs.repeated(count, said), "fit_bytes_files": curve})


def inputs(count: int) -> None:
    """Damage files of every kind and read them; the share of a kind goes with its speed."""
    record = known("inputs") or {"seed": 0, "outcomes": {}, "bad": [], "slowest_s": 0.0}
    names = [name for name in files.TARGETS for _ in range(1 if name == "stopped" else 4)]
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        files.make_samples(base / "samples")
        while record["seed"] < count:
            number = record["seed"]
            name = names[number % len(names)]
            started = time.perf_counter()
            try:
                end = files.try_one(
                    base / "samples", name, random.Random(f"{name} {number}"), base / "place"
                )
            except Exception as error:  # whatever may not happen
                end = "bad"
                record["bad"].append([name, number, f"{type(error).__name__}: {error}"[:300]])
            seconds = time.perf_counter() - started
            record["slowest_s"] = max(record["slowest_s"], seconds)
            own = record["outcomes"].setdefault(name, {})
            own[end] = own.get(end, 0) + 1
            record["seed"] += 1
            if record["seed"] % 100 == 0 or record["seed"] == count:
                note("inputs", {**record, "memory_mb": runs.resident() // 10**6})


PARTS: dict[str, tuple[Callable[[int], None], int]] = {
    "kills": (kills, 100),
    "disk": (disk, 30),
    "inputs": (inputs, 10_000),
    "repeats": (repeats, 200),
}

if __name__ == "__main__":
    main()
