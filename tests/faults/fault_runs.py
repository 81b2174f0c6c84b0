"""Runs that are killed, starved of disk or repeated, and what is compared afterwards.

Runs go into processes of a fork server, which has imported everything before: starting one takes
milliseconds. The tests use this for a minute, ``benchmarks/faults.py`` for hours.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayespare import data, methods, nets, sparsify
from bayespare.cli.folder import is_run
from bayespare.cli.main import console
from bayespare.training.history import read_history

COMMON = ("net=mlp:12", "epochs=8", "batch=8", "baseline=false", "threads=1")
WITH_TIMES = {"log.txt", "history.jsonl", "metrics.json", "report.html", "README.md", "config.json"}
"""Files that differ between two runs of the same: they hold times, latencies or the folder."""

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def make_data(path: Path, rows: int = 200) -> Path:
    """Random inputs with classes that the first of them decide."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(rows, 10)).astype(np.float32)
    np.savez(path, x=x, y=(x[:, :3] + 0.3 * draw.normal(size=(rows, 3))).argmax(1))
    return path


def _server() -> Any:
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bayespare.cli.main", "torch._dynamo"])
    return context


def _command(words: tuple[str, ...], folder: Path, most_bytes: int | None) -> None:
    """One command line in a process of its own; its output goes to ``said`` in the folder."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv = ["bayespare", *words]
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    console()


def start(words: tuple[str, ...], folder: Path, most_bytes: int | None = None) -> BaseProcess:
    """Begin a command line.

    Args:
        words: After the program's name.
        folder: Where it runs.
        most_bytes: Longer files cannot be written, as if the disk were full.
    """
    process: BaseProcess = _server().Process(target=_command, args=(words, folder, most_bytes))
    process.start()
    return process


def fit_words(method: str, table: Path) -> tuple[str, ...]:
    """A short fit into ``runs/a``."""
    return ("fit", f"data={table}", f"method={method}", *COMMON, "name=a", "exist_ok=true")


def go_on(words: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """The command that goes on with a run, or begins it if it had not begun."""
    return ("fit", "resume=runs/a") if is_run(folder / "runs/a") else words


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run, those that hold times by name alone."""
    return {
        str(path.relative_to(run)): b"" if path.name in WITH_TIMES else path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }


@dataclass
class Killing:
    """One run that was killed and resumed until it was done.

    Attributes:
        kills: Signal and state of the run, for each time it was stopped.
        identical: Whether every file is what the uninterrupted run left.
        stray: Files that the uninterrupted run has not.
        said: What the last process said, if it failed.
    """

    method: str
    kills: list[tuple[str, str]] = field(default_factory=list)
    identical: bool = False
    stray: list[str] = field(default_factory=list)
    said: str = ""


def uninterrupted(method: str, table: Path, folder: Path) -> tuple[dict[str, bytes], float]:
    """The files of a run that nobody disturbs, and its seconds."""
    folder.mkdir(parents=True)
    started = time.monotonic()
    process = start(fit_words(method, table), folder)
    process.join()
    seconds = time.monotonic() - started
    if process.exitcode != 0:
        raise AssertionError(_said(folder))
    return contents(folder / "runs/a"), seconds


def kill_and_resume(
    method: str,
    table: Path,
    folder: Path,
    whole: tuple[dict[str, bytes], float],
    draw: random.Random,
    again: float = 0.3,
) -> Killing:
    """Kill a run at a random moment, perhaps once more, and let it come to its end.

    Args:
        method: What is fitted.
        table: Data of :func:`make_data`.
        folder: Empty or missing.
        whole: What :func:`uninterrupted` gave.
        draw: Chooses moment and signal.
        again: Probability that the run is killed once more after a kill.
    """
    folder.mkdir(parents=True)
    done, (expected, seconds) = Killing(method), whole
    words = fit_words(method, table)
    while True:
        alive = not done.kills or draw.random() < again
        process = start(go_on(words, folder), folder)
        if alive:
            process.join(draw.uniform(0, seconds))
            number = draw.choice(SIGNALS)
            if process.is_alive():
                os.kill(process.pid or 0, number)
                process.join()
                done.kills.append((number.name, state_of(folder / "runs/a")))
            if process.exitcode == 0 and not done.kills:
                # Done before the signal came: another moment.
                shutil.rmtree(folder / "runs")
                continue
        process.join()
        if process.exitcode == 0 or not alive:
            break
    found = contents(folder / "runs/a")
    done.identical = found == expected
    done.stray = sorted(found.keys() - expected.keys())
    done.said = "" if done.identical else f"exit code {process.exitcode}: {_said(folder)}"
    return done


def _said(folder: Path) -> str:
    """The end of what the last process said."""
    said = folder / "said"
    return said.read_text()[-500:] if said.exists() else ""


def state_of(run: Path) -> str:
    """How far a run has come: its last row of history, or what there is."""
    if not is_run(run):
        return "not begun"
    if (run / "metrics.json").is_file():
        return "writing results"
    rows = read_history(run / "history.jsonl")
    return str(rows[-1]["phase"]).split()[0] if rows else "begun"


# --------------------------------------------------------------------- full disks


def starve_and_resume(
    method: str,
    table: Path,
    folder: Path,
    whole: tuple[dict[str, bytes], float],
    most_bytes: int | None,
    make_room: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run with files that cannot be longer than so many bytes, then go on without that limit.

    Args:
        method: What is fitted.
        table: Data of :func:`make_data`.
        folder: Missing.
        whole: What :func:`uninterrupted` gave.
        most_bytes: None: the file system is small by itself.
        make_room: Called before the run goes on.
    """
    folder.mkdir(parents=True)
    expected, _ = whole
    words = fit_words(method, table)
    process = start(words, folder, most_bytes)
    process.join()
    said, code = _said(folder), process.exitcode
    parts = [path.name for path in folder.rglob(".*")]
    make_room()
    if code != 0:
        process = start(go_on(words, folder), folder)
        process.join()
    return {
        "method": method,
        "most_bytes": most_bytes,
        "exit_code": code,
        "said": said.splitlines()[-1] if said else "",
        "traceback": "Traceback" in said,
        "parts": parts,
        "identical": contents(folder / "runs/a") == expected,
    }


# -------------------------------------------------------------- many in a process


def repeated(count: int, said: Callable[[int, int, int], None] | None = None) -> dict[str, Any]:
    """Fit many times in this process, by all methods in turn; memory and open files.

    Args:
        count: Fits after a warm-up of a fifth as many, one by each method at least.
        said: Called with the number of the fit, bytes of memory and open files.
    """
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 10, generator=draw)
    train = data.from_tensors(x, x[:, :3].argmax(1))
    names, figures = methods.registered(), []
    for number in range(count + max(len(names), count // 5)):
        model = nets.build("mlp:12", inputs=(10,), outputs=3, seed=number)
        method = names[number % len(names)]
        sparsify(
            model,
            train,
            method=method,
            epochs=3,
            batch=16,
            baseline=False,
            seed=number,
            device="cpu",
        )
        gc.collect()
        figures.append((resident(), len(os.listdir("/proc/self/fd"))))
        if said is not None:
            said(number, *figures[-1])
    warm, last = figures[-count - 1], figures[-1]
    return {
        "fits": count,
        "bytes_warm": warm[0],
        "bytes_end": last[0],
        "bytes_per_fit": (last[0] - warm[0]) / count,
        "files_warm": warm[1],
        "files_end": last[1],
    }


def resident() -> int:
    """Bytes of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()
