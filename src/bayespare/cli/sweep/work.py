"""What a worker of a sweep does: take a free cell, fit it or go on with it, note what came out."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bayespare.cli.fit import fit
from bayespare.cli.folder import BusyError, is_run, tidy, unfinished
from bayespare.cli.keys import FitKeys
from bayespare.cli.output import Output
from bayespare.cli.sweep.grid import Cell
from bayespare.cli.sweep.study import Claim, Study
from bayespare.errors import BayespareError
from bayespare.training.checkpoint import read_json

WAIT = 0.5
"""Seconds between two looks at cells that others have."""


def work_one(study: Study, cells: Sequence[Cell], project: Path) -> bool:
    """Compute the first cell that is free; False if none is.

    Raises:
        BayespareError: If the study cannot be reached. What goes wrong in a cell ends that cell.
    """
    ended = study.ended()
    for cell in cells:
        claim = None if cell.name in ended else study.claim(cell)
        if claim is not None:
            _compute(cell, claim, project)
            return True
    return False


def work(study: Study, cells: Sequence[Cell], project: Path) -> None:
    """Compute cells until all have ended, here or elsewhere."""
    while not study.ended().keys() >= {cell.name for cell in cells}:
        if not work_one(study, cells, project):
            time.sleep(WAIT)


def worker(study: Mapping[str, Any], cells: Sequence[Cell], project: Path) -> None:
    """What a process of its own does; it stops when the process that began it is gone.

    Args:
        study: Arguments of :class:`Study`.
        cells: Of the sweep.
        project: Folder of the cells' folders.
    """
    with suppress(KeyboardInterrupt):
        try:
            work(Study(**study), cells, project)
        except BayespareError as failure:
            print(f"bayespare: {failure}", file=sys.stderr)
            sys.exit(2)


def _compute(cell: Cell, claim: Claim, project: Path) -> None:
    """Fit a cell that is ours, or go on with it, or find that it is finished."""
    try:
        with claim.alive(_stop_if_alone):
            folder = project / cell.name
            if is_run(folder):
                tidy(folder)
            if not is_run(folder) or unfinished(folder):
                fit(_keys(cell, folder), Output.silent())
            found = figures(folder)
    except BusyError:
        claim.release()
        time.sleep(WAIT)
    except (BayespareError, OSError, MemoryError) as error:
        claim.failed(" ".join(str(error).split()) or type(error).__name__)
    except BaseException:
        claim.release()
        raise
    else:
        claim.done(found)


def _keys(cell: Cell, folder: Path) -> FitKeys:
    """The keys with which a cell begins, or goes on."""
    if not is_run(folder):
        where = {"project": str(folder.parent), "name": folder.name, "threads": 1}
        return cell.keys.model_copy(update=where)
    told: dict[str, Any] = {"resume": str(folder), "threads": 1}
    if cell.keys.net is not None:
        told["net"] = cell.keys.net
    return FitKeys(**told)


def _stop_if_alone() -> None:
    """End like Ctrl-C does when the process that began this one is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os.kill(os.getpid(), signal.SIGINT)


def figures(folder: Path) -> dict[str, Any]:
    """What a finished run is compared by.

    Raises:
        BayespareError: If a file is missing or damaged.
    """
    metrics, frontier = read_json(folder / "metrics.json"), read_json(folder / "frontier.json")
    try:
        compact, times = metrics["compact"], metrics["time_s"]
        chosen = next(point for point in frontier if point["chosen"])
        score = "accuracy" if "accuracy" in compact else "rmse"
        seconds = times["training"] + times["finetuning"]
        found = {
            "score": score,
            "valid_error": _error(score, chosen[f"valid_{score}"]),
            "test_error": _error(score, compact[score]),
            "test_nll": compact["nll"],
            "parameters": compact["parameters"],
            "macs": compact["macs"],
            "latency_ms": compact["latency_ms"]["1"],
            "dense_parameters": metrics["parameters_before"],
            "seconds": seconds,
        }
    except (KeyError, TypeError, StopIteration) as error:
        raise BayespareError(f"{folder}: its results are damaged ({error!r})") from error
    if not all(math.isfinite(value) for value in found.values() if isinstance(value, float)):
        raise BayespareError(f"{folder}: its results are not finite")
    return found


def _error(score: str, value: float) -> float:
    """Share of wrong answers, or the root of the mean squared error."""
    return 1.0 - value if score == "accuracy" else value
