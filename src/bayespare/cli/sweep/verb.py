"""The verb: start or join a sweep, show its progress, and sum it up."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bayespare.cli.keys import SweepBase
from bayespare.cli.output import Interrupted, Output
from bayespare.cli.sweep import summary
from bayespare.cli.sweep.grid import Cell, cells, label
from bayespare.cli.sweep.study import Study
from bayespare.cli.sweep.work import WAIT, work_one, worker
from bayespare.errors import BayespareError

JOURNAL = "sweep.journal"


def sweep(keys: SweepBase, output: Output) -> Mapping[str, Any]:
    """Compute the cells of a sweep that nobody has computed yet, and sum all of them up.

    Raises:
        BayespareError: On bad input, before anything is written; or if a cell failed, after
            everything else is done.
        Interrupted: On Ctrl-C, with how to go on.
    """
    wanted = cells(keys)
    project = Path(keys.project)
    try:
        project.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BayespareError(f"{project}: cannot be made ({error.strerror})") from error
    opening: dict[str, Any] = {
        "name": project.resolve().name,
        "url": keys.storage,
        "journal": project / JOURNAL,
        "objectives": keys.objective,
    }
    study = Study(**opening)
    if keys.retry:
        study.forgive()
    shown = Progress(wanted, output)
    shown.begin(study, project)
    try:
        if keys.jobs == 1:
            _alone(study, wanted, project, shown)
        else:
            _together(opening, study, wanted, project, shown, keys.jobs)
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; finished cells are kept, and those under way as far as they went; go on "
            "with the same command"
        ) from None
    found = summary.summary(wanted, study.ended(), keys.objective)
    aside = summary.write(found, project)
    output.say()
    output.say(summary.table(found))
    output.say()
    output.say(f"mean ± standard deviation over seeds: {project / 'sweep.csv'}, sweep.json")
    if aside is not None:
        output.say(f"the table of another sweep that was there is now {aside}")
    if found["failed"]:
        name, why = next(iter(found["failed"].items()))
        raise BayespareError(
            f"{len(found['failed'])} of {len(wanted)} cells failed, the others are summed up in "
            f"{project / 'sweep.json'}; {name}: {why} (retry=true tries them again)"
        )
    return {"folder": str(project), **found}


class Progress:
    """Says what has ended since it was last asked, here or in another process."""

    def __init__(self, wanted: Sequence[Cell], output: Output) -> None:
        self._names = {cell.name: label(cell, wanted) for cell in wanted}
        self._cells = {cell.name: cell for cell in wanted}
        self._width = max(map(len, self._names.values()))
        self._said: set[str] = set()
        self._output = output

    def begin(self, study: Study, project: Path) -> None:
        """Say what there is to do."""
        done = study.ended().keys() & self._cells.keys()
        self._output.say(
            f"{project}: {len(self._cells):,} cells, {len(done):,} of them done before"
        )
        self._said |= done
        self._output.say(summary.progress_head(self._width))

    def over(self, study: Study) -> bool:
        """Show what is new; whether all cells have ended."""
        for name, end in study.ended().items():
            if name in self._cells and name not in self._said:
                self._said.add(name)
                number = f"{len(self._said)}/{len(self._cells)}"
                cell, words = self._cells[name], self._names[name]
                self._output.say(summary.progress_line(cell, words, self._width, end, number))
        return len(self._said) == len(self._cells)


def _alone(study: Study, wanted: Sequence[Cell], project: Path, shown: Progress) -> None:
    """Compute cells in this process, one after the other."""
    while not shown.over(study):
        if not work_one(study, wanted, project):
            time.sleep(WAIT)


def _together(
    opening: Mapping[str, Any],
    study: Study,
    wanted: Sequence[Cell],
    project: Path,
    shown: Progress,
    jobs: int,
) -> None:
    """Compute cells in processes of their own.

    One that dies is not replaced: the others take up its cell, and if none is left the sweep ends.
    """
    context = multiprocessing.get_context("spawn")
    told = {**opening, "forgiven": study.forgiven}
    processes: list[BaseProcess] = [
        context.Process(target=worker, args=(told, wanted, project)) for _ in range(jobs)
    ]
    for process in processes:
        process.start()
    try:
        while not shown.over(study):
            if not any(process.is_alive() for process in processes) and not shown.over(study):
                raise BayespareError(_death(processes))
            time.sleep(WAIT)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _death(processes: Sequence[BaseProcess]) -> str:
    codes = sorted({process.exitcode or 0 for process in processes})
    said = ", ".join(
        f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        for code in codes
    )
    return (
        f"all processes of the sweep have ended ({said}) before its cells were done; if it was "
        "for lack of memory give fewer jobs=; go on with the same command"
    )
