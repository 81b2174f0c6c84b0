"""Random networks, random verdicts and small named networks for the structure tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from bayespare.structure import Plan, Verdict

Step = nn.Module | Callable[[Tensor], Tensor]

ACTIVATIONS: list[Callable[[int], Step]] = [
    lambda _: nn.ReLU(),
    lambda _: nn.ReLU(inplace=True),
    lambda _: nn.GELU(),
    lambda _: nn.SiLU(),
    lambda _: nn.Hardswish(),
    lambda _: nn.Softplus(),
    lambda _: nn.LogSigmoid(),
    lambda width: nn.PReLU(width),
    lambda _: nn.PReLU(),
    lambda _: torch.tanh,
    lambda _: torch.sigmoid,
    lambda _: F.elu,
    lambda _: nn.Identity(),
    lambda _: nn.Dropout(0.5),
    lambda _: lambda x: F.dropout(x, training=False) * 2 + 1,
]
FLATTENS: list[Callable[[], Step]] = [
    lambda: nn.Flatten(),
    lambda: lambda x: x.view(x.size(0), -1),
    lambda: lambda x: x.flatten(1),
    lambda: lambda x: torch.flatten(x, 1),
    lambda: lambda x: x.reshape(len(x), -1),
]
POOLS: dict[int, list[Callable[[], nn.Module]]] = {
    1: [
        lambda: nn.MaxPool1d(2),
        lambda: nn.AvgPool1d(2),
        lambda: nn.AdaptiveAvgPool1d(2),
        lambda: nn.AdaptiveMaxPool1d(1),
    ],
    2: [
        lambda: nn.MaxPool2d(2),
        lambda: nn.AvgPool2d(2),
        lambda: nn.AdaptiveAvgPool2d(1),
        lambda: nn.AdaptiveAvgPool2d((2, 1)),
        lambda: nn.AdaptiveMaxPool2d(2),
    ],
}


class Steps(nn.Module):
    """Runs modules and plain functions in turn."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps_of(steps)
        for number, step in enumerate(steps):
            if isinstance(step, nn.Module):
                self.add_module(f"s{number}", step)

    def forward(self, x: Tensor) -> Tensor:
        for number, function in self.steps:
            x = function(x) if function else getattr(self, f"s{number}")(x)
        return x


def steps_of(steps: list[Step]) -> list[tuple[int, Callable[[Tensor], Tensor] | None]]:
    return [(n, None if isinstance(s, nn.Module) else s) for n, s in enumerate(steps)]


class Residual(nn.Module):
    """``x + inner(x)``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@dataclass
class Case:
    """A network, a batch for it, and how many hidden units a person would count in it."""

    model: nn.Module
    example: Tensor
    units: int
    features: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Random MLPs and CNNs in float64, with random batch-norm statistics."""
    seed = draw(st.integers(0, 2**16))
    torch.manual_seed(seed)
    dims = draw(st.sampled_from([0, 0, 1, 2]))
    units = 0
    steps: list[Step] = []
    if dims:
        channels = draw(st.integers(1, 3))
        shape = (2, channels, *[draw(st.integers(12, 13)) for _ in range(dims)])
        width = channels
        blocks = draw(st.integers(1, 2))
        for block in range(1, blocks + 1):
            new = draw(st.integers(1, 5))
            steps += _conv(draw, dims, width, new)
            units, width = units + new, new
            if draw(st.booleans()):
                steps.append(Residual(Steps(_conv(draw, dims, width, width, same=True))))
            if draw(st.booleans()):
                # Only the last pooling may leave so little that no kernel fits any more.
                pools = POOLS[dims] if block == blocks else POOLS[dims][:2]
                steps.append(draw(st.sampled_from(pools))())
        steps.append(draw(st.sampled_from(FLATTENS))())
        features = 0
    else:
        shape = (2, *draw(st.sampled_from([(5,), (1, 2, 3), (2, 3)])))
        features = 1
        for size in shape[1:]:
            features *= size
        if len(shape) > 2:
            steps.append(draw(st.sampled_from(FLATTENS))())
    example = torch.randn(shape, dtype=torch.float64)
    width = Steps(steps).double().eval()(example).shape[1]
    for _ in range(draw(st.integers(0 if dims else 1, 3))):
        new = draw(st.integers(1, 6))
        steps += _linear(draw, width, new)
        units, width = units + new, new
        if draw(st.booleans()):
            steps.append(Residual(Steps(_linear(draw, width, width))))
    steps.append(nn.Linear(width, 3, bias=draw(st.booleans())))
    model = Steps(steps).double()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    model.train(draw(st.booleans()))
    return Case(model, example, units, features)


def _conv(draw: st.DrawFn, dims: int, width: int, new: int, *, same: bool = False) -> list[Step]:
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv2d, nn.BatchNorm2d)
    kernel = 3 if same else draw(st.integers(1, 3))
    padding = 1 if same else draw(st.integers(0, 1))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate"]))
    bias = draw(st.booleans())
    steps: list[Step] = [conv(width, new, kernel, padding=padding, padding_mode=mode, bias=bias)]
    return steps + _after(draw, norm, new)


def _linear(draw: st.DrawFn, width: int, new: int) -> list[Step]:
    steps: list[Step] = [nn.Linear(width, new, bias=draw(st.booleans()))]
    return steps + _after(draw, nn.BatchNorm1d, new)


def _after(draw: st.DrawFn, norm: Callable[..., nn.Module], width: int) -> list[Step]:
    steps: list[Step] = []
    if draw(st.booleans()):
        steps.append(norm(width, affine=draw(st.booleans())))
    steps.append(draw(st.sampled_from(ACTIVATIONS))(width))
    return steps


@st.composite
def verdicts(draw: st.DrawFn, plan: Plan) -> Verdict:
    """Random keeps, whole dead groups and single survivors among them."""
    keep = {}
    for group in plan.groups:
        how = draw(st.sampled_from(["random", "random", "none", "one", "all"]))
        flags = torch.zeros(group.size, dtype=torch.bool)
        if how == "random":
            flags = torch.tensor([draw(st.booleans()) for _ in range(group.size)])
        elif how == "one":
            flags[draw(st.integers(0, group.size - 1))] = True
        elif how == "all":
            flags[:] = True
        keep[group.name] = flags
    return Verdict(plan, keep)


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet_wide() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        mlp(800, 800, 500, 10),
    )


def half(plan: Plan, seed: int = 0) -> Verdict:
    """Keep about half of every group, at least one."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in plan.groups:
        keep[group.name] = torch.rand(group.size, generator=generator) < 0.5
        keep[group.name][0] = True
    return Verdict(plan, keep)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """What the model says in evaluation mode."""
    training = model.training
    with torch.no_grad():
        y = model.eval()(x)
    model.train(training)
    return y


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
