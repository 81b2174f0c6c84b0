"""Cost of scoring weights by evidence, in clones of them, and of the variational optimiser.

    python benchmarks/scoring.py [weights=10000000] [rounds=15] [out=path.json]

Everything is measured in turn, round after round, on one thread. Ratios are medians of the CPU
time of the thread (``cpu``) and of the wall clock (``wall``); only the first is worth much on a
machine that is busy. Clones are into fresh memory, as ``torch.clone`` gives it.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from records import write
from torch import nn

from bayespare.bayes.evidence import curvature_delta_f, delta_f, keeps, quadratic_cost
from bayespare.measure import load_average
from bayespare.optim import VariationalAdam

SHAPES = {
    "mlp:400,400": [(400, 784), (400,), (400, 400), (400,), (10, 400), (10,)],
    "lenet5": [(20, 1, 5, 5), (20,), (50, 20, 5, 5), (50,), (500, 800), (500,), (10, 500), (10,)],
}


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    rounds = int(keys.get("rounds", 15))
    out = Path(keys.get("out", "benchmarks/results/scoring/scoring.json"))
    torch.set_num_threads(1)
    record = {
        "threads": 1,
        "rounds": rounds,
        "scoring": scoring(int(keys.get("weights", 10**7)), rounds),
        "optimiser": {net: optimiser(shapes, 10 * rounds) for net, shapes in SHAPES.items()},
        "load_average": load_average(),
        "torch": torch.__version__,
    }
    write(out, record)
    print(json.dumps(record, indent=1))


def scoring(weights: int, rounds: int) -> dict[str, object]:
    """Scores of many weights, each a multiple of ``torch.clone``."""
    random = torch.Generator().manual_seed(0)
    mean = 0.05 * torch.randn(weights, generator=random)
    std = 0.1 * torch.rand(weights, generator=random) + 0.01
    curvature = 10 * torch.rand(weights, generator=random)
    score = torch.empty(weights)
    jobs = {
        "clone": lambda: mean.clone(),
        "delta_f": lambda: delta_f(mean, std, 0.1, out=score),
        "curvature_delta_f": lambda: curvature_delta_f(mean, curvature, 3.0, out=score),
        "quadratic_cost": lambda: quadratic_cost(mean, std, out=score),
        "delta_f, reduced prior not a spike": lambda: delta_f(mean, std, 0.2, 0.05, out=score),
        "one expression": lambda: torch.log(0.1 / std) - 0.5 * (mean / std).square(),
        "threshold": lambda: keeps(score),
    }
    return {"weights": weights, **in_turn(jobs, rounds, "clone")}


def optimiser(shapes: list[tuple[int, ...]], rounds: int) -> dict[str, object]:
    """A step of the variational optimiser, its sampling included and not, in steps of Adam."""
    random = torch.Generator().manual_seed(0)

    def parameters() -> list[nn.Parameter]:
        return [nn.Parameter(0.05 * torch.randn(s, generator=random)) for s in shapes]

    grads = [0.01 * torch.randn(shape, generator=random) for shape in shapes]
    plain, ours = parameters(), parameters()
    adam = torch.optim.Adam(plain, foreach=True)
    fused = torch.optim.Adam(plain, fused=True)
    variational = VariationalAdam(ours, 1e-3, ess=50_000, generator=random)
    for p, grad in zip(plain, grads, strict=True):
        p.grad = grad
    block = [variational.sampled_params(train=True)]

    def enter() -> None:
        block[0] = variational.sampled_params(train=True)
        block[0].__enter__()
        for p, grad in zip(ours, grads, strict=True):
            p.grad = grad

    jobs = {
        "adam, foreach": adam.step,
        "adam, fused": fused.step,
        "draw": enter,
        "take": lambda: block[0].__exit__(None, None, None),
        "step": variational.step,
    }
    return {"weights": sum(p.numel() for p in ours), **in_turn(jobs, rounds, "adam, foreach")}


def in_turn(
    jobs: dict[str, Callable[[], object]], rounds: int, unit: str
) -> dict[str, dict[str, float]]:
    """Median times in ms, and in multiples of the job called ``unit``."""
    cpu: dict[str, list[float]] = {name: [] for name in jobs}
    wall: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(rounds + 2):
        for name, job in jobs.items():
            started, began = time.perf_counter(), time.thread_time()
            job()
            spent, passed = time.thread_time() - began, time.perf_counter() - started
            if round_ > 1:
                cpu[name].append(1e3 * spent)
                wall[name].append(1e3 * passed)
    middle = {name: (statistics.median(cpu[name]), statistics.median(wall[name])) for name in jobs}
    return {
        name: {
            "cpu_ms": ours[0],
            "wall_ms": ours[1],
            "cpu": ours[0] / middle[unit][0],
            "wall": ours[1] / middle[unit][1],
        }
        for name, ours in middle.items()
    }


if __name__ == "__main__":
    main()
