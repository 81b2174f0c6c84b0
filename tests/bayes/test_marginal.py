"""Laplace evidence, its gradients and the precisions that raise it: card vectors and slow twins."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bayespare.bayes.curvature import Curvature, KroneckerFactors
from bayespare.bayes.likelihood import likelihood_for
from bayespare.bayes.marginal import (
    LOG_RANGE,
    Laplace,
    Noise,
    Prior,
    adam_steps,
    closed_form,
    laplace,
    learn,
    mackay,
)
from bayespare.bayes.marginal.blocks import DiagonalBlock, KroneckerBlock
from bayespare.bayes.marginal.updates import best_log_precision
from bayespare.errors import BayespareError

D = torch.float64
CLOSE = {"rtol": 0, "atol": 1e-6}


def near(value: float) -> object:
    return pytest.approx(value, abs=1e-6)


def prior_of(precision: Tensor, kind: str = "parameter", name: str = "w") -> Prior:
    prior = Prior({name: precision}, kind)
    with torch.no_grad():
        prior.logs[0].copy_(precision.log())
    return prior


# -------------------------------------------------------- TV1, TV2, TV10: regression
class Regression:
    """Card TV1: 20 rows, three weights, noise one half; ``full`` curvature is X'X / sigma^2."""

    def __init__(self) -> None:
        random = np.random.RandomState(0)
        self.x = torch.tensor(random.randn(20, 3), dtype=D)
        self.y = self.x @ torch.tensor([1, -2, 0.5], dtype=D) + 0.5 * torch.tensor(random.randn(20))
        self.std = 0.5

    def mode(self, delta: Tensor, temperature: float = 1.0) -> Tensor:
        factor = 1 / (temperature * self.std**2)
        return torch.linalg.solve(
            factor * self.x.T @ self.x + delta.diag(), factor * self.x.T @ self.y
        )

    def laplace(self, theta: Tensor, temperature: float = 1.0) -> Laplace:
        diagonal = self.x.square().sum(0) / self.std**2
        squares = float((self.y - self.x @ theta).square().sum())
        return Laplace(
            {"w": theta},
            Curvature({"w": diagonal}, {}, 20),
            temperature=temperature,
            noise=Noise(squares, 20, self.std),
        )


def test_the_data_are_those_of_the_card():
    data = Regression()
    assert data.x[0].tolist() == [near(1.764052346), near(0.4001572084), near(0.9787379841)]
    assert float(data.y[0]) == near(1.1168766974)
    assert float(data.y.sum()) == near(-8.2579244603)


@pytest.mark.parametrize(
    ("delta", "exact", "diagonal"),
    [
        ((2.0, 2.0, 2.0), -20.0052795478, -20.0127629946),
        ((0.5, 2.0, 8.0), -20.1980260977, -20.2052232399),
    ],
)
def test_evidence_of_a_linear_model(delta, exact, diagonal):
    """TV1: with full curvature the Laplace evidence is the exact one."""
    data = Regression()
    prior = torch.tensor(delta, dtype=D)
    theta = data.mode(prior)
    covariance = (
        data.std**2 * torch.eye(20, dtype=D) + data.x @ prior.reciprocal().diag() @ data.x.T
    )
    whole = torch.distributions.MultivariateNormal(torch.zeros(20, dtype=D), covariance)
    assert float(whole.log_prob(data.y)) == near(exact)
    # One weight a block by hand: what the diagonal form gives up is the card's difference.
    found = data.laplace(theta)
    assert float(found.log_evidence(prior_of(prior)).detach()) == near(diagonal)
    precision = data.x.T @ data.x / data.std**2 + prior.diag()
    rest = float(found.log_determinant(prior_of(prior)).detach() - precision.logdet()) / 2
    assert diagonal + rest == near(exact)


def test_gradients_of_the_evidence():
    """TV2, at the parameters of the full posterior."""
    data = Regression()
    delta = torch.tensor([0.5, 2, 8], dtype=D)
    prior, found = prior_of(delta), data.laplace(data.mode(delta))
    assert found.means["w"].tolist() == [
        near(0.9213636583),
        near(-1.7972739112),
        near(0.4956183219),
    ]
    log_noise = nn.Parameter(torch.tensor(math.log(0.5), dtype=D))
    slopes = torch.autograd.grad(found.log_evidence(prior, log_noise), [prior.logs[0], log_noise])
    assert slopes[0].tolist() == [near(0.2854773932), near(-2.7418451454), near(-0.5286703936)]
    step = 1e-5
    high, low = (
        float(found.log_evidence(prior, log_noise.detach() + s).detach()) for s in (step, -step)
    )
    assert float(slopes[1]) == pytest.approx((high - low) / (2 * step), rel=1e-6)


def test_the_gradient_in_the_noise_is_the_cards():
    """TV2: d/d log sigma = squares / sigma^2 - N + tr(c H P^-1), full curvature by hand."""
    data = Regression()
    delta = torch.full((3,), 2.0, dtype=D)
    theta = data.mode(delta)
    bend = data.x.T @ data.x / data.std**2
    squares = float((data.y - data.x @ theta).square().sum())
    trace = float((bend @ torch.linalg.inv(bend + delta.diag())).trace())
    assert squares / data.std**2 - 20 + trace == near(-6.2399963414)
    gamma = data.laplace(theta).determined(prior_of(delta))["w"].sum()
    diagonal = bend.diagonal()
    assert float(gamma) == near(float((diagonal / (diagonal + delta)).sum()))


def test_the_temperature_is_the_same_in_loss_and_evidence():
    """TV10: the mode of the loss that goes with the evidence."""
    data = Regression()
    two = torch.full((3,), 2.0, dtype=D)
    wanted = [near(0.8901583688), near(-1.7555371524), near(0.5152234956)]
    assert data.mode(two, temperature=2.0).tolist() == wanted
    theta = data.mode(two, 2.0).clone().requires_grad_()
    prior = prior_of(two)
    # Mean negative log likelihood plus T / N times the penalty, as the module says.
    fit = (data.y - data.x @ theta).square().sum() / (2 * data.std**2) / 20
    loss = fit + 2.0 / 20 * prior.penalty({"w": theta})
    (slope,) = torch.autograd.grad(loss, theta)
    assert slope.abs().max() < 1e-12
    found = data.laplace(theta.detach(), temperature=2.0)
    assert float(found.factor()) == 0.5
    assert torch.allclose(
        found.precisions(prior)["w"], data.x.square().sum(0) / data.std**2 / 2 + 2, **CLOSE
    )


# ----------------------------------------------------------- TV3: softmax, batches
WEIGHT = [[0.5, -0.25], [0.0, 0.25], [-0.5, 0.0]]


def softmax_layer() -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Linear(2, 3, bias=False, dtype=D)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(WEIGHT))
    x = torch.tensor([[1, 0], [0, 1], [1, 1], [2, -1]], dtype=D)
    return model, x, torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("kind", "structure", "determinant", "evidence"),
    [
        ("ggn", "diag", 1.2322535564, -6.3406744901),
        ("ggn", "kfac", 0.7312070206, -6.0901512222),
        ("ef", "diag", 0.2261803389, -5.8376378813),
        ("ef", "kfac", 0.2866441722, -5.8678697980),
    ],
)
def test_evidence_of_a_softmax_layer(kind, structure, determinant, evidence, batch):
    """TV3, whatever the batches."""
    model, x, y = softmax_layer()
    batches = list(zip(x.split(batch), y.split(batch), strict=True))
    found = laplace(model, "classification", batches, kind=kind, structure=structure)
    prior = Prior(dict(model.named_parameters()), "scalar", 0.5)
    assert float(found.log_likelihood()) == near(-3.4888561702)
    assert float(found.log_determinant(prior).detach()) == near(determinant)
    assert float(found.log_evidence(prior).detach()) == near(evidence)


def test_outputs_at_every_position():
    """Of a language model: the log likelihood of all words that count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)).double()
    x, y = torch.randint(0, 5, (6, 4)), torch.randint(0, 3, (6, 4))
    y[0, 2:] = -100
    found = laplace(model, "classification", [(x[:2], y[:2]), (x[2:], y[2:])])
    log_probs = model(x).detach().log_softmax(-1)
    log_probs = log_probs.gather(-1, y.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    assert float(found.log_likelihood()) == near(float(log_probs[y >= 0].sum()))


def test_a_temperature_below_one_counts_the_data_more_often():
    """TV3, KFAC at T = 0.2."""
    model, x, y = softmax_layer()
    found = laplace(
        model, "classification", [(x, y)], kind="ggn", structure="kfac", temperature=0.2
    )
    prior = Prior(dict(model.named_parameters()), "scalar", 0.5)
    assert float(found.log_determinant(prior).detach()) == near(6.0023119663)
    assert float(found.log_evidence(prior).detach()) == near(-22.6811283758)


# ------------------------------------------------- TV4, TV5: eigenbasis, diagonals
OUTPUT = torch.tensor([[2, 1], [1, 3]], dtype=D)
INPUT = torch.tensor([[1, 0.5], [0.5, 2]], dtype=D)
DELTA = torch.tensor([[0.1, 1], [10, 100]], dtype=D)


def block() -> KroneckerBlock:
    return KroneckerBlock(KroneckerFactors(OUTPUT, INPUT, 1, (2, 2)))


def test_determinants_of_a_kronecker_block():
    """TV4: the proposition, the exact form of an outer product, the tighter bound between."""
    one = torch.ones((), dtype=D)
    log = DELTA.log().requires_grad_()
    published = block().log_determinant(log, one, published=True, separable=False)
    assert float(published.detach()) == near(12.6021777880)
    (slope,) = torch.autograd.grad(published, log)
    wanted = [0.0968933812, 0.0415077262, 0.0650534678, 0.0278723075]
    assert (slope / DELTA).flatten().tolist() == [near(value) for value in wanted]
    exact = block().log_determinant(log, one, published=False, separable=True)
    assert float(exact.detach()) == near(9.4335349220)
    bound = block().log_determinant(log, one, published=False, separable=False)
    assert float(bound.detach()) == near(9.5797637087)
    dense = torch.kron(OUTPUT, INPUT) + DELTA.flatten().diag()
    assert float(dense.logdet()) == near(9.4335349220)
    assert block().projected(DELTA[None])[0].flatten().tolist() == [
        near(value) for value in (6.5745817481, 24.6246379770, 16.8374150470, 63.0633652280)
    ]


def test_the_diagonal_of_the_posterior_is_exact_unless_as_published():
    """TV5."""
    exact = block().diagonal(DELTA.log(), 1.0, published=False)
    assert exact.flatten().tolist() == [near(value) for value in (2.1, 5, 13, 106)]
    smooth = block().diagonal(DELTA.log(), 1.0, published=True)
    assert smooth.flatten().tolist() == [near(value) for value in (15.195, 35.465, 22.63, 52.81)]


def random_block(seed: int, rows: int, columns: int) -> tuple[KroneckerBlock, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    make = [torch.randn(n, n + 2, generator=random, dtype=D) for n in (rows, columns)]
    output, into = (root @ root.T / root.shape[1] for root in make)
    log = 3 * torch.randn(rows, columns, generator=random, dtype=D)
    factors = KroneckerFactors(output, into, 1, (rows, columns))
    return KroneckerBlock(factors), torch.kron(output, into), log


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 5), st.floats(0.05, 20))
def test_forms_of_the_determinant_against_the_dense_one(seed, rows, columns, factor):
    """Bounds from above for any prior; equal for an outer product."""
    made, dense, log = random_block(seed, rows, columns)
    scale = torch.tensor(factor, dtype=D)
    truth = float((factor * dense + log.exp().flatten().diag()).logdet())
    for published in (True, False):
        found = made.log_determinant(log, scale, published=published, separable=False)
        assert float(found) >= truth - 1e-8 * max(1, abs(truth))
    outer = log[:, :1] + log[:1]
    truth = float((factor * dense + outer.exp().flatten().diag()).logdet())
    found = made.log_determinant(outer, scale, published=False, separable=True)
    assert float(found) == pytest.approx(truth, abs=1e-8 * max(1, abs(truth)))
    diagonal = made.diagonal(log, factor, published=False)
    assert torch.allclose(diagonal.flatten(), factor * dense.diagonal() + log.exp().flatten())


# --------------------------------------------------------------- TV8: unit-wise
def test_a_unit_prior_is_an_outer_product():
    """TV8: kernel positions share what output and input say."""
    prior = Prior({"w": torch.zeros(2, 3, 2, 2, dtype=D), "b": torch.zeros(2, dtype=D)}, "unit")
    with torch.no_grad():
        prior.logs[0].copy_(torch.tensor([2.0, 3.0], dtype=D).log().view(2, 1, 1, 1))
        prior.logs[1].copy_(torch.tensor([1.0, 10, 100], dtype=D).log().view(1, 3, 1, 1))
    flat = prior.precisions()["w"].flatten()
    assert flat[[0, 3, 4, 8, 11, 12, 23]].tolist() == [
        pytest.approx(value) for value in (2, 2, 20, 200, 200, 3, 300)
    ]
    assert prior.precisions()["b"].tolist() == [1.0, 1.0]


def test_gradients_of_a_unit_prior():
    """TV8."""
    prior = Prior({"w": torch.zeros(2, 2, dtype=D)}, "unit")
    with torch.no_grad():
        prior.logs[0].copy_(torch.tensor([[0.5], [2.0]], dtype=D).log())
        prior.logs[1].copy_(torch.tensor([[1.0, 4.0]], dtype=D).log())
    theta = torch.tensor([[0.5, -1], [0.1, 0.3]], dtype=D)
    bend = torch.tensor([[3, 1], [0.2, 10]], dtype=D)
    found = Laplace({"w": theta}, Curvature({"w": bend}, {}, 1))
    value = found.log_evidence(prior)
    assert float(value.detach()) == near(-3.0613078266)
    rows, columns = torch.autograd.grad(value, list(prior.logs))
    assert rows.flatten().tolist() == [near(-0.4672619048), near(-0.0467676768)]
    assert columns.flatten().tolist() == [near(0.401525974), near(-0.9155555556)]


def test_the_start_is_the_same_for_every_kind():
    shapes = {"w": torch.zeros(3, 2), "b": torch.zeros(3)}
    for kind in ("scalar", "layer", "unit", "parameter"):
        for start in (0.1, 10.0):
            for value in Prior(shapes, kind, start).precisions().values():
                assert torch.allclose(value, torch.full_like(value, start))
    with pytest.raises(BayespareError, match="did you mean 'layer'"):
        Prior(shapes, "layr")
    with pytest.raises(BayespareError, match="start=0"):
        Prior(shapes, "layer", 0.0)


# ----------------------------------------------------------- TV12: what raises it
def test_the_best_precision_in_closed_form():
    """TV12."""
    best = best_log_precision(torch.tensor([0.5, 0.01], dtype=D), torch.tensor([3.0, 100], dtype=D))
    assert best.exp().tolist() == [near(2.2749172176), near(951.2492197250)]


def test_published_steps_on_the_logs():
    """TV12: Adam at rate 0.1, and where it leads."""
    theta, bend = torch.tensor([1.0, 0.1], dtype=D), torch.tensor([4.0, 1.0], dtype=D)
    found = Laplace({"w": theta}, Curvature({"w": bend}, {}, 1))
    prior = Prior({"w": theta})
    adam = torch.optim.Adam(prior.parameters(), lr=0.1)
    wanted = {
        1: (0.9048374271, 1.1051709136),
        10: (0.8580583139, 2.6483648176),
        100: (0.8276985824, 9.5718289685),
    }
    done = 0
    for steps, values in wanted.items():
        adam_steps(prior, found, adam, steps=steps - done)
        done = steps
        assert prior.precisions()["w"].tolist() == [near(value) for value in values]
    closed_form(prior, found)
    assert prior.precisions()["w"].tolist() == [near(0.8284271247), near(9.5124921972)]


def small_net(seed: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(60, 4, dtype=D)
    return model, [(x, x[:, :3].argmax(1))]


@pytest.mark.parametrize("kind", ["scalar", "layer", "unit", "parameter"])
@pytest.mark.parametrize("structure", ["diag", "kfac"])
def test_fixed_point_and_gradient_agree_on_where_the_evidence_is_highest(kind, structure):
    model, batches = small_net(0)
    found = laplace(model, "classification", batches, kind="ggn", structure=structure)
    prior = Prior(dict(model.named_parameters()), kind)
    before = float(found.log_evidence(prior).detach())
    learn(prior, found, "mackay", steps=60, tolerance=0)
    value = found.log_evidence(prior)
    assert float(value.detach()) > before
    slopes = torch.autograd.grad(value, list(prior.logs), allow_unused=True)
    low, high = LOG_RANGE
    for log, slope in zip(prior.logs, slopes, strict=True):
        inside = (log > low + 0.01) & (log < high - 0.01)
        assert slope[inside].abs().max() < 1e-6 if inside.any() else True


def test_the_closed_form_is_the_fixed_point():
    model, batches = small_net(1)
    found = laplace(model, "classification", batches, kind="ggn")
    one, two = Prior(dict(model.named_parameters())), Prior(dict(model.named_parameters()))
    closed_form(one, found)
    mackay(two, found, steps=10)
    for a, b in zip(one.logs, two.logs, strict=True):
        free = (a < 6) & (a > -6)
        assert torch.allclose(a[free], b[free], atol=1e-6)


def test_the_fixed_point_with_noise_learns_it():
    """The card's is of full curvature; with a diagonal one the condition is the same."""
    data = Regression()
    delta = torch.ones(3, dtype=D)
    found = data.laplace(data.mode(delta))
    prior = prior_of(delta)
    log_noise = nn.Parameter(torch.tensor(math.log(0.5), dtype=D))
    mackay(prior, found, steps=50, log_noise=log_noise)
    gamma = float(found.determined(prior, log_noise)["w"].sum())
    squares = found.noise.squares
    assert float((2 * log_noise.detach()).exp()) == pytest.approx(squares / (20 - gamma), rel=1e-6)
    pull = prior.precisions()["w"] * found.means["w"].square()
    assert torch.allclose(pull, found.determined(prior, log_noise)["w"], rtol=1e-6)


def test_runaway_precisions_are_clamped_and_said():
    theta = torch.tensor([0.0, 1.0], dtype=D)
    found = Laplace({"w": theta}, Curvature({"w": torch.ones(2, dtype=D)}, {}, 1))
    prior = Prior({"w": theta})
    clamps = closed_form(prior, found)
    assert (clamps.low, clamps.high, clamps.total) == (0, 1, 2)
    assert str(clamps) == "0 low and 1 high of 2 precisions clamped"
    assert float(prior.logs[0].detach()[0]) == LOG_RANGE[1]


@pytest.mark.parametrize("kind", ["scalar", "layer", "unit", "parameter"])
@pytest.mark.parametrize("structure", ["diag", "kfac"])
@pytest.mark.parametrize("published", [False, True])
def test_gradients_against_finite_differences(kind, structure, published):
    model, batches = small_net(2)
    found = laplace(
        model, "classification", batches, kind="ggn", structure=structure, published=published
    )
    prior = Prior(dict(model.named_parameters()), kind)
    with torch.no_grad():
        for log in prior.logs:
            log.normal_()
    slopes = torch.autograd.grad(found.log_evidence(prior), list(prior.logs))
    step = 1e-5
    for log, slope in zip(prior.logs, slopes, strict=True):
        flat, at = log.data.view(-1), log.numel() // 2
        old = float(flat[at])
        values = []
        for move in (step, -step):
            flat[at] = old + move
            values.append(float(found.log_evidence(prior).detach()))
        flat[at] = old
        assert float(slope.reshape(-1)[at]) == pytest.approx(
            (values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-7
        )


# ------------------------------------------------------------------- bad input
def test_what_cannot_be_is_refused():
    bend = Curvature({"w": torch.ones(2)}, {}, 1)
    one = torch.ones(2)
    with pytest.raises(BayespareError, match="temperature=0"):
        Laplace({"w": one}, bend, temperature=0.0)
    with pytest.raises(BayespareError, match="v: the curvature has no block"):
        Laplace({"v": one}, bend)
    with pytest.raises(BayespareError, match=r"w: the curvature has shape \(2,\)"):
        Laplace({"w": torch.ones(3)}, bend)
    with pytest.raises(BayespareError, match="w: a parameter is not finite"):
        Laplace({"w": one * math.nan}, bend)
    with pytest.raises(BayespareError, match="diverged"):
        Laplace({"w": one}, bend, math.nan)
    found = Laplace({"w": one}, bend)
    with pytest.raises(BayespareError, match="use update='mackay'"):
        closed_form(Prior({"w": one}, "scalar"), found)
    with pytest.raises(BayespareError, match="did you mean 'mackay'"):
        learn(Prior({"w": one}), found, "makay")
    with pytest.raises(BayespareError, match="no parameter 'u'"):
        Prior({"w": one}).log_precision("u")
    prior = Prior({"w": one})
    with torch.no_grad():
        prior.logs[0].fill_(math.nan)
    with pytest.raises(BayespareError, match="w: a prior precision is not a number"):
        prior.clamp()


def test_negative_curvature_is_taken_as_zero_and_said(caplog):
    bend = Curvature({"w": torch.tensor([2.0, -1.0, -3.0])}, {}, 1)
    found = Laplace({"w": torch.ones(3)}, bend)
    assert found.curvatures()["w"].tolist() == [2, 0, 0]
    assert "w: 2 of 3 curvatures are negative (the lowest -3)" in caplog.text
    prior = Prior({"w": torch.ones(3)}, start=4.0)
    assert found.precisions(prior)["w"].tolist() == pytest.approx([6, 4, 4])


def test_a_diagonal_block_is_its_own_diagonal():
    made = DiagonalBlock(torch.tensor([1.0, 2.0], dtype=D))
    log = torch.tensor([0.0, 1.0], dtype=D)
    assert torch.allclose(
        made.diagonal(log, 3.0, published=True), torch.tensor([4, 6 + math.e], dtype=D)
    )
    assert likelihood_for("classification").noise_std is None
