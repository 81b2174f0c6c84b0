"""Time of a whole run of ours in two processes, in plain DDP trainings of the dense network.

    python benchmarks/ranks.py [data=digits] [net=mlp:400,400] [method=ss-ghs] [epochs=60]
                               [rounds=3] [ranks=2] [rows=all] [out=path.json]

Both use gloo, the same global batch and as many epochs as ``epochs=`` says; in turn, round after
round, one thread a process. DDP reads tensors in memory, as we do, and does not validate. ``wall``
is the time until the last process is done, ``cpu`` that of all processes: waiting costs nothing.
``rows`` takes the first of the training rows, and a ninth as many to validate.
"""

import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from records import write
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bayespare import data, nets
from bayespare.bayes.likelihood import Categorical
from bayespare.data import Batches
from bayespare.measure import load_average
from bayespare.options import Options
from bayespare.structure import trace
from bayespare.structure.positions import with_positions
from bayespare.training import ranks
from bayespare.training.loop import cosine
from bayespare.training.schedule import Settings
from bayespare.training.search import Search


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    number = int(keys.get("ranks", 2))
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (number, folder, keys), nprocs=number)
        record = json.loads(Path(folder, "found.json").read_text())
    print(json.dumps(record, indent=1))
    if "out" in keys:
        out = Path(keys["out"])
        write(out, record)


def work(number: int, world: int, folder: str, keys: dict[str, str]) -> None:
    """One process: all rounds; rank 0 notes what they took."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=number, world_size=world)
    name, net = keys.get("data", "digits"), keys.get("net", "mlp:400,400")
    method, epochs = keys.get("method", "ss-ghs"), int(keys.get("epochs", 60))
    splits = data.load(name, seed=0)
    if "rows" in keys:
        rows = torch.arange(int(keys["rows"]))
        valid = splits.valid.subset(rows[: len(rows) // 9])
        splits = replace(splits, train=splits.train.subset(rows), valid=valid)
    train = splits.train
    options = Options(method=method, epochs=epochs, device="cpu")
    model = nets.build(net, inputs=train.inputs, outputs=train.outputs, seed=0)
    batch = options.batch_for(len(train))
    ended: dict[str, Any] = {}

    def ddp() -> None:
        ended["dense"] = plain(copy.deepcopy(model), train, epochs, batch)

    def ours() -> None:
        ended["ours"] = searched(model, splits, options, batch)

    times: dict[str, list[list[float]]] = {"ddp": [], "ours": []}
    for _ in range(int(keys.get("rounds", 3))):
        times["ddp"].append(timed(ddp))
        times["ours"].append(timed(ours))
    if number == 0:
        walls = [o[0] / d[0] for o, d in zip(times["ours"], times["ddp"], strict=True)]
        cpus = [o[1] / d[1] for o, d in zip(times["ours"], times["ddp"], strict=True)]
        record = {
            "data": Path(name).name,
            "net": net,
            "method": method,
            "epochs": epochs,
            "batch": batch,
            "rows": len(train),
            "ranks": world,
            "seconds": {key: [round(t[0], 3) for t in rows] for key, rows in times.items()},
            "cpu_seconds": {key: [round(t[1], 3) for t in rows] for key, rows in times.items()},
            "wall": statistics.median(walls),
            "cpu": statistics.median(cpus),
            **ended,
            "load_average": load_average(),
            "torch": torch.__version__,
        }
        Path(folder, "found.json").write_text(json.dumps(record))
    dist.destroy_process_group()


def timed(job: Callable[[], None]) -> list[float]:
    """Seconds until all are done, and seconds of processor time of all together."""
    dist.barrier()
    started, began = time.perf_counter(), time.process_time()
    job()
    spent = torch.tensor(time.process_time() - began, dtype=torch.float64)
    dist.all_reduce(spent)
    return [time.perf_counter() - started, float(spent)]


def plain(model: nn.Module, train: data.Dataset, epochs: int, batch: int) -> dict[str, float]:
    """Dense training as PyTorch's own documentation has it."""
    network = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    likelihood = Categorical()
    generator = torch.Generator().manual_seed(0)
    own = ranks.share(batch)
    batches = Batches(train, batch, generator=generator, shuffle=True, drop_last=True, share=own)
    loss = torch.zeros(())
    for epoch in range(epochs):
        for step, (x, y) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * cosine((epoch + step / len(batches)) / epochs)
            loss = likelihood.nll(network(x), y).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return {"parameters": sum(p.numel() for p in model.parameters()), "last_nll": loss.item()}


def searched(
    model: nn.Module, splits: data.Splits, options: Options, batch: int
) -> dict[str, float]:
    """A whole run: warm, explore, cool three candidates, choose."""
    train, valid = splits.train, splits.valid
    plan = with_positions(trace(model, train.x[:4], inputs=train.feature_groups))

    def attach(network: nn.Module, generator: torch.Generator) -> Any:
        return options.attach(network, plan, len(train), Categorical(), generator)

    best = Search(
        model,
        attach,
        train,
        valid,
        Categorical(),
        options.schedule(len(train)),
        Settings(batch, torch.device("cpu")),
        torch.Generator().manual_seed(0),
        lambda row: None,
    ).run()
    assert best.scores is not None
    return {"parameters": best.parameters, "valid_accuracy": best.scores.mean}


if __name__ == "__main__":
    main()
