"""A search small enough to be run many times, and what is compared between two of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bayespare import methods, nets
from bayespare.bayes.likelihood import likelihood_for
from bayespare.data import Batches, Dataset, from_tensors
from bayespare.structure import trace
from bayespare.structure.positions import with_positions
from bayespare.training.budget import Budget
from bayespare.training.candidates import Candidate
from bayespare.training.checkpoint import Checkpoint
from bayespare.training.fit import Fit
from bayespare.training.loop import run_epoch
from bayespare.training.schedule import Schedule, Settings
from bayespare.training.search import Search

SHORT = Schedule(warm=2, explore=4, cool=2, candidates=3)

# Gates that start undecided, move fast and settle early: a few epochs see every kind of event.
QUICK = {"start_inclusion": 0.66, "settled": 0.4}


@cache
def table(task: str = "classification", inputs: tuple[int, ...] = (6,), rows: int = 120) -> Dataset:
    """Random inputs, the last of them constant; targets that the first few explain."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, *inputs, generator=random)
    if len(inputs) == 1:
        x[:, -1] = 0.25
    flat = x.flatten(1)
    noise = 0.2 * torch.randn(rows, 3, generator=random)
    if task == "regression":
        return from_tensors(x, flat[:, 0] * 2 + flat[:, 1].relu() + noise[:, 0])
    return from_tensors(x, (flat[:, :3] + noise).argmax(1))


class Small(nn.Module):
    """A convolution with batch norm, and a linear layer behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.hidden = nn.Linear(20, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 2)
        return self.out(self.hidden(x.flatten(1)).relu())


def small_conv() -> nn.Module:
    torch.manual_seed(0)
    return Small()


class Convs(nn.Module):
    """Convolutions whose weights lie otherwise in channels-last memory than in a file."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3)
        self.second = nn.Conv2d(5, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(self.first(x).relu()))
        return self.out(x.relu().flatten(1))


def convs() -> nn.Module:
    torch.manual_seed(0)
    return Convs()


def small_mlp(outputs: int = 3) -> nn.Module:
    return nets.build("mlp:16,8", inputs=(6,), outputs=outputs, seed=0)


def dropping() -> nn.Module:
    torch.manual_seed(0)
    hidden = [nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(*hidden, nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


@dataclass
class Problem:
    """All that a search needs, twice the same."""

    make: Callable[[], nn.Module] = small_mlp
    method: str = "ss-ghs"
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: str = "classification"
    inputs: tuple[int, ...] = (6,)
    schedule: Schedule = SHORT
    budget: Budget = field(default_factory=Budget)
    trained: bool = False

    def start(self, network: nn.Module | None = None, *, seed: int = 3) -> Fit:
        """A fit at its beginning."""
        model = self.make()
        network = copy.deepcopy(model) if network is None else network
        return self._attacher(model)(network, torch.Generator().manual_seed(seed))

    def _attacher(self, model: nn.Module) -> Callable[[nn.Module, torch.Generator], Fit]:
        data = table(self.task, self.inputs)
        plan = with_positions(trace(model, data.x[:4]))

        def attach(network: nn.Module, generator: torch.Generator) -> Fit:
            quick = QUICK if self.method.startswith("ss-") else {}
            method = methods.build(self.method, **{**quick, **self.settings})
            method.attach(network, plan, examples=len(data), generator=generator)
            return Fit.start(network, method, likelihood_for(self.task), generator, batch=512)

        return attach

    def search(
        self,
        checkpoint: Checkpoint | None = None,
        report: Callable[[dict[str, Any]], None] = lambda row: None,
        *,
        seed: int = 5,
    ) -> Search:
        model = self.make()
        data = table(self.task, self.inputs)
        return Search(
            model,
            self._attacher(model),
            data.subset(torch.arange(0, 100)),
            data.subset(torch.arange(100, 120)),
            likelihood_for(self.task),
            self.schedule,
            Settings(16, torch.device("cpu"), budget=self.budget),
            torch.Generator().manual_seed(seed),
            report,
            checkpoint,
            self.trained,
        )


FITS = {
    "default": Problem(),
    "faithful": Problem(method="ss-ig", settings={"settings": "faithful"}),
    "regression": Problem(lambda: small_mlp(1), "ss-gl", {"centred": False}, task="regression"),
    "conv": Problem(small_conv, settings={"c_reg": "learnt"}, inputs=(1, 6, 6)),
}


def train(fit: Fit, problem: Problem, epochs: int = 1, **options: Any) -> None:
    """Seven steps an epoch."""
    data = table(problem.task, problem.inputs)
    for _ in range(epochs):
        batches = Batches(data, 16, generator=fit.generator, shuffle=True, drop_last=True)
        run_epoch(fit.network, fit.likelihood, fit.optimizer, batches, method=fit.method, **options)


def everything(candidate: Candidate) -> dict[str, Tensor]:
    """Every tensor of a candidate and its scores, by name."""
    tensors, described = candidate.state()
    numbers = {k: torch.tensor(float(described[k])) for k in ("parameters", "tempering")}
    return tensors | numbers


def assert_identical(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert set(first) == set(second)
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different
