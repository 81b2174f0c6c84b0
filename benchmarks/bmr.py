"""Bayesian model reduction against its rivals, on the tables of arXiv 2309.12095.

    python benchmarks/bmr.py data=fashion-mnist/ net=lenet method=bmr epochs=30 seeds=0,1,2
    python benchmarks/bmr.py data=fashion-mnist/ net=lenet pace=true

Single weights are judged, as published (units for ``bmr-rhs``, which judges nothing else), and all
methods get the same epochs. Accuracy, NLL and both ECEs are of the average of 100 posterior draws.
``pruned`` is the share of all parameters of the whole network that are zero or gone, dead paths
and output layer included: lower than the authors' count of the same network. One JSON file for each
cell; cells that are there are skipped, one that was stopped goes on at its last epoch (``runs``).
Every candidate is scored on the test data, for the record: the choice was made before, on
validation data. ``pace=true`` times training steps instead, those of every method and of plain
Adam in turn, in one process.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from records import write

import bayespare
from bayespare import data, nets
from bayespare.bayes.likelihood import likelihood_for
from bayespare.data import Batches, Dataset
from bayespare.measure import evaluate, load_average, predict
from bayespare.options import Options
from bayespare.structure import trace
from bayespare.structure.positions import with_positions
from bayespare.training.loop import placed, run_epoch

METHODS = {
    "flat-map": "unit",
    "flat-ff": "unit",
    "tiered-ff": "unit",
    "bmr": "weight",
    "bmr-rhs": "unit",
}
"""Every method of the comparison with what it judges."""

DRAWS = 100


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    source, net = keys.pop("data"), keys.pop("net", "lenet")
    out = Path(keys.pop("out", "benchmarks/results/bmr"))
    tag = keys.pop("tag", "")
    seeds = [int(seed) for seed in keys.pop("seeds", "0").split(",")]
    chosen = keys.pop("method", ",".join(METHODS)).split(",")
    timing = keys.pop("pace", "false") == "true"
    options = {name: _value(text) for name, text in keys.items()}
    torch.set_num_threads(1)
    stem = f"{Path(source).name}_{net.replace(':', '-').replace(',', '-')}"
    if timing:
        _write(out / f"{stem}_pace.json", pace(source, net, int(keys.get("batch", 128))))
        return
    for seed in seeds:
        for method in chosen:
            path = out / f"{stem}_{method}{tag}_s{seed}.json"
            if not path.exists():
                folder = Path("runs/benchmark") / path.stem
                _write(path, run(source, net, method, seed, options, folder))
                shutil.rmtree(folder)


def run(
    source: str, net: str, method: str, seed: int, options: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """One cell, its checkpoint in ``folder``; settings of the method are options no run knows."""
    splits = data.load(source, seed=seed)
    train, test = splits.train, splits.test
    model = nets.build(net, inputs=train.inputs, outputs=train.outputs, seed=seed)
    whole = sum(p.numel() for p in model.parameters())
    known = {k: v for k, v in options.items() if k in Options.__dataclass_fields__}
    settings = {k: v for k, v in options.items() if k not in known}
    started = time.perf_counter()
    result = bayespare.sparsify(
        model,
        train,
        valid=splits.valid,
        test=test,
        method=method,
        unit=METHODS[method],
        seed=seed,
        settings=settings,
        baseline=False,
        folder=folder,
        report=lambda row: print(json.dumps(row), file=sys.stderr, flush=True),
        **known,
    )
    seconds = time.perf_counter() - started
    frontier = []
    for point in result.frontier:
        drawn = predict(
            point.model, test.x, task=train.task, posterior=point.posterior, samples=DRAWS
        )
        mean = predict(point.model, test.x, task=train.task)
        scored = {"test": evaluate(drawn, test.y), "test_mean": evaluate(mean, test.y)}
        there = sum(int(p.count_nonzero()) for p in point.model.parameters())
        frontier.append({**point.summary, "pruned": 1 - there / whole, **scored})
    return {
        "net": net,
        "method": method,
        "seed": seed,
        "parameters": whole,
        "draws": DRAWS,
        "wall_s": seconds,
        "seconds_of_epochs": sum(row["seconds"] for row in result.history),
        "load_average": load_average(),
        "config": result.config,
        "criterion": result.metrics.get("criterion"),
        "warnings": result.metrics["warnings"],
        "chosen": next(p for p in frontier if p["chosen"]),
        "frontier": frontier,
    }


def pace(source: str, net: str, batch: int, steps: int = 40) -> dict[str, Any]:
    """Seconds of a training step by method, plain Adam's among them; medians of CPU time."""
    train = data.load(source).train
    few = train.subset(torch.arange(batch))
    stepping = {"adam": _adam(net, few)}
    for method, unit in METHODS.items():
        options = Options.of(method=method, unit=unit, batch=batch)
        stepping[method] = _fitted(net, options, few, len(train))
    times: dict[str, list[float]] = {name: [] for name in stepping}
    for number in range(steps + 4):
        for name, step in stepping.items():
            began = time.thread_time()
            step()
            if number >= 4:
                times[name].append(time.thread_time() - began)
    middle = {name: statistics.median(values) for name, values in times.items()}
    return {
        "net": net,
        "batch": batch,
        "threads": 1,
        "load_average": load_average(),
        "ms_per_step": {name: 1e3 * value for name, value in middle.items()},
        "seconds_per_epoch": {n: v * (len(train) // batch) for n, v in middle.items()},
        "of_adam": {name: value / middle["adam"] for name, value in middle.items()},
    }


def _adam(net: str, few: Dataset) -> Callable[[], object]:
    model = nets.build(net, inputs=few.inputs, outputs=few.outputs)
    network = placed(model, torch.device("cpu"))
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    batches, likelihood = Batches(few, len(few), shuffle=False), likelihood_for(few.task)
    return lambda: run_epoch(network, likelihood, optimizer, batches)


def _fitted(net: str, options: Options, few: Dataset, examples: int) -> Callable[[], object]:
    model = nets.build(net, inputs=few.inputs, outputs=few.outputs)
    plan = with_positions(trace(model, few.x[:4]))
    fit = options.attach(
        placed(model, torch.device("cpu")),
        plan,
        examples,
        likelihood_for(few.task),
        torch.Generator().manual_seed(0),
    )
    batches = Batches(few, len(few), shuffle=False)
    return lambda: run_epoch(fit.network, fit.likelihood, fit.optimizer, batches, method=fit.method)


def _write(path: Path, record: dict[str, Any]) -> None:
    write(path, record)
    print(path, flush=True)


def _value(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)


if __name__ == "__main__":
    main()
