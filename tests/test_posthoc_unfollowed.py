"""Trained networks with parameters that curvature cannot follow: these stay, the rest shrinks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bayespare
from bayespare import data
from bayespare.bayes.curvature import estimate
from bayespare.errors import BayespareError, NoCurvatureError
from bayespare.posthoc.problem import follow

ROWS = 400


class Recurrent(nn.Module):
    """A linear layer, an LSTM and two linear layers behind its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(3, 12)
        self.lstm = nn.LSTM(12, 8, batch_first=True)
        self.hidden, self.out = nn.Linear(8, 24), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.before(x).relu())
        return self.out(self.hidden(states[:, -1]).relu())


class Bag(nn.Module):
    """The mean of the words' vectors, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(30, 8)
        self.hidden, self.out = nn.Linear(8, 24), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.words(x)).relu())


def sequences() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 6, 3, generator=random)
    return x, (x[:, -1, 0] + x[:, -2, 1] > 0).long()


def words() -> tuple[Tensor, Tensor]:
    x = torch.randint(0, 30, (ROWS, 8), generator=torch.Generator().manual_seed(0))
    return x, ((x < 12).sum(1) > 3).long()


def trained(make: Callable[[], nn.Module], x: Tensor, y: Tensor) -> nn.Module:
    torch.manual_seed(0)
    net = make()
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        adam.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        adam.step()
    return net.eval()


CASES = {
    "lstm": (Recurrent, sequences, "lstm.weight_ih_l0 and 3 more"),
    "bag": (Bag, words, "words.weight"),
}
VERBS = {
    "reduce": lambda net, train, **rest: bayespare.reduce(net, train, rounds=2, **rest),
    "reduce weights": lambda net, train, **rest: bayespare.reduce(
        net, train, rounds=2, unit="weight", **rest
    ),
    "prune": lambda net, train, **rest: bayespare.prune(net, train, sparsity=0.5, **rest),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("case", CASES)
def test_what_curvature_cannot_follow_stays_and_the_rest_shrinks(case, verb):
    make, rows, named = CASES[case]
    x, y = rows()
    net = trained(make, x[:300], y[:300])
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    parts = [
        data.from_tensors(x[a:b], y[a:b], tokens=case == "bag") for a, b in ((0, 300), (300, 400))
    ]
    result = VERBS[verb](net, parts[0], valid=parts[1], finetune=1)
    (warning,) = [w for w in result.metrics["warnings"] if "cannot follow" in w]
    assert warning.endswith(f"a posterior: {named}")
    left = dict(result.model.named_parameters())
    frozen = follow(make(), x[:4], "diag")[1]
    assert frozen
    for name in frozen:
        # The LSTM stays whole; of an embedding columns may go, what is left is as it was.
        assert name not in result.posterior.std
        kept = torch.isin(before[name], left[name])
        assert torch.equal(before[name][kept].flatten(), left[name].flatten())
        assert case == "bag" or bool(kept.all())
    assert {"hidden.weight", "out.weight"} <= result.posterior.std.keys()
    sizes = result.metrics["compact"]["nonzeros"], result.metrics["dense"]["nonzeros"]
    assert sizes[0] < sizes[1]
    # Nobody's parameters are frozen by the run: neither the network's given nor the result's.
    for model in (net, result.model):
        assert all(p.requires_grad for p in model.parameters())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_curvature_alone_refuses_and_names_all_of_them():
    with pytest.raises(NoCurvatureError, match=r"lstm\.weight_ih_l0") as refused:
        estimate(Recurrent(), torch.randn(4, 6, 3))
    assert len(refused.value.names) == 4


def test_a_network_of_nothing_else_is_refused():
    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0][:, -1]

    with pytest.raises(BayespareError, match="no trainable parameter"):
        follow(Only(), torch.randn(4, 6, 3), "diag")
