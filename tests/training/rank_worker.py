"""What each of two processes does in the tests of ranks, and how they are started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_runs import FITS, Problem, everything, small_conv, small_mlp, table
from torch import Tensor, nn

from bayespare import methods, nets
from bayespare.bayes import layers
from bayespare.bayes.curvature import all_reduce, curvature, wired
from bayespare.bayes.likelihood import Categorical
from bayespare.bayes.sharded import is_sharded, own_entries, whole
from bayespare.data import Batches, from_tensors
from bayespare.errors import BayespareError, NonFiniteLossError, UnsupportedStructureError
from bayespare.structure import trace
from bayespare.training import ranks, shards
from bayespare.training.loop import run_epoch, validate

PATIENCE = 120

EQUAL = {
    "ss-ghs": FITS["default"],
    "ss-ig faithful": FITS["faithful"],
    "ss-gl regression": FITS["regression"],
    "bmr": Problem(method="bmr", settings={"warm_up": 10, "every": 3}),
}
"""Searches that two ranks with the noise of one process do as one process does."""

ALIKE = {
    "spam": Problem(method="spam"),
    "batch norm": Problem(small_conv, settings={"settled": 0.45}, inputs=(1, 6, 6)),
}
"""Searches after which two ranks have the same."""


def together(folder: Path, work: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """What ``work`` returns in each of two gloo processes."""
    context = mp.get_context("spawn")
    processes = [context.Process(target=_rank, args=(n, folder, work)) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    for process in processes:
        if process.exitcode is None:
            process.kill()
        assert process.exitcode == 0
    return [torch.load(folder / f"{n}.pt", weights_only=True) for n in range(2)]


def _rank(number: int, folder: Path, work: Callable[[], dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=number,
        world_size=2,
        timeout=timedelta(seconds=PATIENCE),
    )
    try:
        torch.save(work(), folder / f"{number}.pt")
    finally:
        dist.destroy_process_group()


def searched(problem: Problem) -> dict[str, Any]:
    """Rows of the history, without times, and every tensor of the chosen network."""
    rows: list[dict[str, Any]] = []
    search = problem.search(report=rows.append)
    best = search.run()
    kept = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return {"history": kept, "name": best.name, **everything(best)}


@contextmanager
def _noise_of_one_process() -> Iterator[None]:
    """Every rank draws what one process would for the whole batch, and takes its own rows."""
    own_noise, standard_normal = ranks.own_noise, layers.standard_normal

    def own_rows(shape: tuple[int, ...], *where: Any) -> Tensor:
        rows = shape[0] * ranks.world()
        return standard_normal((rows, *shape[1:]), *where)[ranks.share(rows)]

    @contextmanager
    def common(method: object = None) -> Iterator[None]:
        yield

    ranks.own_noise, layers.standard_normal = common, own_rows
    try:
        yield
    finally:
        ranks.own_noise, layers.standard_normal = own_noise, standard_normal


def everything_at_once() -> dict[str, Any]:
    """All that is asked of two ranks: starting them is most of the time."""
    found: dict[str, Any] = {}
    with _noise_of_one_process():
        for name, problem in EQUAL.items():
            found[name] = searched(problem)
        found["sharded"] = {kind: transformer_steps(kind, sharded=True) for kind in TRANSFORMERS}
    found["sharded curvature"] = {
        kind: transformer_curvature(kind, sharded=True) for kind in TRANSFORMERS
    }
    found["not sharded"] = _unsharded()
    for name, problem in ALIKE.items():
        found[name] = searched(problem)
    return found | _noise() | _validation() | _words() | _penalty()


def _noise() -> dict[str, Any]:
    """What dropout and a method would draw inside, and what everyone draws afterwards."""
    method = methods.build("ss-ig")
    method.generator = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    with ranks.own_noise(method):
        inside = [torch.rand(2), torch.rand(2, generator=method.generator)]
    outside = [torch.rand(2), torch.rand(2, generator=method.generator)]
    return {"own": torch.cat(inside), "common": torch.cat(outside)}


def scores() -> Tensor:
    """Of a fixed network on 25 rows, which two ranks cannot share equally."""
    data = table().subset(torch.arange(25))
    found = validate(small_mlp(), Categorical(), Batches(data, 16, shuffle=False))
    return torch.stack((found.score, found.losses))


def _validation() -> dict[str, Any]:
    return {"scores": scores()}


def _words() -> dict[str, Any]:
    """Rank 0's word, its failures, and differences."""
    found: dict[str, Any] = {"said": ranks.from_first(lambda: {"from": ranks.rank(), "pi": 3.25})}
    line = torch.tensor([True, False, ranks.first()])
    found["agreed"] = ranks.agreed({"a": line, "b": ~line})["b"]
    try:
        ranks.from_first(_failing)
    except BayespareError as error:
        found["failed"] = str(error)
    try:
        ranks.check_same("the seed", ranks.rank())
    except BayespareError as error:
        found["differs"] = str(error)
    try:
        ranks.whole(1)
    except BayespareError as error:
        found["few"] = str(error)
    return found


def _failing() -> None:
    raise BayespareError("no room\nleft")


class _Constant:
    """A penalty of three nats an example, with a gradient of one."""

    generator = None

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight = weight

    def penalty(self) -> Tensor:
        return 3.0 + (self.weight - self.weight.detach()).sum()


def penalised_step() -> dict[str, Any]:
    """One epoch of one step of gradient descent at a rate of one, whatever the number of ranks."""
    network = nn.Linear(6, 3)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    batches = Batches(table(), 120, shuffle=False, share=ranks.share(120))
    summary = run_epoch(
        network, Categorical(), optimizer, batches, method=_Constant(network.weight)
    )
    return {"penalty": summary.penalty, "nll": summary.nll, "weight": network.weight.detach()}


def _penalty() -> dict[str, Any]:
    return {"step": penalised_step(), "stopped": _poisoned()}


def _poisoned() -> str:
    """What is said of rows that are not finite; they are all rank 1's."""
    data = replace(table(), x=table().x.clone())
    data.x[-1] = torch.inf
    network = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    batches = Batches(data, 120, shuffle=False, share=ranks.share(120))
    try:
        run_epoch(network, Categorical(), optimizer, batches)
    except NonFiniteLossError as error:
        return str(error)
    return ""


def _vit() -> nn.Module:
    return nets.build("vit:dim=16,depth=2,heads=2,mlp=24", inputs=(1, 8, 8), outputs=3, seed=0)


def _stock() -> nn.Module:
    """PyTorch's encoder, whose attention reads its output projection without calling it."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    ends = nn.Linear(8, 16), nn.Linear(128, 3)
    return nn.Sequential(nn.Flatten(1, 2), ends[0], encoder, nn.Flatten(), ends[1])


TRANSFORMERS = {"vit": _vit, "stock": _stock}


def transformer_curvature(kind: str, *, sharded: bool) -> dict[str, Any]:
    """Curvature of a small transformer, the examples shared by the ranks."""
    network = TRANSFORMERS[kind]()
    x = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    own = ranks.share(24)
    rows = [(x[own][part], (torch.arange(24) % 3)[own][part]) for part in (slice(5), slice(5, 24))]
    wiring = wired(network, x)
    if sharded:
        shards.shard(network)
    blocks = all_reduce(curvature(network, "classification", rows, kind="ggn", wiring=wiring))
    found: dict[str, Any] = {
        "examples": blocks.examples,
        "diagonals": {name: whole(block) for name, block in blocks.diagonals().items()},
        "entries": sum(own_entries(block) for block in blocks.diagonals().values()),
    }
    if sharded:
        found["refused"] = [_refused(network, rows, **keys) for keys in ({}, {"structure": "kfac"})]
    return found


def _refused(network: nn.Module, rows: Any, **settings: Any) -> str:
    try:
        curvature(network, "classification", rows, **settings)
    except BayespareError as error:
        return str(error)
    return ""


def _gathered(network: nn.Module) -> int:
    """Parameters of the network that are all here now."""
    return sum(p.numel() for p in network.parameters() if not is_sharded(p))


def _unsharded() -> str:
    """Why a posterior of a number per weight is not spread."""
    network, method = gated_transformer("vit", "bmr", settings="faithful")
    try:
        shards.shard(network, method)
    except UnsupportedStructureError as error:
        return str(error)
    return ""


def gated_transformer(
    kind: str, name: str = "ss-ig", **settings: Any
) -> tuple[nn.Module, methods.Method]:
    network, method = TRANSFORMERS[kind](), methods.build(name, **settings)
    plan = trace(network, torch.randn(2, 1, 8, 8))
    noise = torch.Generator().manual_seed(1)
    method.attach(network, plan, examples=24, generator=noise)
    return network, method


def transformer_steps(kind: str, *, sharded: bool) -> dict[str, Any]:
    """Three steps of a small transformer with gates and noise."""
    network, method = gated_transformer(kind)
    if kind == "stock":
        # A weight that is drawn once a batch is drawn by each rank for itself.
        nn.init.constant_(method.weights.log_out, -20.0)
    random = torch.Generator().manual_seed(0)
    data = from_tensors(torch.randn(24, 1, 8, 8, generator=random), torch.arange(24) % 3)
    gathered: list[int] = []
    if sharded:
        shards.shard(network, method)
        for module in network.modules():
            module.register_forward_hook(lambda *_: gathered.append(_gathered(network)))
    optimizer = torch.optim.Adam(method.parameter_groups(network, batch=8), eps=1e-4)
    batches = Batches(data, 8, shuffle=False, share=ranks.share(8))
    summary = run_epoch(network, Categorical(), optimizer, batches, method=method)
    found: dict[str, Any] = {"nll": summary.nll, "penalty": summary.penalty}
    moments = [optimizer.state[p]["exp_avg"] for p in network.parameters()]
    found["moments"] = sum(own_entries(moment) for moment in moments)
    found["gathered"] = max(gathered, default=0)
    found["state"] = shards.whole_state(network)
    found["method"] = {name: value.clone() for name, value in method.state_dict().items()}
    with torch.no_grad():
        method.gates[0] = -1.0
    try:
        method.decide(optimizer)
    except UnsupportedStructureError as error:
        found["refused"] = str(error)
    return found
