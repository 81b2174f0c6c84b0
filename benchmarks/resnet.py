"""ResNet on CIFAR-10: our methods by themselves beside the pruners of torch-pruning.

    BAYESPARE_DATA=folder python benchmarks/resnet.py [net=] [seeds=0,1,2] [epochs=8]

``net`` is ``resnet20:width=8,shortcut=b``, with convolutions in the shortcuts: over those that pad
with zeros torch-pruning makes networks that do not run. For every seed one dense network is trained
as usual, and everything starts from it. ``ss-ghs`` and ``ss-ig`` are given no size. Torch-pruning's
group-norm pruner (Fang et al., CVPR 2023) and its batch-norm-scale pruner (Liu et al., ICCV 2017)
are told the MACs of what ``ss-ghs`` chose, and half of the dense network's: they train with their
penalty, cut to the first size within the target over all layers, and train again, for as many
epochs altogether as our run spends on all its candidates. At half of the MACs ours is the network
of the same run that is best on validation data within them. Data, split, batch, optimiser and
learning rate are the same for all. One JSON file a cell in ``benchmarks/results/resnet``; cells
that are there are skipped, those of other epochs refused. Our runs go on from their last epoch,
kept in ``bench-results``.
"""

import copy
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cifar import cifar10
from latency import processor_ms
from records import write
from rivals import cut, pruner
from safetensors.torch import load_model, save_model
from torch import nn

import bayespare
from bayespare import Options, nets, trace
from bayespare.bayes.likelihood import Categorical
from bayespare.measure import evaluate, load_average, predict
from bayespare.methods.wiring import judged
from bayespare.structure.positions import with_positions
from bayespare.training.baseline import DenseTraining
from bayespare.training.checkpoint import Checkpoint
from bayespare.training.fit import Fit
from bayespare.training.loop import own_global_stream, placed
from bayespare.training.schedule import Schedule, Settings
from bayespare.training.search import Search

BATCH, RATE = 64, 1e-3
OURS = ("ss-ghs", "ss-ig")
PENALTY = {"group-norm": 5e-4, "bn-scale": 1e-4}
"""As in torch-pruning's own runs on CIFAR."""

Record = dict[str, Any]


class Cells:
    """The runs of one seed, in an order in which each finds what it needs."""

    def __init__(self, net: str, seed: int, epochs: int, data: Path, out: Path) -> None:
        self.net, self.seed, self.epochs, self.out = net, seed, epochs, out
        self.train, self.valid, self.test = cifar10(data, seed)
        self.settings = Settings(batch=BATCH, device=torch.device("cpu"))
        self.schedule = Schedule.of(epochs, len(self.train) // BATCH, len(self.train))
        # What our run spends on a trained network, all candidates counted.
        self.more_epochs = self.schedule.total - self.schedule.warm

    def run(self) -> None:
        """All cells that are not there yet."""
        self.dense = self._dense()
        dense_macs = self._macs(self.dense)
        for method in OURS:
            self._cell(method, self._ours, method)
        chosen = json.loads(self._path(OURS[0]).read_text())["macs"]
        for kind in PENALTY:
            for words, target in (("chosen", chosen), ("half", dense_macs // 2)):
                self._cell(f"{kind}_{words}", self._pruned, kind, target)

    def _path(self, name: str) -> Path:
        net = self.net.replace(":", "-").replace("=", "-")
        return self.out / f"{net}_{name}_s{self.seed}.json"

    def _cell(self, name: str, work: Any, *arguments: Any) -> None:
        path = self._path(name)
        if path.exists():
            found = json.loads(path.read_text())["dense_epochs"]
            if found != self.epochs:
                raise SystemExit(f"{path} is of {found} epochs, not {self.epochs}; give out=FOLDER")
            return
        started = time.perf_counter()
        record = {"net": self.net, "cell": name, "seed": self.seed, "batch": BATCH}
        record |= {
            "epochs": self.schedule.total - self.schedule.warm,
            "dense_epochs": self.epochs,
            "threads": 1,
        }
        record |= work(*arguments)
        record |= {"seconds": time.perf_counter() - started, "load_average": load_average()}
        write(path, record)
        shown = ("accuracy", "valid_accuracy", "macs", "parameters", "seconds")
        print(path.name, {k: record[k] for k in shown}, flush=True)

    # ----------------------------------------------------------------- cells
    def _dense(self) -> nn.Module:
        """The dense network: trained once, kept beside the JSON until the seed is done."""
        model = nets.build(self.net, inputs=(3, 32, 32), outputs=10, seed=self.seed)
        kept = Path("bench-results") / self._path("dense").with_suffix(".safetensors").name
        if kept.exists() and self._path("dense").exists():
            load_model(model, kept)
            return model

        def work() -> Record:
            self._train(model, self.epochs)
            kept.parent.mkdir(exist_ok=True)
            save_model(model, str(kept))
            return self._scores(model)

        self._path("dense").unlink(missing_ok=True)
        self._cell("dense", work)
        return model

    def _ours(self, method: str) -> Record:
        """Our run, without a size: what ``bayespare.sparsify`` does before it measures."""
        options = Options(method=method, epochs=self.epochs, batch=BATCH, seed=self.seed)
        example = self.train.x[:4]
        plan = options.narrowed(judged(self.dense, with_positions(trace(self.dense, example))))

        def attach(network: nn.Module, generator: torch.Generator) -> Fit:
            return options.attach(network, plan, len(self.train), Categorical(), generator)

        checkpoint = Checkpoint(Path("bench-results") / self._path(method).stem)
        checkpoint.run = {"cell": method, "seed": self.seed, "epochs": self.epochs}
        search = Search(
            self.dense,
            attach,
            self.train,
            self.valid,
            Categorical(),
            options.schedule(len(self.train)),
            self.settings,
            torch.Generator().manual_seed(self.seed),
            lambda row: print(json.dumps(row), file=sys.stderr, flush=True),
            checkpoint,
            trained=True,
        )
        best = search.run()
        frontier = []
        for candidate in search.candidates:
            done = bayespare.finish(self.dense, candidate.fit.method, example)
            point = {**self._scores(done.model), "name": candidate.name}
            point |= {"chosen": candidate is best, "units": dict(done.verdict.kept)}
            frontier.append(point)
        chosen = next(point for point in frontier if point["chosen"])
        return {**chosen, "frontier": frontier}

    def _pruned(self, kind: str, target: int) -> Record:
        """Torch-pruning's pruner down to so many MACs."""
        sparse = self.schedule.explore
        model = self._sparse(kind, sparse)
        cut = self._cut(kind, model, target)
        self._train(cut, self.more_epochs - sparse)
        return {**self._scores(cut), "target_macs": target, "penalty": PENALTY[kind]}

    # ------------------------------------------------------- torch-pruning's
    def _pruner(self, kind: str, model: nn.Module) -> Any:
        return pruner(kind, model, self.train.x[:1], max_pruning_ratio=0.9, reg=PENALTY[kind])

    def _sparse(self, kind: str, epochs: int) -> nn.Module:
        """The dense network after training with the pruner's penalty; the same for both sizes."""
        kept = Path("bench-results") / self._path(kind).with_suffix(".safetensors").name
        model = copy.deepcopy(self.dense)
        if kept.exists():
            load_model(model, kept)
            return model
        penalised = self._pruner(kind, model)
        penalised.update_regularizer()
        self._train(model, epochs, lambda: penalised.regularize(model))
        save_model(model, str(kept))
        return model

    def _cut(self, kind: str, model: nn.Module, target: int) -> nn.Module:
        """The first network within the target as the pruner's ratio rises over all layers."""
        if not cut(self._pruner(kind, model.eval()), lambda: self._macs(model) <= target):
            raise SystemExit(f"{kind}: finds no network within {target} MACs")
        return model

    # ---------------------------------------------------------------- shared
    def _train(self, model: nn.Module, epochs: int, before_step: Any = None) -> None:
        """Train in place as the library trains a dense network."""
        generator = torch.Generator().manual_seed(self.seed)
        with own_global_stream(self.seed, self.settings.device):
            training = DenseTraining(
                placed(model, self.settings.device),
                Categorical(),
                self.train,
                epochs=epochs,
                settings=self.settings,
                generator=generator,
                rate=RATE,
            )
            if before_step is not None:
                training.optimizer.register_step_pre_hook(lambda *_: before_step())
            training.run()
        model.eval()

    def _macs(self, model: nn.Module) -> int:
        return bayespare.count(model, self.train.x[:1]).macs

    def _scores(self, model: nn.Module) -> Record:
        """Sizes, times beside the dense network, validation and test scores."""
        counts = bayespare.count(model, self.train.x[:1])
        record: Record = {"parameters": counts.parameters, "macs": counts.macs}
        for name, part in (("valid_", self.valid), ("", self.test)):
            found = evaluate(predict(model, part.x, task="classification"), part.y)
            record |= {f"{name}{key}": found[key] for key in ("accuracy", "nll", "ece")}
        reference = getattr(self, "dense", model)
        times = processor_ms({"dense": reference, "compact": model}, self.test.x[:1])
        return {**record, "processor_ms": times}


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    net, epochs = keys.pop("net", "resnet20:width=8,shortcut=b"), int(keys.pop("epochs", "8"))
    seeds = [int(seed) for seed in keys.pop("seeds", "0,1,2").split(",")]
    out = Path(keys.pop("out", Path(__file__).with_name("results") / "resnet"))
    if keys:
        raise SystemExit(f"unknown keys: {', '.join(keys)}")
    torch.set_num_threads(1)
    for seed in seeds:
        Cells(net, seed, epochs, Path(os.environ["BAYESPARE_DATA"]) / "cifar10", out).run()


if __name__ == "__main__":
    main()
