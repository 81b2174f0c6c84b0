"""``fit``: from data to a run folder with a smaller network."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bayespare.cli.card import write_card
from bayespare.cli.folder import (
    alone_in,
    check_free,
    claim,
    default_name,
    drop_replaced,
    existing_run,
    tidy,
)
from bayespare.cli.keys import FitKeys
from bayespare.cli.output import Output, logging_to
from bayespare.cli.prepare import Prepared, prepare
from bayespare.cli.resume import check_same_data, continued, said_how_to_go_on
from bayespare.cli.tables import frontier_table
from bayespare.data.read import is_table
from bayespare.pipeline import sparsify
from bayespare.report import summary_table, write_report
from bayespare.result import Result
from bayespare.structure import Plan
from bayespare.training import ranks
from bayespare.training.checkpoint import Checkpoint, write_json
from bayespare.training.history import read_history
from bayespare.training.pace import spoken
from bayespare.training.progress import ProgressBar

MOST_GROUPS = 6
TABLES = "method: node-pip, which judges the columns of a table (method=ss-ghs keeps more units)"


def fit(keys: FitKeys, output: Output) -> Mapping[str, Any]:
    """Make a network smaller, or go on with a run that was stopped.

    Raises:
        BayespareError: On bad input; then nothing has been written.
        Interrupted: On Ctrl-C, with how to go on.
    """
    resumed = None if keys.resume is None else existing_run(keys.resume, "fit")
    if resumed is not None:
        ranks.from_first(partial(tidy, resumed))
    with threads(keys.threads):
        prepared = prepare(keys if resumed is None else continued(keys, resumed))
        if resumed is not None:
            check_same_data(resumed, prepared.splits)
        folder = resumed or Path(
            ranks.from_first(lambda: str(_new_folder(prepared.keys, prepared)))
        )
        with alone_in(folder) if ranks.first() else nullcontext():
            if resumed is None and ranks.first():
                # First of all: without it the folder is no run, and could not be gone on with.
                write_json(folder / "config.json", prepared.config())
            return _run(prepared, folder, output)


def _run(prepared: Prepared, folder: Path, output: Output) -> Mapping[str, Any]:
    """Train to the end, from the checkpoint if there is one; rank 0 keeps the log."""
    keys = prepared.keys
    epochs = not output.quiet and not sys.stderr.isatty()
    log = logging_to(folder / "log.txt", output, epochs=epochs)
    with log if ranks.first() else nullcontext():
        output.say(f"{prepared.splits.name}: {prepared.splits.note}")
        if is_table(keys.data or "") and "method" not in keys.model_fields_set:
            output.say(TABLES)
        output.say(plan_line(prepared.plan))
        if prepared.foreseen:
            output.say(prepared.foreseen)
        if keys.time is not None:
            output.say(f"time: {keys.epochs:,} epochs fit into {spoken(keys.time)}")
        short = prepared.options.told_of_length(len(prepared.splits.train))
        if short:
            output.say(short)
        output.say(f"run folder: {folder}")
        with said_how_to_go_on("fit", keys.net, folder):
            result = _train(prepared, folder, output)
            return finish(result, folder, output) if ranks.first() else {}


def _new_folder(keys: FitKeys, prepared: Prepared) -> Path:
    project = Path(keys.project)
    if keys.name is not None:
        check_free(project / keys.name, exist_ok=keys.exist_ok)
    default = default_name(prepared.splits.name, keys.net or "", keys.method)
    return claim(project, keys.name, default)


def _train(prepared: Prepared, folder: Path, output: Output) -> Result:
    splits, options = prepared.splits, prepared.options
    checkpoint = Checkpoint(folder / "checkpoint")
    examples = len(splits.train)
    total = options.schedule(examples).total
    total += options.trains_dense * options.epochs_for(examples)
    done = len(read_history(folder / "history.jsonl")) if checkpoint.exists() else 0
    show = ranks.first() and not output.quiet
    with ProgressBar(max(1, total - done), show=show) as progress:
        return sparsify(
            prepared.model,
            splits.train,
            valid=splits.valid,
            test=splits.test,
            folder=folder,
            report=progress,
            config=prepared.config(),
            **vars(options),
        )


def finish(result: Result, folder: Path, output: Output) -> Mapping[str, Any]:
    """Write the folder and say what came out."""
    result.save(folder)
    write_card(folder)
    page = write_report(folder)
    Checkpoint(folder / "checkpoint").remove()
    drop_replaced(folder)
    summaries = [dict(point.summary) for point in result.frontier]
    output.say()
    output.say(summary_table(result.metrics))
    output.say()
    output.say(f"sizes on the frontier (another one: bayespare pick {folder} name=NAME)")
    output.say(frontier_table(summaries))
    for warning in result.metrics.get("warnings", []):
        output.say(f"warning: {warning}")
    output.say()
    output.say(f"model:  {folder}    (in Python: bayespare.load({str(folder)!r}))")
    output.say(f"report: {page}")
    return {
        "folder": str(folder),
        "report": str(page),
        "chosen": result.point.name,
        "metrics": result.metrics,
        "frontier": summaries,
    }


def plan_line(plan: Plan) -> str:
    """What can be removed, in a line."""
    parts = [f"{g.name} {g.size:,} {g.unit}s" for g in plan.groups[:MOST_GROUPS]]
    more = len(plan.groups) - MOST_GROUPS
    if more > 0:
        parts.append(f"and {more} groups more")
    return f"plan: {plan.size:,} units can be removed: {', '.join(parts)}"


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Use a number of CPU threads for a while; None changes nothing."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
