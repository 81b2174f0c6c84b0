"""Fixed-point steps of the prior precisions: how fast, and where they lead."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bayespare import data
from bayespare.bayes.curvature import Curvature
from bayespare.bayes.likelihood import Categorical, Distilled, Gaussian
from bayespare.bayes.marginal import LOG_RANGE, Laplace, Prior, laplace, learn, mackay
from bayespare.errors import BayespareError

D = torch.float64
KINDS = ["scalar", "layer", "unit", "parameter"]


def evidence(found: Laplace, prior: Prior) -> float:
    return float(found.log_evidence(prior).detach())


def best(found: Laplace, kind: str) -> Prior:
    """The precision of each layer, or of all, by ternary search: the evidence is concave in it."""
    prior = Prior(found.means, kind)
    for log in prior.logs:
        low, high = LOG_RANGE
        while high - low > 1e-5:
            thirds = low + (high - low) / 3, high - (high - low) / 3
            left, right = (evidence(found, _at(prior, log, third)) for third in thirds)
            low, high = (thirds[0], high) if left < right else (low, thirds[1])
        _at(prior, log, (low + high) / 2)
    return prior


def _at(prior: Prior, log: nn.Parameter, value: float) -> Prior:
    log.data.fill_(value)
    return prior


def hardly_determined(structure: str) -> Laplace:
    """A network with more parameters than its data can say anything about."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 40), nn.Tanh(), nn.Linear(40, 5)
    ).double()
    x, y = torch.randn(60, 1, 6, 6, dtype=D), torch.randint(0, 5, (60,))
    return laplace(model, "classification", [(x, y)], kind="ef", structure=structure)


def counted(found: Laplace, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every step."""
    steps: list[int] = []
    for name in ("effective", "determined"):
        seen = getattr(found, name)
        call = lambda *given, seen=seen: steps.append(0) or seen(*given)  # noqa: E731
        monkeypatch.setattr(found, name, call)
    return steps


@pytest.mark.parametrize("structure", ["diag", "kfac"])
@pytest.mark.parametrize("kind", ["scalar", "layer"])
def test_steps_lead_to_the_highest_evidence_from_anywhere(kind, structure, monkeypatch):
    found = hardly_determined(structure)
    peak = best(found, kind)
    for start in (1e-5, 1.0, 1e6):
        prior = Prior(found.means, kind, start)
        with monkeypatch.context() as patch:
            steps = counted(found, patch)
            learn(prior, found, "mackay")
        assert len(steps) <= 8
        assert evidence(found, prior) == pytest.approx(evidence(found, peak), abs=1e-3)
        for log, expected in zip(prior.logs, peak.logs, strict=True):
            assert float(log.detach()) == pytest.approx(float(expected.detach()), abs=0.01)


@pytest.mark.parametrize("structure", ["diag", "kfac"])
@pytest.mark.parametrize("kind", KINDS)
def test_few_steps_are_as_good_as_many(kind, structure, monkeypatch):
    found = hardly_determined(structure)
    for start in (1e-4, 1e5):
        one, two = (Prior(found.means, kind, start) for _ in range(2))
        with monkeypatch.context() as patch:
            steps = counted(found, patch)
            learn(one, found, "mackay", steps=300)
        # Each of a unit's two shares takes one; of a bound none moves further than a nat.
        assert len(steps) <= (60 if found.is_bound(one) else 20)
        mackay(two, found, steps=40)
        assert evidence(found, one) == pytest.approx(evidence(found, two), abs=0.02)


@pytest.fixture(scope="module")
def of_digits():
    """Real data have factors whose eigenbases mix what single precisions are for."""
    torch.manual_seed(0)
    train = data.load("digits").train
    x, y = train.x[:600].double(), train.y[:600]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(360):
        pull = sum(p.square().sum() for p in model.parameters()) / 1200
        adam.zero_grad()
        (nn.functional.cross_entropy(model(x), y) + pull).backward()
        adam.step()
    return model, x, y


@pytest.mark.parametrize(
    ("kind", "published"), [("parameter", False), ("parameter", True), ("unit", True)]
)
def test_steps_do_not_overshoot_where_the_evidence_is_a_bound(kind, published, of_digits):
    model, x, y = of_digits
    options = {"kind": "ggn", "structure": "kfac", "published": published}
    found = laplace(model, "classification", [(x, y)], **options)
    priors = [Prior(dict(model.named_parameters()), kind) for _ in range(3)]
    assert found.is_bound(priors[0])
    learn(priors[0], found, "adam", steps=200)
    learn(priors[1], found)
    learn(priors[2], found, steps=40)
    peak, few, many = (evidence(found, prior) for prior in priors)
    assert few == pytest.approx(peak, abs=1.0)
    assert many == pytest.approx(peak, abs=0.3)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 99),
    st.integers(1, 200),
    st.floats(-12, 12),
    st.floats(0, 8),
    st.floats(*LOG_RANGE),
)
def test_what_is_left_is_less_than_the_last_move(seed, size, level, spread, start):
    """And an error of 26, the whole range, takes a dozen steps to come below a hundredth."""
    random = torch.Generator().manual_seed(seed)
    h = (level + spread * torch.randn(size, generator=random, dtype=D)).exp()
    found = Laplace({"w": torch.randn(size, generator=random, dtype=D)}, Curvature({"w": h}, {}, 1))
    peak = float(best(found, "layer").logs[0].detach())
    prior = Prior(found.means, "layer", math.exp(start))
    left = abs(start - peak)
    for _ in range(13):
        before, last = left, float(prior.logs[0].detach())
        mackay(prior, found, steps=1)
        now = float(prior.logs[0].detach())
        left = abs(now - peak)
        assert left < before + 1e-4
        moved = abs(now - last)
        assert left < moved + 1e-4 or moved > 11.9  # a step's most is 12
    assert left < 0.01


def test_steps_of_single_precisions_are_newtons():
    """Few are enough, where the data say much and where they say little."""
    means, bends = torch.tensor([2.0, 0.5, 0.1], dtype=D), torch.tensor([1e-3, 1.0, 1e3], dtype=D)
    found = Laplace({"w": means}, Curvature({"w": bends}, {}, 1))
    prior = Prior({"w": means}, start=1.0)
    mackay(prior, found, steps=5)
    before: Tensor = prior.logs[0].detach().clone()
    mackay(prior, found, steps=1)
    assert (prior.logs[0].detach() - before).abs().max() < 1e-9


def test_how_many_share_a_precision():
    shapes = {"w": torch.zeros(4, 3, 2, 2), "b": torch.zeros(4), "v": torch.zeros(5, 4)}
    assert Prior(shapes, "scalar").sharers() == [48 + 4 + 20]
    assert Prior(shapes, "layer").sharers() == [48, 4, 20]
    assert Prior(shapes, "unit").sharers() == [12, 16, 1, 4, 5]
    assert Prior(shapes, "parameter").sharers() == [1, 1, 1]


def regression() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    x = torch.randn(80, 4)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)), [(x, x[:, :1].sin())]


@pytest.mark.parametrize("kind", ["ggn", "ef"])
def test_the_evidence_at_another_noise_is_that_of_a_look_at_that_noise(kind):
    model, batches = regression()
    likelihood = Gaussian()
    found = laplace(model, likelihood, batches, kind=kind)
    prior = Prior(found.means, "layer")
    with torch.no_grad():
        likelihood.log_noise.fill_(-0.7)
    anew = laplace(model, likelihood, batches, kind=kind)
    told = float(found.log_evidence(prior, torch.tensor(-0.7)).detach())
    assert told == pytest.approx(evidence(anew, prior), rel=1e-6)


@pytest.mark.parametrize("kind", ["ggn", "ef"])
def test_fixed_points_of_the_noise_are_where_the_evidence_is_flat(kind):
    model, batches = regression()
    found = laplace(model, Gaussian(), batches, kind=kind)
    prior, log_noise = Prior(found.means, "layer"), nn.Parameter(torch.zeros(()))
    learn(prior, found, "mackay", steps=100, tolerance=1e-6, log_noise=log_noise)
    found.log_evidence(prior, log_noise).backward()
    assert abs(float(log_noise.grad)) < 0.05
    with pytest.raises(BayespareError, match=r"closed.* does not learn log_noise"):
        learn(Prior(found.means, "parameter"), found, "closed", log_noise=log_noise)


def test_soft_targets_of_every_position_are_as_labels_there():
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(8, 6, 4), torch.randint(3, (8, 6))
    soft = nn.functional.one_hot(y, 3).float()
    told = [
        float(laplace(model, likelihood, [(x, target)], kind="ef").log_likelihood())
        for likelihood, target in ((Categorical(), y), (Categorical(), soft), (Distilled(), soft))
    ]
    assert told[1:] == pytest.approx(told[:1] * 2)
