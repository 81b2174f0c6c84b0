"""A network of any architecture shrinks while it is trained, and ends as its compact self."""

import copy

import pytest
import torch
from structure_nets import half, outputs, relative
from structure_zoo import (
    Attends,
    Bottleneck,
    Grouped,
    Inverted,
    ResNet,
    ShuffleBlock,
    UNet,
    ViT,
    randomised,
)
from torch import nn

from bayespare import methods
from bayespare.bayes.likelihood import likelihood_for
from bayespare.structure import trace
from bayespare.training.finish import finish
from bayespare.training.fit import Fit

IMAGE, SEQUENCE = torch.randn(2, 3, 12, 12), torch.randn(2, 4, 5)


def between(middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), middle, nn.Conv2d(8, 2, 1))


# The network, its input, and how many of its groups have gates: those that can be judged.
CASES = {
    "padded shortcut": (lambda: ResNet("A"), IMAGE, 6),
    "many groups": (lambda: between(Bottleneck(8, 16, 8)), IMAGE, 3),
    "few groups": (lambda: between(Bottleneck(8, 16, 2)), IMAGE, 4),
    "depthwise": (lambda: between(Inverted(8)), IMAGE, 2),
    "shuffle": (lambda: between(ShuffleBlock(8, 2)), IMAGE, 2),
    "transposed": (UNet, IMAGE, 4),
    "vit": (lambda: ViT("split"), IMAGE, 4),
    "grouped queries": (
        lambda: nn.Sequential(nn.Linear(5, 8), Grouped(8, 4, 2, native=False), nn.Linear(8, 2)),
        SEQUENCE, 4,
    ),
    "stock attention": (lambda: Attends(batch_first=True), SEQUENCE, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_lives_is_what_is_left(name):
    make, x, gated = CASES[name]
    torch.manual_seed(0)
    model = randomised(make()).float()
    live = copy.deepcopy(model)
    method = methods.build("ss-ghs")
    generator = torch.Generator().manual_seed(0)
    method.attach(live, trace(model, x), examples=100, generator=generator)
    fit = Fit.start(live, method, likelihood_for("classification"), generator, 50)
    names = set(method.log_odds())
    assert len(names) == gated
    before = sum(parameter.numel() for parameter in live.parameters())
    for seed in range(2):
        keep = half(method.plan, seed).keep
        method.remove({group: line for group, line in keep.items() if group in names})
    assert sum(parameter.numel() for parameter in live.parameters()) < before
    live.train()(x).sum().backward()
    method.decide()
    done = finish(model, fit.method, x)
    assert relative(outputs(done.model, x), outputs(live, x)) < 1e-5
    kept = done.verdict.kept
    assert all(kept[group][0] < kept[group][1] for group in names if kept[group][1] > 3)
