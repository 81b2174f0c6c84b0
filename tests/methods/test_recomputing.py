"""Activation checkpointing: what is drawn in the forward pass is gone when it is computed again."""

import pytest
import torch
from cases import MethodCase
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bayespare import UnsupportedStructureError, trace

NOISY = [
    MethodCase("ss-ig"),
    MethodCase("ss-ig", {"settings": "faithful"}),
    MethodCase("node-pip"),
    MethodCase("bmr"),
]
POINTS = [MethodCase("flat-map"), MethodCase("spam")]


class Checkpointed(nn.Module):
    """A body that may be computed again, of convolutions or of linear layers."""

    def __init__(self, *, convolutions: bool, kind: str | None) -> None:
        super().__init__()
        wide = (lambda a, b: nn.Conv1d(a, b, 1)) if convolutions else nn.Linear
        self.convolutions, self.kind = convolutions, kind
        self.enter = wide(4, 6)
        self.body = nn.Sequential(wide(6, 5), nn.ReLU(), wide(5, 6), nn.ReLU())
        self.leave = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).relu()
        if self.training and self.kind:
            h = checkpoint(self.body, h, use_reentrant=self.kind == "reentrant")
        else:
            h = self.body(h)
        return self.leave(h.mean(2) if self.convolutions else h)


def attached(case: MethodCase, *, convolutions: bool, kind: str | None) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = Checkpointed(convolutions=convolutions, kind=kind)
    x = torch.randn(8, 4, 2) if convolutions else torch.randn(8, 4)
    generator = torch.Generator().manual_seed(0)
    case.build().attach(network, trace(network, x), examples=8, generator=generator)
    return network.train(), x


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["reentrant", "saved tensors"])
@pytest.mark.parametrize("convolutions", [False, True], ids=["linear", "conv"])
@pytest.mark.parametrize("case", NOISY, ids=str)
def test_a_layer_that_is_computed_again_in_the_backward_pass_is_named(case, convolutions, kind):
    network, x = attached(case, convolutions=convolutions, kind=kind)
    loss = network(x).square().mean()
    with pytest.raises(UnsupportedStructureError, match=r"body\.0: computed again .* without chec"):
        loss.backward()


@pytest.mark.parametrize("kind", ["reentrant", "saved tensors"])
@pytest.mark.parametrize("case", POINTS, ids=str)
def test_without_noise_nothing_is_lost(case, kind):
    found = [
        gradients(network, network(x).square().mean())
        for network, x in (attached(case, convolutions=False, kind=k) for k in (kind, None))
    ]
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])


@pytest.mark.parametrize("case", NOISY, ids=str)
def test_a_whole_network_that_is_computed_again_is_refused(case):
    network, x = attached(case, convolutions=False, kind=None)
    loss = checkpoint(network, x.requires_grad_(), use_reentrant=False).square().mean()
    with pytest.raises(UnsupportedStructureError, match="the network: computed again"):
        loss.backward()


@pytest.mark.parametrize("case", NOISY, ids=str)
def test_who_calls_parts_of_the_network_or_looks_at_it_while_it_runs_may(case):
    network, x = attached(case, convolutions=False, kind=None)
    network(x).square().mean().backward()
    network.body(network.enter(x).relu()).square().mean().backward()
    seen: list[Tensor] = []

    def look(gradient: Tensor) -> None:
        with torch.no_grad():
            seen.append(network.eval()(x))
        network.train()

    out = network(x)
    out.register_hook(look)
    out.square().mean().backward()
    assert len(seen) == 1
    (slope,) = torch.autograd.grad(network(x.requires_grad_()).sum(), x, create_graph=True)
    slope.square().sum().backward()
