"""Where the truth can be enumerated: T5-T11 and T15 of the card, and the polish."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inclusion_oracles import (
    ascend,
    correlated,
    duplicated,
    exact_inclusion,
    grouped,
    hidden,
    linear_evidence,
    logistic,
    orthogonal,
)

from bayespare.bayes.inclusion import (
    gain_log_odds,
    gaussian_kl,
    group_log_odds,
    polish,
    prior_log_odds,
    reduced_log_odds,
)
from bayespare.errors import BayespareError

QUARTER = prior_log_odds(0.25)


def near(expected: object, abs: float = 1e-5) -> object:
    return pytest.approx(expected, abs=abs)


def test_t5_orthogonal_columns_are_exact_in_closed_form():
    x, y = orthogonal()
    exact, evidence = exact_inclusion(linear_evidence(x, y, 1.0, 1.0), 4, 0.3)
    assert exact.tolist() == near([1.0, 0.907679, 0.083158, 0.807895], abs=2e-5)
    assert evidence == near(-55.285089)
    estimate = x.T @ y / 32
    assert estimate.tolist() == near([1.073721, 0.560898, 0.112211, -0.509776])
    mean, std = torch.tensor(estimate * 32 / 33), torch.full((4,), 33**-0.5, dtype=torch.float64)
    odds = reduced_log_odds(mean[:, None], std[:, None], prior_log_odds(0.3), 1.0)
    assert odds.sigmoid().tolist() == near(exact.tolist(), abs=1e-12)
    odds, *_, bound = ascend(x, y, 1.0, 1.0, 0.3)
    assert odds.sigmoid().tolist() == near(exact.tolist(), abs=1e-10)
    assert bound == near(evidence, abs=1e-9)


def test_t6_the_data_are_the_cards():
    x, y = correlated()
    assert x[0].tolist() == near([1.028857, 1.93085, 2.075886, 0.466988, -0.834047, -0.446671])
    assert y[:3].tolist() == near([0.330619, -1.358659, -0.990345])
    assert y.sum() == near(0.900118)


@pytest.mark.parametrize(
    ("spike", "inclusion", "evidence"),
    [
        (0.0, [1.0, 0.070196, 0.105974, 0.978521, 0.060718, 0.075170], -67.268721),
        (0.01, [0.999999, 0.079383, 0.119974, 0.918307, 0.068502, 0.079460], -67.478718),
    ],
)
def test_t6_enumeration(spike, inclusion, evidence):
    found, log_evidence = exact_inclusion(linear_evidence(*correlated(), 1.0, 1.0, spike), 6, 0.25)
    assert found.tolist() == near(inclusion, abs=2e-6)
    assert log_evidence == near(evidence)


def test_t6_coordinate_ascent_with_savage_dickey_odds():
    odds, mean, std, bound = ascend(*correlated(), 1.0, 1.0, 0.25)
    expected = [1.0, 0.048982, 0.057435, 0.999024, 0.047078, 0.063376]
    assert odds.sigmoid().tolist() == near(expected)
    assert bound == near(-67.421443)
    assert std.square()[:, 0].tolist() == near(
        [0.024992, 0.023119, 0.026351, 0.025551, 0.019196, 0.022752], abs=1e-6
    )
    assert mean[:, 0].tolist() == near(
        [1.182123, -0.027258, -0.079120, -0.709945, 0.050878, 0.116245], abs=1e-6
    )


def test_t7_recovery_from_a_dense_posterior_is_the_drop_one_bayes_factor():
    x, y = correlated()
    cov = np.linalg.inv(x.T @ x + np.eye(6))
    mean, variance = torch.tensor(cov @ x.T @ y), torch.tensor(np.diag(cov).copy())
    assert mean.tolist() == near(
        [1.212791, -0.008104, -0.154795, -0.677937, -0.003488, 0.147245], abs=1e-6
    )
    odds = reduced_log_odds(mean[:, None], variance.sqrt()[:, None], QUARTER, 1.0)
    expected = [1.0, 0.078717, 0.098216, 0.801581, 0.064038, 0.081481]
    assert odds.sigmoid().tolist() == near(expected)
    score = linear_evidence(x, y, 1.0, 1.0)
    for j in range(6):
        without = tuple(int(i != j) for i in range(6))
        factor = score((1,) * 6) - score(without)
        assert odds[j].item() == near(QUARTER.item() + factor, abs=1e-9)
    # Mean-field variances are too small where columns correlate: too sure of the fourth.
    narrow = 1 / torch.tensor((x**2).sum(0) + 1)
    sure = reduced_log_odds(mean[:, None], narrow.sqrt()[:, None], QUARTER, 1.0)
    expected = [1.0, 0.048304, 0.078560, 0.997675, 0.044157, 0.074903]
    assert sure.sigmoid().tolist() == near(expected)


def expected_gain(
    x: np.ndarray, y: np.ndarray, used: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, j: int
) -> float:
    """Delta of the card for a linear model with unit noise: with minus without column j."""
    column, others = torch.tensor(x[:, j]), used.clone()
    others[j] = 0
    residual = torch.tensor(y) - torch.tensor(x) @ others
    square = mean[j] ** 2 + std[j] ** 2
    return float(mean[j] * (column @ residual) - 0.5 * column.square().sum() * square)


def test_t8_gain_and_savage_dickey_odds_agree_at_the_optimum():
    x, y = correlated()
    odds, mean, std, _ = ascend(x, y, 1.0, 1.0, 0.25)
    used = odds.sigmoid() * mean[:, 0]
    expected = {
        1: (-0.472, 1.395472, -2.966085),
        3: (9.627769, 1.598322, 6.930835),
        5: (-0.184909, 1.409678, -2.693199),
    }
    for j in range(6):
        gain = expected_gain(x, y, used, mean[:, 0], std[:, 0], j)
        kl = gaussian_kl(mean[j], std[j], 1.0).sum()
        found = gain_log_odds(torch.tensor(gain, dtype=torch.float64), kl, QUARTER)
        assert found.item() == near(odds[j].item(), abs=1e-8)
        if j in expected:
            assert (gain, kl.item(), found.item()) == near(expected[j])


def test_t9_groups_of_weights():
    x, y = grouped()
    assert y[0].tolist() == near([-0.761954, -0.423249, -0.505034], abs=1e-6)
    assert y.sum() == near(-15.423233)
    exact, evidence = exact_inclusion(linear_evidence(x, y, 1.0, 0.5), 5, 0.2)
    assert exact.tolist() == near([0.999645, 0.012247, 0.058245, 0.025104, 0.042990])
    assert evidence == near(-129.069158)
    odds, *_, bound = ascend(x, y, 1.0, 0.5, 0.2)
    assert odds.sigmoid().tolist() == near([0.999679, 0.010078, 0.056532, 0.023287, 0.029183])
    assert bound == near(-129.088533)


def test_t10_hidden_nodes_of_a_frozen_layer():
    units, y = hidden()
    assert y[:3].tolist() == near([-1.623584, -1.044311, 0.240934], abs=1e-6)
    exact, evidence = exact_inclusion(linear_evidence(units, y, 0.25, 1.0), 6, 0.3)
    assert exact.tolist() == near([1.0, 0.142495, 0.105377, 1.0, 0.098072, 0.142910])
    assert evidence == near(-58.969526)
    odds, *_, bound = ascend(units, y, 0.25, 1.0, 0.3)
    assert odds.sigmoid().tolist() == near([1.0, 0.041997, 0.047365, 1.0, 0.038447, 0.044278])
    assert bound == near(-59.283211)


def test_t11_logistic_regression():
    """Enumerated by quadrature and by Laplace; F2 of the Laplace fit is close to both."""
    x, y = logistic()
    assert y.sum() == 37
    sign = 2 * y - 1

    def log_joint(columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
        fit = -np.logaddexp(0, -(weights @ columns.T) * sign).sum(-1)
        return fit - 0.5 * (weights**2).sum(-1) - 0.5 * weights.shape[-1] * math.log(2 * math.pi)

    def peak(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = np.zeros(columns.shape[1])
        for _ in range(50):
            chance = 1 / (1 + np.exp(-(columns @ weight)))
            curve = (columns.T * (chance * (1 - chance))) @ columns + np.eye(len(weight))
            weight = weight + np.linalg.solve(curve, columns.T @ (y - chance) - weight)
        return weight, np.linalg.inv(curve)

    def laplace(model: tuple[int, ...]) -> float:
        columns = x[:, np.array(model) == 1]
        if not columns.size:
            return -80 * math.log(2)
        weight, cov = peak(columns)
        room = np.linalg.slogdet(2 * math.pi * cov)[1]
        return float(log_joint(columns, weight) + 0.5 * room)

    def quadrature(model: tuple[int, ...]) -> float:
        columns = x[:, np.array(model) == 1]
        if not columns.size:
            return -80 * math.log(2)
        weight, cov = peak(columns)
        points, mass = np.polynomial.hermite_e.hermegauss(20)
        size = columns.shape[1]
        grid = np.array(list(itertools.product(points, repeat=size)))
        logs = np.array(list(itertools.product(np.log(mass) + 0.5 * points**2, repeat=size)))
        root = np.linalg.cholesky(cov)
        values = log_joint(columns, weight + grid @ root.T) + logs.sum(1)
        return float(np.logaddexp.reduce(values) + np.log(np.diag(root)).sum())

    exact, evidence = exact_inclusion(quadrature, 3, 0.3)
    assert exact.tolist() == near([0.994954, 0.120434, 0.337250])
    assert evidence == near(-50.920475)
    found, evidence = exact_inclusion(laplace, 3, 0.3)
    assert found.tolist() == near([0.994909, 0.118807, 0.334318])
    assert evidence == near(-50.931689)
    weight, cov = peak(x)
    std = torch.tensor(np.sqrt(np.diag(cov)))
    odds = reduced_log_odds(torch.tensor(weight)[:, None], std[:, None], prior_log_odds(0.3), 1.0)
    assert odds.sigmoid().tolist() == near(exact.tolist(), abs=0.03)


# ------------------------------------------------------------------------------- T15


@pytest.mark.parametrize(
    ("slab", "prior", "expected", "tolerance"),
    [
        (1.0, 1e-14, [0.0] * 6, 1e-6),
        (1.0, 1 - 1e-12, [1.0] * 6, 1e-6),
        (1e-6, 0.25, [0.25] * 6, 2e-4),
        (100.0, 0.25, [1, 0.0091, 0.0284, 0.9655, 0.0073, 0.0084], 1e-4),
        (1e4, 0.25, [1, 0.0021, 0.0174, 0.856, 0.0011, 0.0008], 1e-4),
    ],
)
def test_t15_limits(slab, prior, expected, tolerance):
    found, _ = exact_inclusion(linear_evidence(*correlated(), 1.0, slab), 6, prior)
    assert found.tolist() == near(expected, abs=tolerance)


@pytest.mark.parametrize("start", [(0.5, 0.5, 0.5), (0.9, 0.1, 0.5), (0.1, 0.9, 0.5)])
def test_t15_duplicates_have_a_group(start):
    x, y = duplicated()
    exact, evidence = exact_inclusion(linear_evidence(x, y, 1.0, 1.0), 3, 0.25)
    assert exact.tolist() == near([0.564038, 0.564038, 0.058343])
    assert evidence == near(-53.869288)
    odds, *_, bound = ascend(x, y, 1.0, 1.0, 0.25, list(start))
    assert odds.sigmoid().tolist() == near([0.999988, 0.054884, 0.058343])
    assert bound == near(-54.643081)
    # One copy takes all: only the group can be compared.
    either = group_log_odds(odds, [0, 0, 1])
    assert either[0].sigmoid().item() == near(0.999995, abs=1e-5)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), columns=st.integers(1, 5))
def test_the_bound_is_below_the_evidence(seed, columns):
    r = np.random.default_rng(seed)
    x, y = r.standard_normal((12, columns)), r.standard_normal(12)
    _, evidence = exact_inclusion(linear_evidence(x, y, 0.7, 1.3), columns, 0.4)
    *_, bound = ascend(x, y, 0.7, 1.3, 0.4)
    assert bound <= evidence + 1e-9


# ----------------------------------------------------------------------------- polish


def linear_fit(draws: int, seed: int = 0):
    """Polish of T6 from even odds, the weights at the optimum of the ascent."""
    x, y = (torch.tensor(part) for part in correlated())
    odds, mean, std, _ = ascend(*correlated(), 1.0, 1.0, 0.25)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(draws, 6, dtype=torch.float64)

    def redraw() -> None:
        noise = torch.randn(draws, 6, generator=generator, dtype=torch.float64)
        weights.copy_(mean[:, 0] + std[:, 0] * noise)

    def log_likelihood(gates: torch.Tensor) -> torch.Tensor:
        return -0.5 * (y - (gates * weights) @ x.T).square().sum(1)

    kl = gaussian_kl(mean, std, 1.0).sum(1)
    return odds, lambda sweeps=4: polish(
        log_likelihood, torch.zeros(6).double(), kl, QUARTER,
        draws=draws, sweeps=sweeps, redraw=redraw, generator=generator,
    )  # fmt: skip


def test_polish_finds_the_optimum_of_the_gates():
    odds, run = linear_fit(draws=4000)
    assert run().sigmoid().tolist() == near(odds.sigmoid().tolist(), abs=0.01)


def test_polish_repeats_with_its_generator_and_not_without():
    (_, one), (_, same), (_, other) = linear_fit(8), linear_fit(8), linear_fit(8, seed=1)
    assert torch.equal(one(2), same(2))
    assert not torch.equal(one(2), other(2))


def test_polish_is_exact_where_the_gates_do_not_interact():
    """Then every draw has the same gain: prior + gain - KL, whatever the start."""
    gain, kl = torch.tensor([3.0, -1.0, 0.5]).double(), torch.tensor([1.0, 2.0, 0.0]).double()
    prior = prior_log_odds(0.2)
    start = torch.tensor([-4.0, 4.0, 0.0]).double()
    found = polish(lambda gates: gates @ gain - 100, start, kl, prior, draws=3, sweeps=1)
    assert found.tolist() == near((prior + gain - kl).tolist(), abs=1e-12)
    assert start.tolist() == [-4, 4, 0]


def test_polish_refuses_what_is_not_finite():
    def diverged(gates: torch.Tensor) -> torch.Tensor:
        return torch.where(gates[:, 1] > 0, torch.nan, 0.0)

    with pytest.raises(BayespareError, match="node 1"):
        polish(diverged, torch.full((2,), -20.0), torch.zeros(2), torch.zeros(()), draws=4)
    with pytest.raises(BayespareError, match="1 or more"):
        polish(diverged, torch.zeros(2), torch.zeros(2), torch.zeros(()), draws=0)
