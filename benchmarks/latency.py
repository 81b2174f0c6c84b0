"""Time of compact networks beside the dense ones: ``python benchmarks/latency.py``.

ResNet-20, ViT and MLP-Mixer as on CIFAR-10, with a half and then a quarter of the units of every
group of the plan left (channels, heads, neurons; drawn at random, which time does not depend on).
One thread, calls of all networks in turn, median. One JSON file a network in
``benchmarks/results/latency``.
"""

import json
from pathlib import Path

import torch

import bayespare
from bayespare import Verdict, nets
from bayespare.measure import latency, load_average

NETS = ("resnet20", "vit", "mixer")
SHARES = (0.5, 0.25)


def main() -> None:
    out = Path(__file__).with_name("results") / "latency"
    out.mkdir(parents=True, exist_ok=True)
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
            "latency_ms": latency(models, x[:1], seconds=20),
            "load_average": load_average(),
        }
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(record, indent=1) + "\n")
        aside.rename(path)
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
