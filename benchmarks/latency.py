"""Time of compact networks beside the dense ones: ``python benchmarks/latency.py``.

ResNet-20, ViT and MLP-Mixer as on CIFAR-10, with a half and then a quarter of the units of every
group of the plan left (channels, heads, neurons; drawn at random, which time does not depend on).
Median of calls in turn, on one thread, of the processor's time: unlike a clock's it does not grow
on a machine that has other things to do. One JSON file a network in ``benchmarks/results/latency``.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import torch
from records import write
from torch import Tensor, nn

import bayespare
from bayespare import Verdict, nets
from bayespare.measure import load_average
from bayespare.measure.latency import batch_of, one_thread

NETS = ("resnet20", "vit", "mixer")
SHARES = (0.5, 0.25)
CALLS = {1: 100, 256: 5}


def processor_ms(models: Mapping[str, nn.Module], example: Tensor) -> dict[str, dict[str, float]]:
    """Milliseconds of processor time a call, by model and batch."""
    times: dict[str, dict[str, float]] = {name: {} for name in models}
    with one_thread(), torch.inference_mode():
        for batch, calls in CALLS.items():
            x = batch_of(example, batch)
            found: dict[str, list[float]] = {name: [] for name in models}
            for _ in range(1 + calls):
                for name, model in models.items():
                    start = time.thread_time()
                    model.eval()(x)
                    found[name].append(1000 * (time.thread_time() - start))
            for name, each in found.items():
                times[name][str(batch)] = median(each[1:])  # the first call allocates
    return times


def main() -> None:
    out = Path(__file__).with_name("results") / "latency"
    for net in NETS:
        path = out / f"{net}.json"
        if path.exists():
            continue
        torch.manual_seed(0)
        models = {"1": nets.build(net, inputs=(3, 32, 32), outputs=10).eval()}
        x = torch.randn(2, 3, 32, 32)
        plan = bayespare.trace(models["1"], x)
        for share in SHARES:
            keep = {
                group.name: torch.randperm(group.size) < max(1, round(share * group.size))
                for group in plan.groups
            }
            small = bayespare.compact(models["1"], Verdict(plan, keep), example=x)
            models[str(share)] = small.eval()
        units: dict[str, int] = {}
        for group in plan.groups:
            units[group.unit] = units.get(group.unit, 0) + group.size
        counts = {share: bayespare.count(model, x) for share, model in models.items()}
        record = {
            "net": net,
            "units": units,
            "threads": 1,
            "parameters": {share: found.parameters for share, found in counts.items()},
            "macs": {share: found.macs for share, found in counts.items()},
            "processor_ms": processor_ms(models, x[:1]),
            "load_average": load_average(),
        }
        write(path, record)
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
