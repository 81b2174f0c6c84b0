"""Run a method on a data set and network over seeds; write what the tables quote.

    python benchmarks/frontier.py data=mnist/ net=mlp:400,400 method=ss-ig seeds=0,1,2

Every seed writes one JSON file into ``benchmarks/results``; seeds that are there are skipped, so a
run that was stopped goes on where it was. Every finished network of the frontier is scored on the
test data, for the record: the choice among them was made before, on validation data.
"""

import json
import sys
import time
from pathlib import Path

import torch
from records import write

import bayespare
from bayespare import data, nets
from bayespare.measure import evaluate, latency, load_average, predict


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    source, net = keys.pop("data"), keys.pop("net", "mlp:400,400")
    name = keys.pop("name", Path(source).name)
    seeds = [int(seed) for seed in keys.pop("seeds", "0").split(",")]
    out = Path(keys.pop("out", "benchmarks/results"))
    settings = {"settings": keys.pop("settings")} if "settings" in keys else {}
    options = {k: _value(v) for k, v in keys.items()}
    method = options.get("method", "ss-ghs")
    torch.set_num_threads(1)
    for seed in seeds:
        suffix = "-faithful" if settings else ""
        path = (
            out / f"{name}_{net.replace(':', '-').replace(',', '-')}_{method}{suffix}_s{seed}.json"
        )
        if path.exists():
            continue
        splits = data.load(source, seed=seed)
        model = nets.build(net, inputs=splits.train.inputs, outputs=splits.train.outputs, seed=seed)
        started = time.perf_counter()
        result = bayespare.sparsify(
            model,
            splits.train,
            valid=splits.valid,
            test=splits.test,
            seed=seed,
            settings=settings,
            report=lambda row: print(json.dumps(row), file=sys.stderr, flush=True),
            **options,
        )
        dense = result.metrics.get("dense", {})
        frontier = []
        for point in result.frontier:
            scored = predict(
                point.model,
                splits.test.x,
                task=splits.train.task,
                noise_std=point.noise_std,
                target_scale=splits.train.target_scale,
            )
            mean, std = splits.train.target_scale
            y = splits.test.y
            truth = y if splits.train.task == "classification" else y.double() * std + mean
            times = latency({"dense": model, "compact": point.model}, splits.test.x[:1])
            frontier.append(
                {
                    **point.summary,
                    "shape": [kept for kept, _ in point.verdict.kept.values()],
                    "macs_share": point.summary["macs"]
                    / bayespare.count(model, splits.test.x[:1]).macs,
                    "test": evaluate(scored, truth),
                    "latency_ms": times,
                }
            )
        record = {
            "name": name,
            "net": net,
            "seed": seed,
            "threads": 1,
            "wall_s": time.perf_counter() - started,
            "load_average": load_average(),
            "config": result.config,
            "metrics": {k: v for k, v in result.metrics.items() if k != "reliability"},
            "frontier": frontier,
            "dense_accuracy": dense.get("accuracy"),
        }
        write(path, record)
        print(path, result, flush=True)


def _value(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)


if __name__ == "__main__":
    main()
