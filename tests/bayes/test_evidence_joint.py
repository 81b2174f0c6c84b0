"""Joint evidence of correlated weights: exact conjugate regression and Laplace, both by refits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, stats
from scipy.special import expit
from torch import Tensor

from bayespare.bayes.evidence import (
    LowRankCovariance,
    LowRankPrecision,
    NormalGamma,
    curvature_delta_f,
    delta_f,
    joint_delta_f,
    reduce_gaussian,
    spike_delta_f,
    survivors,
    tempered_gaussian,
)
from bayespare.errors import BayespareError

NOISE = 0.5


def design() -> tuple[np.ndarray, np.ndarray]:
    """The card's regression: 40 examples, the last two features correlated at 0.9."""
    random = np.random.default_rng(20240612)
    x = random.standard_normal((40, 5))
    x[:, 4] = 0.9 * x[:, 3] + math.sqrt(0.19) * x[:, 4]
    y = x @ np.array([1, 0, 0.15, 0.4, 0]) + 0.5 * random.standard_normal(40)
    return x, y


X, Y = design()


def log_evidence(keep: list[int], prior_std: np.ndarray | float = 1.0, power: float = 1.0) -> float:
    """Log marginal likelihood of the regression on some features, all noise known, densely."""
    x = X[:, keep]
    scales = np.broadcast_to(prior_std, (5,))[keep]
    covariance = NOISE**2 / power * np.eye(len(Y)) + (x * scales**2) @ x.T
    value = stats.multivariate_normal(np.zeros(len(Y)), covariance).logpdf(Y)
    # A likelihood raised to a power is not normalised.
    const = len(Y) * np.log(2 * np.pi * NOISE**2)
    return float(value - 0.5 * (power * const - const + len(Y) * np.log(power)))


def posterior(prior_std: float = 1.0, power: float = 1.0) -> tuple[Tensor, Tensor]:
    """Exact mean and precision."""
    precision = power * X.T @ X / NOISE**2 + np.eye(5) / prior_std**2
    mean = np.linalg.solve(precision, power * X.T @ Y / NOISE**2)
    return torch.tensor(mean), torch.tensor(precision)


def without(dropped: tuple[int, ...]) -> list[int]:
    return [i for i in range(5) if i not in dropped]


def test_the_regression_is_the_published_one():
    mean, precision = posterior()
    assert (Y.sum(), X.sum()) == pytest.approx((-5.285032334258905, -1.393715369683033))
    assert mean.tolist() == pytest.approx(
        [0.684048, -0.021181, 0.137578, 0.693979, -0.351290], abs=1e-6
    )
    assert precision.inverse().diagonal().sqrt().tolist() == pytest.approx(
        [0.085765, 0.075240, 0.088797, 0.176256, 0.188475], abs=1e-6
    )
    assert log_evidence(without(())) == pytest.approx(-43.35464282516702)


# Dropped, exact and joint, sum of the marginals, mean field with the precision's diagonal.
PUBLISHED = [
    ((0,), -29.350607, -29.350607, -31.980686),
    ((1,), 2.547445, 2.547445, 2.568553),
    ((2,), 1.221146, 1.221146, 1.164968),
    ((3,), -6.015441, -6.015441, -37.494206),
    ((4,), -0.068184, -0.068184, -6.424665),
    ((3, 4), -9.881186, -6.083625, -43.918872),
    ((1, 4), 2.506258, 2.479261, -3.856112),
    ((1, 2, 4), 3.335999, 3.700407, -2.691144),
    ((0, 1, 2, 3, 4), -43.805047, -31.665641, -72.166037),
]


@pytest.mark.parametrize(("dropped", "exact", "marginal", "factorised"), PUBLISHED)
def test_joint_removal_is_the_exact_difference_of_evidence(dropped, exact, marginal, factorised):
    mean, precision = posterior()
    covariance = precision.inverse()
    refit = log_evidence(without(dropped)) - log_evidence(without(()))
    assert refit == pytest.approx(exact, abs=1e-6)
    joint = joint_delta_f(mean, covariance, list(dropped), 1.0)
    assert joint.item() == pytest.approx(refit, abs=1e-9)
    # What the shortcuts say instead: wrong where the features are correlated.
    chosen = list(dropped)
    single = delta_f(mean, covariance.diagonal().sqrt(), 1.0)[chosen].sum()
    assert single.item() == pytest.approx(marginal, abs=1e-6)
    diagonal = delta_f(mean, precision.diagonal().rsqrt(), 1.0)[chosen].sum()
    assert diagonal.item() == pytest.approx(factorised, abs=1e-6)


@pytest.mark.parametrize("correlation", [0.999, -0.999])
def test_of_two_copies_either_may_go_but_not_both(correlation):
    """Sums of marginals remove both; the joint value keeps one of them, as refitting does."""
    random = np.random.default_rng(5)
    first, other = random.standard_normal((2, 60))
    x = np.stack([first, correlation * first + math.sqrt(1 - correlation**2) * other], 1)
    y = x @ np.array([0.3, math.copysign(0.3, correlation)])

    def exact(keep):
        covariance = NOISE**2 * np.eye(60) + x[:, keep] @ x[:, keep].T
        return stats.multivariate_normal(np.zeros(60), covariance).logpdf(y)

    precision = torch.tensor(x.T @ x / NOISE**2 + np.eye(2))
    covariance = precision.inverse()
    mean = covariance @ torch.tensor(x.T @ y / NOISE**2)
    single = delta_f(mean, covariance.diagonal().sqrt(), 1.0)
    assert (single > 0).all()
    for dropped, kept in (([0], [1]), ([1], [0]), ([0, 1], [])):
        joint = joint_delta_f(mean, covariance, dropped, 1.0).item()
        assert joint == pytest.approx(exact(kept) - exact([0, 1]), abs=1e-6)
    assert joint_delta_f(mean, covariance, [0, 1], 1.0) < -30


def test_survivors_move_to_where_a_refit_puts_them():
    mean, precision = posterior()
    moved = survivors(mean, precision.inverse(), [1, 4])
    assert moved.mean.tolist() == pytest.approx([0.67512, 0.157616, 0.404992], abs=1e-6)
    rest = without((1, 4))
    inner = precision[rest][:, rest]
    refit = np.linalg.solve(inner.numpy(), X[:, rest].T @ Y / NOISE**2)
    assert moved.mean.tolist() == pytest.approx(refit.tolist(), abs=1e-10)
    assert torch.allclose(moved.covariance, inner.inverse(), atol=1e-12)


def test_any_narrower_prior_is_the_exact_difference_of_evidence():
    mean, precision = posterior()
    scales = torch.tensor([1, 0.1, 0.3, 0.5, 0.01], dtype=torch.float64)
    zero, eye = torch.zeros(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    found = reduce_gaussian(mean, precision, zero, eye, zero, torch.diag(scales**-2))
    assert found.delta_f.item() == pytest.approx(3.502120361836, abs=1e-9)
    exact = log_evidence(without(()), scales.numpy()) - log_evidence(without(()))
    assert found.delta_f.item() == pytest.approx(exact, abs=1e-9)
    refit = torch.tensor(X.T @ X / NOISE**2) + torch.diag(scales**-2)
    assert torch.allclose(found.precision, refit)
    assert torch.allclose(found.mean, torch.linalg.solve(refit, torch.tensor(X.T @ Y / NOISE**2)))


@pytest.mark.parametrize(
    ("prior_std", "expected"),
    [
        (0.1, -0.113893),
        (0.3, 0.032113),
        (1, 1.221146),
        (3, 2.334025),
        (10, 3.539904),
        (100, 5.842679),
    ],
)
def test_a_wide_prior_speaks_against_every_weight(prior_std, expected):
    # Bartlett and Lindley: the prior's scale is the threshold.
    mean, precision = posterior(prior_std)
    found = joint_delta_f(mean, precision.inverse(), [2], prior_std).item()
    assert found == pytest.approx(expected, abs=1e-6)
    exact = log_evidence(without((2,)), prior_std) - log_evidence(without(()), prior_std)
    assert found == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(("index", "expected"), [(1, 2.851989), (4, -1.706633), (2, 0.384877)])
def test_a_cold_posterior_keeps_weak_weights(index, expected):
    mean, precision = tempered_gaussian(*posterior(), torch.eye(5, dtype=torch.float64), 0.5)
    assert torch.allclose(mean, posterior(power=2.0)[0])
    found = joint_delta_f(mean, precision.inverse(), [index], 1.0).item()
    assert found == pytest.approx(expected, abs=1e-6)
    exact = log_evidence(without((index,)), power=2.0) - log_evidence(without(()), power=2.0)
    assert found == pytest.approx(exact, abs=1e-9)


# ------------------------------------------------------------ random Gaussians


def gaussian(seed: int, size: int, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """A mean and a covariance that is far from diagonal."""
    random = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, rank or size, generator=random, dtype=torch.float64)
    extra = torch.rand(size, generator=random, dtype=torch.float64) * 0.2 + 0.05
    mean = torch.randn(size, generator=random, dtype=torch.float64) * 0.5
    return mean, 0.1 * factor @ factor.T + torch.diag(extra)


@given(seed=st.integers(0, 10**6), order=st.permutations([0, 2, 3, 5]))
def test_one_after_the_other_is_the_same_as_together_in_any_order(seed, order):
    mean, covariance = gaussian(seed, 6)
    prior_std = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    joint = joint_delta_f(mean, covariance, [0, 2, 3, 5], prior_std)
    left, total = list(range(6)), 0.0
    moved, spread = mean, covariance
    for index in order:
        place = left.index(index)
        total += joint_delta_f(moved, spread, [place], prior_std[left]).item()
        moved, spread = survivors(moved, spread, [place])
        left.pop(place)
    assert total == pytest.approx(joint.item(), rel=1e-9, abs=1e-9)
    at_once = survivors(mean, covariance, [0, 2, 3, 5])
    assert torch.allclose(moved, at_once.mean)
    assert torch.allclose(spread, at_once.covariance)


@given(seed=st.integers(0, 10**6))
def test_a_joint_spike_is_the_ratio_of_two_densities(seed):
    mean, covariance = gaussian(seed, 4)
    slow = stats.multivariate_normal(mean.numpy(), covariance.numpy()).logpdf(np.zeros(4))
    slow -= stats.norm.logpdf(np.zeros(4), 0, 1.3).sum()
    assert spike_delta_f(mean, covariance, 1.3).item() == pytest.approx(slow, rel=1e-8, abs=1e-8)


def test_many_groups_are_scored_at_once():
    pairs = [gaussian(seed, 3) for seed in range(5)]
    mean, covariance = (torch.stack(part) for part in zip(*pairs, strict=True))
    together = spike_delta_f(mean, covariance, 0.7)
    assert together.tolist() == pytest.approx(
        [spike_delta_f(m, c, 0.7).item() for m, c in pairs], abs=1e-12
    )


@given(seed=st.integers(0, 10**6), means=st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
def test_diagonal_gaussians_with_means_are_reduced_as_single_weights(seed, means):
    mean, covariance = gaussian(seed, 3)
    std = covariance.diagonal().sqrt()
    old, new = (torch.full((3,), value, dtype=torch.float64) for value in means)
    eye = torch.eye(3, dtype=torch.float64)
    wide_prior = 2.0 + std.max() ** 2
    found = reduce_gaussian(mean, torch.diag(std**-2), old, eye / wide_prior, new, eye / 0.3**2)
    slow = delta_f(mean, std, wide_prior.sqrt(), 0.3, prior_mean=old, reduced_mean=new).sum()
    assert found.delta_f.item() == pytest.approx(slow.item(), rel=1e-9, abs=1e-9)


def test_large_means_do_not_cancel():
    # The quadratic forms are 1e12 each; their difference is 1/2.
    mean = torch.full((2,), 1e6, dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    found = reduce_gaussian(mean, 4 * eye, mean, eye, mean, 2 * eye)
    assert found.delta_f.item() == pytest.approx(math.log(4 * 2 / (5 * 1)), abs=1e-9)


# -------------------------------------------------------- diagonal + low rank


@given(seed=st.integers(0, 10**6), size=st.integers(2, 7), rank=st.integers(1, 4))
def test_low_rank_posteriors_are_their_dense_ones(seed, size, rank):
    random = torch.Generator().manual_seed(seed)
    mean = torch.randn(size, generator=random, dtype=torch.float64)
    variance = torch.rand(size, generator=random, dtype=torch.float64) + 0.05
    factor = torch.randn(size, rank, generator=random, dtype=torch.float64)
    prior_std = torch.rand(size, generator=random, dtype=torch.float64) + 0.5
    number = int(torch.randint(1, size + 1, (1,), generator=random))
    subset = torch.randperm(size, generator=random)[:number]
    covariance = torch.diag(variance) + factor @ factor.T
    precision = torch.diag(1 / variance) + factor @ factor.T
    for lean, dense in (
        (LowRankCovariance(mean, variance, factor), covariance),
        (LowRankPrecision(mean, variance, factor), precision.inverse()),
    ):
        slow = joint_delta_f(mean, dense, subset, prior_std).item()
        found = lean.joint_delta_f(subset, prior_std).item()
        assert found == pytest.approx(slow, rel=1e-8, abs=1e-8)
        if number == size:
            continue
        rest, moved = survivors(mean, dense, subset), lean.without(subset)
        assert torch.allclose(moved.mean, rest.mean)
        inner = torch.diag(moved.variance) + moved.factor @ moved.factor.T
        if isinstance(lean, LowRankPrecision):
            inner = (torch.diag(1 / moved.variance) + moved.factor @ moved.factor.T).inverse()
        assert torch.allclose(inner, rest.covariance)


def test_a_strong_direction_does_not_cancel():
    # Nearly all the curvature sits in the weights that are removed.
    factor = torch.tensor([[1e7], [1e-3], [1.0]], dtype=torch.float64)
    lean = LowRankPrecision(torch.zeros(3).double(), torch.ones(3).double(), factor)
    dense = torch.eye(3).double() + factor @ factor.T
    found = lean.joint_delta_f([0], 1.0).item()
    exact = 0.5 * (math.log(1 + 1e14 + 1e-6 + 1.0) - math.log(2 + 1e-6))
    assert found == pytest.approx(exact, rel=1e-10)
    assert dense[0, 0] > 1e13


# ---------------------------------------------------------- unknown noise


def student_evidence(keep: list[int]) -> float:
    """Log marginal likelihood with unknown noise: a multivariate Student-t, densely."""
    x = X[:, keep]
    shape = 1.0 / 2.0 * (np.eye(len(Y)) + x @ x.T)
    return float(stats.multivariate_t(np.zeros(len(Y)), shape, df=4).logpdf(Y))


HEADS = [
    ((1,), 1.873387, 2.153264),
    ((2,), 0.794780, 1.053789),
    ((3,), -3.876551, -3.709655),
    ((4,), 0.147449, 0.407295),
    ((3, 4), -5.738179, -5.681650),
]


@pytest.mark.parametrize(("dropped", "expected", "naive"), HEADS)
def test_a_head_with_unknown_noise_is_the_exact_difference_of_evidence(dropped, expected, naive):
    head = NormalGamma.fit(torch.tensor(X), torch.tensor(Y))
    assert (head.shape, head.rate) == (22, pytest.approx(7.023288513884, abs=1e-9))
    found = head.delta_f(list(dropped)).item()
    assert found == pytest.approx(expected, abs=1e-6)
    exact = student_evidence(without(dropped)) - student_evidence(without(()))
    assert found == pytest.approx(exact, abs=1e-8)
    # The ratio of marginal Student-t densities at zero is another number.
    covariance = head.precision.inverse().numpy()[np.ix_(dropped, dropped)]
    zero = np.zeros(len(dropped))
    loc = head.mean.numpy()[list(dropped)]
    top = stats.multivariate_t(loc, head.rate / head.shape * covariance, df=2 * head.shape)
    prior = stats.multivariate_t(zero, 0.5 * np.eye(len(dropped)), df=4)
    assert top.logpdf(zero) - prior.logpdf(zero) == pytest.approx(naive, abs=1e-6)
    assert abs(found - naive) > 0.05


def test_a_head_without_features_is_its_refit():
    x, y = torch.tensor(X), torch.tensor(Y)
    prior = torch.tensor([1.0, 2.0, 0.5, 1.5, 1.0], dtype=torch.float64)
    head = NormalGamma.fit(x, y, prior_precision=prior)
    rest = without((1, 4))
    refit = NormalGamma.fit(x[:, rest], y, prior_precision=prior[rest])
    moved = head.without([1, 4])
    assert torch.allclose(moved.mean, refit.mean)
    assert torch.allclose(moved.precision, refit.precision)
    assert (moved.shape, moved.rate) == (refit.shape, pytest.approx(refit.rate))
    steps = head.delta_f([1]) + head.without([1]).delta_f([3])
    assert steps.item() == pytest.approx(head.delta_f([1, 4]).item(), abs=1e-10)


# ------------------------------------------------------------------- Laplace


def test_laplace_has_the_right_sign_and_near_zero_the_right_size():
    random = np.random.default_rng(11)
    x = random.standard_normal((60, 2))
    y = (random.uniform(size=60) < expit(x @ np.array([1.2, 0.1]))).astype(float)
    assert y.sum() == 34

    def log_joint(w: np.ndarray) -> np.ndarray:
        z = w @ x.T
        return (y * z - np.logaddexp(0, z)).sum(-1) + stats.norm.logpdf(w, 0, 2).sum(-1)

    mode = optimize.minimize(lambda w: -log_joint(w), np.zeros(2), tol=1e-12).x
    p = expit(x @ mode)
    hessian = (x * (p * (1 - p))[:, None]).T @ x
    mean, data = torch.tensor(mode), torch.tensor(hessian)
    covariance = (data + torch.eye(2, dtype=torch.float64) / 4).inverse()
    assert mode.tolist() == pytest.approx([1.586941, 0.101524], abs=1e-6)
    assert covariance.diagonal().sqrt().tolist() == pytest.approx([0.419612, 0.338926], abs=1e-6)

    grid = np.linspace(-6, 6, 301)
    plane = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    top = log_joint(mode)
    full = top + np.log(
        integrate.trapezoid(integrate.trapezoid(np.exp(log_joint(plane) - top), grid), grid)
    )
    spike = stats.norm.logpdf(0, 0, 2)
    for index, exact, laplace in ((1, 1.71474, 1.73026), (0, -9.68732, -5.58989)):
        line = np.zeros((len(grid), 2))
        line[:, 1 - index] = grid
        # One coordinate is absent: its prior density is not part of the reduced model.
        reduced = np.log(integrate.trapezoid(np.exp(log_joint(line) - spike), grid))
        assert reduced - full == pytest.approx(exact, abs=1e-5)
        found = joint_delta_f(mean, covariance, [index], 2.0).item()
        assert found == pytest.approx(laplace, abs=1e-5)
    diagonal = curvature_delta_f(mean, data.diagonal(), 0.25)
    assert diagonal[1].item() == pytest.approx(1.73167, abs=1e-5)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ([], "distinct indices"),
        ([0, 0], "distinct indices"),
        ([5], r"distinct indices in \[0, 5\)"),
        ([-1], "distinct indices"),
        (torch.tensor([True, False]), "mask of shape"),
        (torch.zeros(5, dtype=torch.bool), "distinct indices"),
    ],
)
def test_a_bad_subset_is_refused(subset, message):
    mean, precision = posterior()
    for function in (
        lambda: joint_delta_f(mean, precision.inverse(), subset, 1.0, name="head"),
        lambda: survivors(mean, precision.inverse(), subset, name="head"),
        lambda: NormalGamma.fit(torch.tensor(X), torch.tensor(Y), name="head").delta_f(subset),
    ):
        with pytest.raises(BayespareError, match=f"head: .*{message}"):
            function()


def test_a_mask_is_a_subset():
    mean, precision = posterior()
    mask = torch.tensor([False, True, False, False, True])
    found = joint_delta_f(mean, precision.inverse(), mask, 1.0)
    assert found.item() == pytest.approx(2.506258, abs=1e-6)


def test_negative_curvature_is_named_and_refused():
    mean = torch.zeros(2)
    bent = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    eye = torch.eye(2)
    with pytest.raises(BayespareError, match="fc: the posterior covariance is not positive def"):
        joint_delta_f(mean, bent, [0, 1], 1.0, name="fc")
    with pytest.raises(BayespareError, match="fc: the posterior precision is not positive"):
        reduce_gaussian(mean, bent, mean, eye, mean, eye, name="fc")
    with pytest.raises(BayespareError, match="fc: the reduced posterior's precision"):
        reduce_gaussian(mean, eye, mean, 3 * eye, mean, eye, name="fc")
    with pytest.raises(BayespareError, match="fc: the prior precision is not positive definite"):
        reduce_gaussian(mean, eye, mean, 0 * eye, mean, eye, name="fc")
    with pytest.raises(BayespareError, match=r"at temperature 0\.1 is not positive definite"):
        tempered_gaussian(mean, eye, 3 * eye, 0.1, name="fc")
    with pytest.raises(BayespareError, match="not symmetric"):
        spike_delta_f(mean, torch.tensor([[1.0, 0.5], [0.0, 1.0]]), 1.0)
    with pytest.raises(BayespareError, match="not finite"):
        spike_delta_f(mean, torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), 1.0)
    with pytest.raises(BayespareError, match="infinite evidence"):
        spike_delta_f(mean, eye, math.inf)


def test_bad_low_rank_posteriors_and_heads_are_refused():
    ones, factor = torch.ones(3), torch.ones(3, 1)
    for kind in (LowRankCovariance, LowRankPrecision):
        with pytest.raises(BayespareError, match=r"fc: .*not positive"):
            kind(ones, torch.tensor([1.0, 0.0, 1.0]), factor, "fc")
        with pytest.raises(BayespareError, match="low-rank factor has shape"):
            kind(ones, ones, torch.ones(2, 1), "fc")
        with pytest.raises(BayespareError, match="infinite evidence"):
            kind(ones, ones, factor).joint_delta_f([0], math.inf)
    x, y = torch.tensor(X), torch.tensor(Y)
    with pytest.raises(BayespareError, match="prior precision is zero"):
        NormalGamma.fit(x, y, prior_precision=0.0)
    with pytest.raises(BayespareError, match="target has shape"):
        NormalGamma.fit(x, y[:3])
    with pytest.raises(BayespareError, match="a feature is not finite"):
        NormalGamma.fit(x * math.nan, y)
    with pytest.raises(BayespareError, match="rate=0"):
        NormalGamma.fit(x, y, rate=0.0)
