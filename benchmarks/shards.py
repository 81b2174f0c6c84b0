"""Memory and time of a transformer whose state is spread over processes, beside one process.

    python benchmarks/shards.py [net=vit:dim=512,depth=12,heads=8,mlp=2048] [ranks=1,2,4] [rows=8]
                                [steps=3] [out=path.json]

Each process takes ``steps`` steps of ``ss-ig`` on random images, then a curvature pass over the
same rows (Monte Carlo GGN, diagonal). ``..._here`` counts the entries that a process holds between
the steps; ``peak_bytes_...`` is the most memory that it had while it trained, or looked, beyond
what it had before there was a network: activations and PyTorch's own caches included. One rank is
the plain network without FSDP. One thread a process.
"""

import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from records import write

from bayespare import data, methods, nets
from bayespare.bayes.curvature import all_reduce, curvature, wired
from bayespare.bayes.likelihood import Categorical
from bayespare.bayes.sharded import own_entries
from bayespare.data import Batches
from bayespare.measure import load_average
from bayespare.structure import trace
from bayespare.training import shards
from bayespare.training.loop import run_epoch

INPUTS = (3, 32, 32)


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    # Freed memory goes back, so that the peak is of what was needed at once.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    found = []
    for world in map(int, keys.get("ranks", "1,2,4").split(",")):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(work, (world, folder, keys), nprocs=world)
            found.append(json.loads(Path(folder, "found.json").read_text()))
        print(json.dumps(found[-1]), flush=True)
    if "out" in keys:
        write(Path(keys["out"]), found)


def work(number: int, world: int, folder: str, keys: dict[str, str]) -> None:
    """One process; rank 0 notes what it had."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=number, world_size=world)
    rows, steps = int(keys.get("rows", 8)), int(keys.get("steps", 3))
    name = keys.get("net", "vit:dim=512,depth=12,heads=8,mlp=2048")
    random = torch.Generator().manual_seed(number)
    x = torch.randn(rows * steps, *INPUTS, generator=random)
    train = data.from_tensors(x, torch.arange(rows * steps) % 10)
    before = memory("VmRSS")
    found = trained(name, train, rows, number, world)
    found["peak_bytes_training"] = memory("VmHWM") - before
    gc.collect()
    found |= looked_at(name, train, rows, world)
    found["peak_bytes_curvature"] = memory("VmHWM") - before
    record = {
        "net": name,
        "ranks": world,
        "rows": rows,
        **found,
        "load_average": load_average(),
        "torch": torch.__version__,
    }
    if number == 0:
        Path(folder, "found.json").write_text(json.dumps(record))
    dist.barrier()
    dist.destroy_process_group()


def trained(name: str, train: data.Dataset, rows: int, number: int, world: int) -> dict[str, float]:
    """Steps with gates and noise."""
    network = nets.build(name, inputs=INPUTS, outputs=10, seed=0)
    method = methods.build("ss-ig")
    noise = torch.Generator().manual_seed(number)
    method.attach(network, trace(network, train.x[:2]), examples=len(train), generator=noise)
    if world > 1:
        shards.shard(network, method)
    forget_peak()
    optimizer = torch.optim.Adam(method.parameter_groups(network, rows))
    batches = Batches(train, rows, shuffle=False)
    started = time.perf_counter()
    run_epoch(network, Categorical(), optimizer, batches, method=method)
    state = [value for part in optimizer.state.values() for value in part.values()]
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "parameters_here": sum(own_entries(p) for p in network.parameters()),
        "moments_here": sum(own_entries(value) for value in state),
        "step_s": (time.perf_counter() - started) / len(batches),
    }


def looked_at(name: str, train: data.Dataset, rows: int, world: int) -> dict[str, float]:
    """A curvature pass over the network without gates."""
    network = nets.build(name, inputs=INPUTS, outputs=10, seed=0)
    wiring = wired(network, train.x[:rows])
    if world > 1:
        shards.shard(network)
    forget_peak()
    batches = list(zip(train.x.split(rows), train.y.split(rows), strict=True))
    started = time.perf_counter()
    blocks = all_reduce(curvature(network, "classification", batches, wiring=wiring))
    here = sum(own_entries(block) for block in blocks.diagonals().values())
    return {"curvature_here": here, "curvature_s": time.perf_counter() - started}


def forget_peak() -> None:
    """Let the peak of this process's memory begin anew."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def memory(line: str) -> int:
    """Bytes of this process, from ``/proc``."""
    found = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(line)]
    return int(found[0].split()[1]) * 1024


if __name__ == "__main__":
    main()
