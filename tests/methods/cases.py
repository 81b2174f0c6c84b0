"""The one table of methods and networks: a new method adds a row, and all contract tests run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayespare import methods, nets
from bayespare.bayes.likelihood import Categorical
from bayespare.data import Batches, Dataset, from_tensors
from bayespare.structure import Plan, trace
from bayespare.structure.positions import with_positions
from bayespare.training.fit import Fit
from bayespare.training.loop import run_epoch

EXAMPLES, BATCH, CLASSES = 96, 16, 3


@dataclass(frozen=True)
class MethodCase:
    """A method with settings that take another path through its file."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"{key}={value}" for key, value in self.settings.items()]
        return " ".join([self.name, *words])

    def build(self, **changes: Any) -> methods.Method:
        return methods.build(self.name, **{**self.settings, **changes})


@dataclass(frozen=True)
class NetCase:
    """A network and the shape of its inputs."""

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[int, ...]

    def __str__(self) -> str:
        return self.name


class Normalised(nn.Module):
    """Conv1d, batch norm, pooling; linear layers with and without biases behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 5, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm1d(5)
        self.conv2 = nn.Conv1d(5, 4, 3)
        self.norm2 = nn.BatchNorm1d(4)
        self.pool = nn.MaxPool1d(2)
        self.fc1 = nn.Linear(20, 7, bias=False)
        self.norm3 = nn.BatchNorm1d(7)
        self.fc2 = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm1(self.conv1(x)).relu())
        x = self.pool(self.norm2(self.conv2(x)).tanh())
        return self.fc2(self.norm3(self.fc1(x.reshape(len(x), -1))).relu())


class Functional(nn.Module):
    """A convolution flattened by hand, activations as functions, one of them not zero at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.hidden = nn.Linear(16, 6)
        self.out = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv(x), 2)).flatten(1)
        return self.out(torch.sigmoid(self.hidden(x)))


class Encoder(nn.Module):
    """PyTorch's own encoder layer: attention that holds its projections as raw tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 8)
        self.layer = nn.TransformerEncoderLayer(8, 4, 12, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.enter(x)).mean(1))


class Conv1D(nn.Module):
    """GPT-2's linear layer: its weight has the inputs first."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight = nn.Parameter(0.3 * torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


class InputsFirst(nn.Module):
    """A transposed convolution between convolutions, and GPT-2's kind of linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 5, 3)
        self.up = nn.ConvTranspose2d(5, 4, 2, stride=2)
        self.mix = nn.Conv2d(4, 3, 1)
        self.hidden = Conv1D(7, 3)
        self.out = Conv1D(CLASSES, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.up(self.down(x).relu()).relu()).relu()
        return self.out(torch.tanh(self.hidden(x.mean((2, 3)))))


def _built(spec: str, inputs: tuple[int, ...]) -> Callable[[], nn.Module]:
    return lambda: nets.build(spec, inputs=inputs, outputs=CLASSES, seed=0)


NETS = [
    NetCase("mlp", _built("mlp:12,8", (10,)), (10,)),
    NetCase("lenet5", _built("lenet5", (1, 20, 20)), (1, 20, 20)),
    NetCase("batch-norm", Normalised, (2, 24)),
    NetCase("functional", Functional, (1, 6, 6)),
]

ARCHITECTURES = [
    NetCase("resnet", _built("resnet20:width=4", (3, 8, 8)), (3, 8, 8)),
    NetCase("wide-resnet", _built("wrn:10,1,norm=fixup", (3, 8, 8)), (3, 8, 8)),
    NetCase("vit", _built("vit:dim=12,depth=1,heads=3,mlp=8", (1, 8, 8)), (1, 8, 8)),
    NetCase("mixer", _built("mixer:dim=8,depth=1,tokens=6,mlp=8", (1, 8, 8)), (1, 8, 8)),
    NetCase("encoder", Encoder, (5, 6)),
    NetCase("inputs-first", InputsFirst, (1, 7, 7)),
]
"""Networks that every method runs on with its default settings."""

METHODS = [
    MethodCase("ss-ig"),
    MethodCase("ss-ig", {"prior": "1/k", "prior_std": 1.0, "kl_every": 1}),
    MethodCase("ss-ig", {"settings": "faithful"}),
    MethodCase("ss-ig", {"settings": "faithful", "prior": 0.01, "settled": 0.02}),
    MethodCase("ss-gl"),
    MethodCase("ss-gl", {"centred": False, "prior": "theory"}),
    MethodCase("ss-gl", {"settings": "faithful"}),
    MethodCase("ss-gl", {"settings": "faithful", "centred": True, "prior": "1/k"}),
    MethodCase("ss-ghs"),
    MethodCase("ss-ghs", {"c_reg": "k+1", "prior_std": 0.5}),
    MethodCase("ss-ghs", {"c_reg": "learnt", "centred": False}),
    MethodCase("ss-ghs", {"c_reg": "learnt", "prior": "1/k"}),
    MethodCase("ss-ghs", {"settings": "faithful"}),
    MethodCase("ss-ghs", {"settings": "faithful", "centred": False, "c_reg": "k+1"}),
    MethodCase("ss-ghs", {"settings": "faithful", "c_reg": "learnt", "prior": 0.01}),
    MethodCase("node-pip"),
    MethodCase("node-pip", {"prior": 0.5, "prior_std": 0.7, "settled": 0.01}),
    MethodCase("node-pip", {"algorithm": "dense", "draws": 2, "sweeps": 1}),
    MethodCase("node-pip", {"algorithm": "spike", "annealing": 0.5, "prior": "beta"}),
    MethodCase("spam"),
    MethodCase("spam", {"prior": "unit", "samples": 40, "cap": 1.0}),
    MethodCase("spam", {"curvature": "kfac", "prior": "unit", "every": 2, "steps": 3}),
    MethodCase("spam", {"curvature": "kfac", "kind": "ef", "steps": 5}),
    MethodCase("spam", {"unit": "weight", "sparsity": 0.5}),
    MethodCase("spam", {"settings": "faithful", "every": 1, "steps": 5}),
    MethodCase("flat-map"),
    MethodCase("flat-map", {"settings": "faithful"}),
    MethodCase("flat-ff"),
    MethodCase("flat-ff", {"settings": "faithful"}),
    MethodCase("tiered-ff"),
    MethodCase("tiered-ff", {"settings": "faithful"}),
    MethodCase("bmr", {"warm_up": 1, "every": 1, "tie": 0.5}),
    MethodCase("bmr", {"odds": "converged", "odds_bound": 3.0, "prior_std": 0.3, "kl_every": 1}),
    MethodCase("bmr", {"unit": "weight", "warm_up": 1, "every": 1, "tie": 0.5}),
    MethodCase("bmr", {"unit": "weight", "noise": "example", "warm_up": 1, "tie": 0.5}),
    MethodCase("bmr", {"settings": "faithful", "warm_up": 4, "every": 4}),
    MethodCase(
        "bmr",
        {"settings": "faithful", "unit": "unit", "warm_up": 4, "odds": "zero", "noise": "example"},
    ),
    MethodCase("bmr-rhs", {"warm_up": 1, "every": 1, "tie": 0.5}),
    MethodCase("bmr-rhs", {"settings": "faithful", "warm_up": 4, "every": 4}),
]

DEFAULTS = list({case.name: case for case in reversed(METHODS)}.values())[::-1]

PAIRS = [(case, net) for case in METHODS for net in NETS]
PAIRS += [(case, net) for case in DEFAULTS for net in ARCHITECTURES]
"""The table: every method in all its forms on some networks, by default on all."""

GATED = [case for case in METHODS if case.name.startswith(("ss-", "node-pip"))]
"""Methods whose log-odds are parameters of their own."""


@cache
def planned(net: NetCase) -> tuple[nn.Module, Plan, Dataset]:
    """The network, its plan as the pipeline makes it, and data that its inputs explain."""
    torch.manual_seed(0)
    model = net.make()
    x = torch.randn(EXAMPLES, *net.inputs)
    y = (x.flatten(1)[:, :CLASSES] + 0.3 * torch.randn(EXAMPLES, CLASSES)).argmax(1)
    return model, with_positions(trace(model, x[:4])), from_tensors(x, y)


def started(case: MethodCase, net: NetCase, **changes: Any) -> Fit:
    """A method freshly attached to a copy of a network."""
    model, plan, _ = planned(net)
    network = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    method = case.build(**changes)
    method.attach(network, plan, examples=EXAMPLES, generator=generator)
    return Fit.start(network, method, Categorical(), generator, BATCH)


def train(fit: Fit, net: NetCase, epochs: int = 1) -> None:
    """Six steps an epoch."""
    *_, data = planned(net)
    for _ in range(epochs):
        batches = Batches(data, BATCH, generator=fit.generator, shuffle=True)
        run_epoch(fit.network, fit.likelihood, fit.optimizer, batches, method=fit.method)
        fit.method.observe(fit.likelihood, data)


@cache
def _trained(case_index: int, net: NetCase) -> Fit:
    fit = started(METHODS[case_index], net)
    train(fit, net, epochs=2)
    return fit


def trained(case: MethodCase, net: NetCase) -> Fit:
    """Twelve steps after the start; the copy is the caller's."""
    return _trained(METHODS.index(case), net).copy()


def thinned(fit: Fit, share: float, seed: int) -> dict[str, Tensor]:
    """A random keep per gated group of the network as it is now."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(len(odds), generator=random) < share
        for name, odds in fit.method.log_odds().items()
    }
