"""``pick``: another size from the frontier of a run, without training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bayespare import measure
from bayespare.assess import latency_warnings, undecided_warnings
from bayespare.cli.card import write_card
from bayespare.cli.folder import EXPORTS, existing_run
from bayespare.cli.keys import BudgetKeys, PickKeys
from bayespare.cli.output import Output
from bayespare.cli.runs import in_units, load_run, original, own_data, stored_keys
from bayespare.cli.tables import frontier_table
from bayespare.data import Dataset
from bayespare.errors import BayespareError, did_you_mean
from bayespare.load import LoadedRun, check_finished
from bayespare.measure import ClassPrediction
from bayespare.report import summary_table, write_report
from bayespare.result import plan_summary
from bayespare.structure import count
from bayespare.training.budget import Budget, Cost, milliseconds
from bayespare.training.checkpoint import read_json, write_json

MODEL_FILES = ("model.safetensors", "posterior.safetensors", "verdict.json")

Row = dict[str, Any]


def pick(keys: PickKeys, output: Output) -> Mapping[str, Any]:
    """Make another network of the frontier the run's model, and measure it.

    Raises:
        BayespareError: If no network of the frontier is within the budget, or a file is damaged.
    """
    folder = existing_run(keys.run, "pick")
    target = folder if keys.to is None else Path(keys.to)
    if keys.to is not None and target.exists():
        raise BayespareError(f"to={target}: exists; choose another folder")
    check_finished(folder)
    rows = read_frontier(folder)
    chosen = choose(rows, keys, *_asked(folder, rows, keys))
    run = load_run(keys.run, keys.net, "pick", point=chosen["name"])
    rows = [{**row, "chosen": row["name"] == chosen["name"]} for row in rows]
    metrics = _measured(run, chosen, keys, output)
    plan = plan_summary(run.plan, run.verdict, run.log_odds)
    files = {"plan.json": plan, "frontier.json": rows, "metrics.json": metrics}
    try:
        if target == folder:
            _write(folder, chosen["name"], files)
        else:
            _write_copy(folder, target, chosen["name"], files)
    except OSError as error:
        raise BayespareError(f"{target}: cannot be written ({error.strerror})") from error
    output.say(summary_table(metrics))
    output.say()
    output.say(frontier_table(rows))
    output.say(f"model: {target}")
    return {
        "folder": str(target),
        "chosen": chosen["name"],
        "metrics": metrics,
        "frontier": rows,
    }


def read_frontier(folder: Path) -> list[Row]:
    """The rows of ``frontier.json``, the fields that choosing needs checked.

    Raises:
        BayespareError: If it is missing or damaged.
    """
    path = folder / "frontier.json"
    rows = read_json(path)
    try:
        for row in rows:
            fits = isinstance(row["name"], str) and all(
                isinstance(row[key], int) for key in ("parameters", "macs")
            )
            if not fits or not isinstance(-_goodness(row), float):
                raise TypeError(f"network {row['name']!r}")
        if not rows:
            raise ValueError("it is empty")
    except (KeyError, TypeError, ValueError) as error:
        raise BayespareError(f"{path}: the file is damaged ({error!r})") from error
    return list(rows)


def choose(rows: Sequence[Row], keys: PickKeys, budget: Budget, costs: Mapping[str, Cost]) -> Row:
    """The network of that name, or the best by validation within the budget; ties: the smaller.

    Args:
        rows: Of ``frontier.json``.
        keys: What was asked for.
        budget: Its limits, a sparsity turned into parameters.
        costs: What each network costs, by name.

    Raises:
        BayespareError: If nothing was asked for or nothing fits; the message lists the sizes.
    """
    sizes = "; ".join(f"{name}: {cost}" for name, cost in costs.items())
    if keys.name is not None:
        if keys.budget:
            raise BayespareError(f"pick: give name= or {keys.budget}, not both")
        for row in rows:
            if row["name"] == keys.name:
                return row
        hint = did_you_mean(keys.name, [row["name"] for row in rows])
        raise BayespareError(f"name={keys.name}: the frontier has no such network{hint}")
    if not keys.budget:
        limits = ", ".join(f"{key}=" for key in BudgetKeys.model_fields)
        raise BayespareError(f"pick: give {limits} or name= (there are {sizes})")
    fitting = [row for row in rows if budget.met(costs[row["name"]])]
    if not fitting:
        what = "small" if keys.max_latency_ms is None else "small and fast"
        raise BayespareError(
            f"{keys.budget}: no network of the frontier is that {what} (there are {sizes})"
        )
    return max(fitting, key=lambda row: (_goodness(row), -row["parameters"]))


def _asked(folder: Path, rows: Sequence[Row], keys: PickKeys) -> tuple[Budget, dict[str, Cost]]:
    """The limits for this run, and what its networks cost; time is measured here and now."""
    budget = keys.budget
    if budget.sparsity is not None:
        path = folder / "metrics.json"
        metrics = read_json(path)
        whole = metrics.get("parameters_before") if isinstance(metrics, dict) else None
        if not isinstance(whole, int):
            raise BayespareError(f"{path}: has no parameters_before; the file is damaged")
        budget = budget.of(whole)
    # A sparsity counts single weights that are zero as well.
    size = "parameters" if keys.sparsity is None else "nonzeros"
    costs = {
        row["name"]: Cost(row[size if size in row else "parameters"], row["macs"]) for row in rows
    }
    if budget.max_latency_ms is None:
        return budget, costs
    counted = replace(budget, max_latency_ms=None)
    runs = {
        name: load_run(keys.run, keys.net, "pick", point=name)
        for name, cost in costs.items()
        if counted.met(cost)
    }
    if runs:
        example = next(iter(runs.values())).config.example()
        times = milliseconds({name: run.model for name, run in runs.items()}, example)
        costs |= {name: costs[name]._replace(latency_ms=time) for name, time in times.items()}
    return budget, costs


def _goodness(row: Row) -> float:
    return -float(row["valid_rmse"]) if "valid_rmse" in row else float(row["valid_accuracy"])


def _measured(run: LoadedRun, chosen: Row, keys: PickKeys, output: Output) -> Row:
    """``metrics.json`` with the compact network's part measured again, on the test data if any."""
    metrics = read_json(run.folder / "metrics.json")
    if not isinstance(metrics, dict):
        raise BayespareError(f"{run.folder / 'metrics.json'}: the file is damaged")
    own = metrics.get("run_warnings", [])
    warnings = [*own, *undecided_warnings(chosen.get("separation", {}))]
    try:
        data = own_data(run).test
    except BayespareError as error:
        data = None
        warnings.append(f"the compact network's scores are those on validation data: {error}")
        output.say(f"warning: {warnings[-1]}")
    for key in (
        "tempering",
        "spread",
        "compact_equals_masked",
        "separation",
        "stages",
        "diagnostics",
    ):
        if key in chosen:
            metrics[key] = chosen[key]
    metrics["units"] = {name: list(kept) for name, kept in run.verdict.kept.items()}
    metrics["warnings"] = warnings
    example = run.config.example()
    counts = count(run.model, example)
    metrics["compact"] = {
        "parameters": counts.parameters,
        "nonzeros": counts.nonzeros,
        "bytes": counts.bytes,
        "macs": counts.macs,
    }
    models = {"compact": run.model}
    if "dense" in metrics:
        models["dense"] = original(run.folder, keys.net)
    timings = measure.latency(models, example)
    for name, model in models.items():
        metrics[name]["latency_ms"] = timings[name]
        metrics[name]["peak_memory_bytes"] = measure.peak_memory(model, example)
    warnings += latency_warnings(metrics["compact"], keys.max_latency_ms)
    metrics.pop("averaged", None)
    metrics.get("reliability", {}).pop("compact", None)
    if data is None:
        known = (key for key in ("accuracy", "rmse", "nll") if f"valid_{key}" in chosen)
        metrics["compact"] |= {key: chosen[f"valid_{key}"] for key in known}
        metrics["compact_measured_on"] = "validation"
    else:
        _score(run, data, metrics)
    return metrics


def _score(run: LoadedRun, data: Dataset, metrics: Row) -> None:
    """Add what the test data say."""
    truth = in_units(run, data.y)
    plain = run.predict(data.x, averaged=False)
    averaged = run.predict(data.x, samples=stored_keys(run).samples)
    metrics.pop("compact_measured_on", None)
    metrics["compact"] |= measure.evaluate(plain, truth)
    metrics["averaged"] = measure.evaluate(averaged, truth)
    if isinstance(plain, ClassPrediction):
        table = [list(row) for row in measure.reliability(plain.probs, data.y)]
        metrics.setdefault("reliability", {})["compact"] = table


def _write(folder: Path, name: str, files: Mapping[str, Any]) -> None:
    """Put a network of the frontier in the run's place; each file is whole or as it was."""
    source = folder / "frontier" / name
    drafts = {file: folder / f".{file}.part" for file in MODEL_FILES}
    for file, draft in drafts.items():
        shutil.copyfile(source / file, draft)
    # All copies are there before the first takes its place.
    for file, draft in drafts.items():
        draft.replace(folder / file)
    for file in EXPORTS:  # of the network that was there before
        (folder / file).unlink(missing_ok=True)
    for file, content in files.items():
        write_json(folder / file, content)
    write_card(folder)
    write_report(folder)


def _write_copy(folder: Path, target: Path, name: str, files: Mapping[str, Any]) -> None:
    """The same in a copy of the run, which appears under its name when it is whole."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copytree(folder, draft, ignore=shutil.ignore_patterns("checkpoint", ".*"))
        _write(draft, name, files)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
