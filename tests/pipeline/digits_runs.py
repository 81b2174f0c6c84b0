"""Short runs on some digits, and what two of them have in common."""

from typing import Any

import torch
from torch import Tensor, nn

from bayespare import Result, nets, sparsify
from bayespare.data import Dataset

METHODS = ["ss-ig", "ss-gl", "ss-ghs"]


class Killed(Exception):
    """Stands for a process that ends."""


def digits_net() -> nn.Module:
    return nets.build("mlp:32,16", inputs=(64,), outputs=5, seed=0)


def short(digits: tuple[Dataset, Dataset], **options: Any) -> Result:
    train, test = digits
    settings = {"epochs": 8, "batch": 32, "device": "cpu"}
    return sparsify(digits_net(), train, test=test, **{**settings, **options})


def tensors_of(result: Result) -> dict[str, Tensor]:
    named = {}
    for point in result.frontier:
        for part in (point.model.state_dict(), point.posterior.std):
            named |= {f"{point.name}/{len(named)}/{name}": t for name, t in part.items()}
    return named | {f"odds/{name}": odds for name, odds in result.log_odds.items()}


def assert_same_run(first: Result, second: Result) -> None:
    one, other = tensors_of(first), tensors_of(second)
    assert list(one) == list(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert first.point.name == second.point.name
    timed = {"latency_ms", "peak_memory_bytes", "time_s", "load_average"}

    def untimed(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: untimed(v) for k, v in value.items() if k not in timed}
        return value

    assert untimed(first.metrics) == untimed(second.metrics)
