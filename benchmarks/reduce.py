"""Post-hoc reduction of ordinarily trained networks, beside rankings told the size it finds.

    BAYESPARE_DATA=folder python benchmarks/reduce.py [net=lenet] [seeds=0,1,2] [units=weight,unit]

Dense training of 15 epochs, then :func:`bayespare.reduce` with its defaults; nobody gives a ratio.
Rivals get the size that was found, the rounds it took, and the same training between them and at
the end. Of single weights: :func:`bayespare.prune` by magnitude; its weights do not change places.
Of units: the group importances of torch-pruning, Taylor (Molchanov et al., CVPR 2019) and
magnitude, over all layers at once, cut to so many parameters; they do not remove input features,
nor is what survives refitted. MLP and LeNet learn Fashion-MNIST, the residual network 18,000 images
of CIFAR-10. One JSON file a cell in ``benchmarks/results/reduce``; cells that are there are
skipped.
"""

import copy
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cifar import cifar10
from records import write
from rivals import cut_to
from safetensors.torch import load_model, save_model
from torch import nn

import bayespare
from bayespare import data, nets
from bayespare.bayes.likelihood import Categorical
from bayespare.measure import evaluate, load_average, predict
from bayespare.posthoc.reduction import Reduction
from bayespare.posthoc.rounds import sampled, tune
from bayespare.posthoc.settings import ReduceOptions
from bayespare.training.baseline import train_dense
from bayespare.training.loop import placed
from bayespare.training.schedule import Settings

RESNET = "resnet20:width=8,shortcut=b"
"""With convolutions in the shortcuts: over those that pad, torch-pruning makes networks that do
not run."""

NETS = ("mlp:400,400", "lenet", RESNET)
CPU = torch.device("cpu")
Record = dict[str, Any]


class Cells:
    """The cells of one network and seed; the dense network is trained once and kept."""

    def __init__(self, net: str, seed: int, units: list[str], folder: Path, out: Path) -> None:
        self.net, self.seed, self.units, self.out = net, seed, units, out
        self.stem = net.replace(":", "-").replace(",", "-")
        if net == RESNET:
            self.train, self.valid, self.test = cifar10(folder / "cifar10", seed)
        else:
            splits = data.load(str(folder / "fashion-mnist"), seed=seed)
            assert splits.test is not None
            self.train, self.valid, self.test = splits.train, splits.valid, splits.test
        self._dense: nn.Module | None = None

    def run(self) -> None:
        """All that are not there yet."""
        for unit in self.units:
            if unit == "weight" and self.net == RESNET:
                continue
            found = self._cell(unit, lambda u=unit: self._reduced(u))
            if unit == "weight":
                self._cell("weight_magnitude", lambda f=found: self._by_magnitude(f))
                continue
            for kind in ("taylor", "magnitude"):
                self._cell(f"unit_{kind}", lambda k=kind, f=found: self._by_units(k, f))

    def _cell(self, name: str, work: Callable[[], Record]) -> Record:
        path = self.out / f"{self.stem}_{name}_s{self.seed}.json"
        if not path.exists():
            started = time.perf_counter()
            record = {"net": self.net, "cell": name, "seed": self.seed} | work()
            record |= {"seconds": time.perf_counter() - started, "load_average": load_average()}
            write(path, record)
            print(path.name, record["compact"], flush=True)
        record = json.loads(path.read_text())
        assert isinstance(record, dict)
        return record

    @property
    def dense(self) -> nn.Module:
        """Ordinary training, 15 epochs of Adam."""
        if self._dense is None:
            self._dense = self._trained()
        return self._dense

    def _trained(self) -> nn.Module:
        train, generator = self.train, torch.Generator().manual_seed(self.seed)
        model = nets.build(self.net, inputs=train.inputs, outputs=train.outputs, seed=self.seed)
        kept = Path("bench-results") / f"reduce_{self.stem}_s{self.seed}.safetensors"
        if kept.exists():
            load_model(model, kept)
            return model.eval()
        batch = 64 if self.net == RESNET else 256
        train_dense(
            placed(model, CPU),
            Categorical(),
            train,
            epochs=15,
            settings=Settings(batch, CPU),
            generator=generator,
        )
        model = model.to(memory_format=torch.contiguous_format).eval()
        kept.parent.mkdir(exist_ok=True)
        save_model(model, str(kept))
        return model

    # ----------------------------------------------------------------- cells
    def _reduced(self, unit: str) -> Record:
        """What ``bayespare.reduce`` makes of it by itself."""
        model = self.dense
        result = bayespare.reduce(
            model,
            self.train,
            valid=self.valid,
            test=self.test,
            unit=unit,
            seed=self.seed,
            # A run that is stopped goes on where it was; its seconds are those of all its steps.
            folder=Path("bench-results") / "runs" / f"{self.stem}_{unit}_s{self.seed}",
            report=_report,
        )
        spent = result.metrics["time_s"]
        chosen = next(point for point in result.frontier if point.summary["chosen"])
        return {
            "reduce_seconds": spent["training"] + spent["finetuning"],
            "dense": self._scores(model),
            "compact": self._scores(result.model),
            "averaged": result.metrics["averaged"],
            "rounds": math.ceil(float(chosen.name[1:])),
            "frontier": [dict(p.summary) for p in result.frontier],
            "criterion": result.metrics["criterion"],
        }

    def _by_magnitude(self, found: Record) -> Record:
        """As many single weights by magnitude."""
        share = 1 - found["compact"]["nonzeros"] / found["dense"]["parameters"]
        result = bayespare.prune(
            self.dense,
            self.train,
            valid=self.valid,
            test=self.test,
            unit="weight",
            criterion="magnitude",
            sparsity=share,
            rounds=found["rounds"],
            between=ReduceOptions().between,
            seed=self.seed,
            report=_report,
        )
        return {"compact": self._scores(result.model)}

    def _by_units(self, kind: str, found: Record) -> Record:
        """As many parameters by an importance of torch-pruning, in as many rounds."""
        options = ReduceOptions(seed=self.seed)
        run = Reduction(self.dense, self.train, self.valid, None, options)
        problem = run.problem
        problem.aim(placed(copy.deepcopy(problem.model), CPU))
        generator = torch.Generator().manual_seed(self.seed)
        batches = sampled(self.train, options.samples, generator)
        whole, small = found["dense"]["parameters"], found["compact"]["parameters"]
        model = copy.deepcopy(self.dense)
        for number in range(1, found["rounds"] + 1):
            wanted = whole * (small / whole) ** (number / found["rounds"])
            cut_to(model, kind, batches, wanted)
            model = placed(model, CPU)
            if number < found["rounds"]:
                rate = options.rate_between
                tune(model, {}, *problem.soft, options.between, options, generator, rate=rate)
        run.finisher.train_to_end(model, {})
        return {"compact": self._scores(model.eval())}

    def _scores(self, model: nn.Module) -> Record:
        """Sizes and test scores of a network."""
        counts = bayespare.count(model, self.test.x[:1])
        found = evaluate(predict(model, self.test.x, task="classification"), self.test.y)
        sizes = {key: getattr(counts, key) for key in ("parameters", "nonzeros", "macs")}
        return sizes | {key: found[key] for key in ("accuracy", "nll", "ece")}


def _report(row: Record) -> None:
    print(json.dumps(row), file=sys.stderr, flush=True)


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    chosen = [keys.pop("net")] if "net" in keys else NETS
    seeds = [int(seed) for seed in keys.pop("seeds", "0,1,2").split(",")]
    units = keys.pop("units", "weight,unit").split(",")
    out = Path(keys.pop("out", Path(__file__).with_name("results") / "reduce"))
    if keys:
        raise SystemExit(f"unknown keys: {', '.join(keys)}")
    torch.set_num_threads(1)
    for seed in seeds:
        for net in chosen:
            Cells(net, seed, units, Path(os.environ["BAYESPARE_DATA"]), out).run()


if __name__ == "__main__":
    main()
