"""Closed-form KLs of the slabs, by the card's vectors, by quadrature, and as densities."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats
from torch import Tensor

from bayespare.bayes.inclusion import gaussian_kl
from bayespare.bayes.slabs import (
    expected_log_regulariser,
    expected_regularised_scale,
    half_gamma_kl,
    half_inverse_gamma_kl,
    inverse_gamma_kl,
    lasso_rate_kl,
    lasso_scale_kl,
)

S6 = 0.0024756851377304495  # softplus(-6)
FLOOR = (1 - np.log(2)) / 2


def wide(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def value(function: Callable[..., Tensor], *arguments: float) -> float:
    return function(*wide(*arguments)).item()


def expectation(f: Callable[[np.ndarray], np.ndarray], mean: float, std: float) -> float:
    """E[f(z)], z ~ N(mean, std^2), by the trapezoidal rule over all that matters."""
    z = np.linspace(mean - 14 * std - 2 * std**2, mean + 14 * std + 2 * std**2, 20_001)
    return float(np.trapezoid(f(z) * stats.norm.pdf(z, mean, std), z))


def log_normal_kl(log_mean: float, log_std: float, prior: stats.rv_continuous) -> float:
    """KL of LogNormal from a prior, as an integral over the logarithm."""

    def integrand(z: np.ndarray) -> np.ndarray:
        # The Jacobian: the density of log x at z is p(e^z) e^z.
        return stats.norm.logpdf(z, log_mean, log_std) - prior.logpdf(np.exp(z)) - z

    return expectation(integrand, log_mean, log_std)


# -------------------------------------------------------------------- vectors


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 1, 1), 0.0),
        ((0.5, 0.1, 1), 1.9325850929940454),
        ((0, S6, 1), 5.501241162453007),
        ((0, S6, 0.2), 3.8918767982217206),
        ((1, S6, 0.2), 16.391876798221716),
        ((0.3, 0.2, 1.3), 1.4102637153631299),
    ],
)
def test_gaussian_slab_has_the_published_values(arguments, expected):
    assert value(gaussian_kl, *arguments) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 1, 1), 0.8021476804201555),
        ((0, 0.5, 1), 0.979722043346799),
        ((0, 0.5, 4), 0.8230078841066246),
        ((-1, 0.8, 0.01), 48.23568410459916),
        ((1, S6, 1), 7.372954666334027),
    ],
)
def test_half_gamma_has_the_published_values(arguments, expected):
    assert value(half_gamma_kl, *arguments) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 1), 0.8021476804201555),
        ((0, 0.5), 0.979722043346799),
        ((-1, 0.8), 2.6199913382950997),
        ((1, S6), 6.022545076207409),
    ],
)
def test_half_inverse_gamma_has_the_published_values(arguments, expected):
    assert value(half_inverse_gamma_kl, *arguments) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1, 0, 1, 0, 0), 0.09856928270533682),
        ((27, 0, 0.5, 1, 0.1), 19.078261278380282),
        ((785, 5, 0.05, 0.5, 0.1), 188.23608191250221),
        ((785, 0, S6, 1, S6), 1837.9877140052001),
        ((401, 0, S6, 1, S6), 807.496019294147),
    ],
)
def test_lasso_scale_has_the_published_values(arguments, expected):
    assert value(lasso_scale_kl, *arguments) == pytest.approx(expected, rel=1e-12)


def test_lasso_rate_and_learnt_slab_have_the_published_values():
    assert value(lasso_rate_kl, 1, S6) == pytest.approx(5.038050629067046, rel=1e-12)
    assert value(lasso_rate_kl, 0, 0.5) == pytest.approx(0.5596763004771996, rel=1e-12)
    learnt = inverse_gamma_kl(*wide(1, 0.5), shape=2.0, scale=6.0)
    assert learnt.item() == pytest.approx(0.19186182697021303, rel=1e-12)


def test_regularised_scale_has_the_published_values():
    mean, std = wide((0.1 + 0.4 - 0.5 + 0.2) / 2, (0.3**2 + 0.4**2 + 0.2**2 + 0.1**2) ** 0.5 / 2)
    one = torch.ones((), dtype=torch.float64)
    assert expected_log_regulariser(mean, std, one).item() == pytest.approx(0.8340283796906)
    assert expected_regularised_scale(mean, std, one).item() == pytest.approx(0.7339820766894736)
    # Without a bound the scale is a plain log-normal.
    unbounded = expected_regularised_scale(mean, std, one * 1e16)
    assert unbounded.item() == pytest.approx(1.1474017059720723, rel=1e-9)


@pytest.mark.parametrize(
    ("bound", "scale", "expected"),
    [
        (1, 0.1, 0.0995037190),
        (1, 1, 0.7071067812),
        (1, 10, 0.9950371902),
        (401, 10, 9.9968920161),
    ],
)
def test_a_known_scale_is_bounded_as_published(bound, scale, expected):
    mean, std, square = wide(np.log(scale), 0.0, bound**2)
    assert expected_regularised_scale(mean, std, square).item() == pytest.approx(expected, abs=1e-9)
    logarithm = expected_log_regulariser(mean, std, square).item()
    assert logarithm == pytest.approx(np.log(bound**2 + scale**2), rel=1e-12)


@pytest.mark.parametrize(
    ("function", "at", "floor"),
    [
        (half_gamma_kl, (-1 - np.log(2), np.sqrt(2)), FLOOR),
        (half_inverse_gamma_kl, (1 + np.log(2), np.sqrt(2)), FLOOR),
        (lasso_rate_kl, (0.568147, 0.5), 0.0207906702),
        (
            lambda m, v: lasso_scale_kl(785.0, m, v, *wide(1, 0)),
            (5.6656845, np.sqrt(2 / 786)),
            2.12044e-4,
        ),
    ],
    ids=["half-gamma", "half-inverse-gamma", "lasso-rate", "lasso-scale"],
)
def test_kls_are_smallest_where_published(function, at, floor):
    start = (at[0] + 0.3, np.log(at[1]) - 0.3)
    found = optimize.minimize(
        lambda p: value(function, p[0], np.exp(p[1])), start, method="BFGS", options={"gtol": 1e-9}
    )
    assert found.fun == pytest.approx(floor, abs=1e-8)
    assert (found.x[0], np.exp(found.x[1])) == pytest.approx(at, abs=1e-5)


# ---------------------------------------------------------------------- twins

LOG_MEANS, LOG_STDS = st.floats(-3, 3), st.floats(0.05, 1.5)


@given(mean=st.floats(-3, 3), std=st.floats(0.05, 3), prior_std=st.floats(0.1, 3))
def test_gaussian_slab_is_its_integral(mean, std, prior_std):
    slow = expectation(
        lambda w: stats.norm.logpdf(w, mean, std) - stats.norm.logpdf(w, 0, prior_std), mean, std
    )
    assert value(gaussian_kl, mean, std, prior_std) == pytest.approx(slow, rel=1e-7, abs=1e-7)


@given(m=LOG_MEANS, v=LOG_STDS, scale=st.floats(0.1, 10))
def test_half_gamma_is_its_integral(m, v, scale):
    slow = log_normal_kl(m, v, stats.gamma(0.5, scale=scale))
    assert value(half_gamma_kl, m, v, scale) == pytest.approx(slow, rel=1e-6, abs=1e-7)


@given(m=LOG_MEANS, v=LOG_STDS)
def test_half_inverse_gamma_is_its_integral_and_the_mirrored_half_gamma(m, v):
    fast = value(half_inverse_gamma_kl, m, v)
    assert fast == pytest.approx(log_normal_kl(m, v, stats.invgamma(0.5)), rel=1e-6, abs=1e-7)
    assert fast == pytest.approx(value(half_gamma_kl, -m, v, 1.0), rel=1e-12)


@given(m=LOG_MEANS, v=LOG_STDS, shape=st.floats(0.6, 6), rate=st.floats(0.3, 6))
def test_lasso_rate_is_its_integral(m, v, shape, rate):
    slow = log_normal_kl(m, v, stats.gamma(shape, scale=1 / rate))
    assert lasso_rate_kl(*wide(m, v), shape, rate).item() == pytest.approx(slow, rel=1e-6, abs=1e-7)


@given(m=LOG_MEANS, v=LOG_STDS, shape=st.floats(0.6, 6), scale=st.floats(0.3, 8))
def test_learnt_slab_is_its_integral(m, v, shape, scale):
    slow = log_normal_kl(m, v, stats.invgamma(shape, scale=scale))
    fast = inverse_gamma_kl(*wide(m, v), shape, scale).item()
    assert fast == pytest.approx(slow, rel=1e-6, abs=1e-7)


@settings(max_examples=15)
@given(
    size=st.integers(1, 300),
    m=LOG_MEANS,
    v=LOG_STDS,
    rate_mean=st.floats(-1, 1),
    rate_std=st.floats(0.05, 0.8),
)
def test_lasso_scale_is_its_double_integral(size, m, v, rate_mean, rate_std):
    """log p(tau^2 | rate) is averaged over the rate's own posterior: linear and logarithmic."""
    shape = (size + 1) / 2

    def log_prior(z: np.ndarray) -> np.ndarray:
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        rates = np.exp(rate_mean + rate_std * nodes) / 2
        logs = [stats.gamma.logpdf(np.exp(z), shape, scale=1 / rate) for rate in rates]
        return weights @ np.array(logs) / np.sqrt(2 * np.pi) + z

    slow = expectation(lambda z: stats.norm.logpdf(z, m, v) - log_prior(z), m, v)
    fast = value(lasso_scale_kl, size, m, v, rate_mean, rate_std)
    assert fast == pytest.approx(slow, rel=1e-6, abs=1e-6)


@given(m=st.floats(-8, 8), v=st.floats(0, 1.2), bound=st.floats(0.1, 500))
def test_regularised_moments_are_their_integrals(m, v, bound):
    mean, std, square = wide(m, v, bound**2)
    spread = max(v, 1e-9)
    log_slow = expectation(lambda z: np.logaddexp(2 * np.log(bound), 2 * z), m, spread)
    slow = expectation(lambda z: np.exp(z) * bound / np.hypot(bound, np.exp(z)), m, spread)
    assert expected_log_regulariser(mean, std, square).item() == pytest.approx(
        log_slow, rel=1e-5, abs=1e-5
    )
    assert expected_regularised_scale(mean, std, square).item() == pytest.approx(slow, rel=1e-4)


# ------------------------------------------------- the priors the KLs speak of


def implied_prior(kl: Callable[[Tensor, Tensor], Tensor], x: np.ndarray) -> np.ndarray:
    """Density at ``x``: the KL of a posterior as narrow as a point, less its entropy."""
    v = 1e-4
    log = np.log(x)
    distance = kl(torch.tensor(log), torch.full(log.shape, v, dtype=torch.float64)).numpy()
    return np.exp(-(distance + log + np.log(v) + 0.5 * np.log(2 * np.pi * np.e)))


def test_the_product_of_the_two_halves_is_a_squared_half_cauchy():
    """P(tau <= 1) = 1/2 and P(tau <= 6.3137515) = 0.9, from the KLs' own densities."""
    log_x = np.linspace(-60, 60, 24_001)
    step = log_x[1] - log_x[0]
    alpha = implied_prior(half_gamma_kl, np.exp(log_x)) * np.exp(log_x)
    beta = implied_prior(half_inverse_gamma_kl, np.exp(log_x)) * np.exp(log_x)
    assert alpha.sum() * step == pytest.approx(1, abs=1e-6)
    assert beta.sum() * step == pytest.approx(1, abs=1e-6)
    below_beta = np.cumsum(beta) * step - beta * step / 2
    for tau, probability in ((1.0, 0.5), (6.3137515, 0.9)):
        # alpha beta <= tau^2 where log beta <= 2 log tau - log alpha.
        reach = np.interp(2 * np.log(tau) - log_x, log_x, below_beta)
        assert (alpha * reach).sum() * step == pytest.approx(probability, abs=1e-4)


def test_the_halves_drawn_by_hand_give_the_half_cauchy():
    random = np.random.default_rng(0)
    tau = np.sqrt(random.gamma(0.5, 1, 400_000) / random.gamma(0.5, 1, 400_000))
    for bound, probability in ((1.0, 0.5), (6.3137515, 0.9)):
        assert (tau <= bound).mean() == pytest.approx(probability, abs=4e-3)


@pytest.mark.parametrize(
    ("size", "rate", "expected"), [(2, 1.0, np.exp(-1.0)), (5, 1.3, 0.2725317930)]
)
def test_the_lasso_scale_marginalises_to_a_multivariate_laplace(size, rate, expected):
    """p(|w| = 2) / p(|w| = 1) = exp(-varsigma), whatever the number of weights."""

    def kl(m: Tensor, v: Tensor) -> Tensor:
        return lasso_scale_kl(float(size), m, v, *wide(np.log(rate**2), 0))

    def density(radius: float) -> float:
        def integrand(log_square: float) -> float:
            square = np.exp(log_square)
            prior = implied_prior(kl, np.array([square]))[0]
            normal = (2 * np.pi * square) ** (-size / 2) * np.exp(-(radius**2) / (2 * square))
            return prior * normal * square

        return integrate.quad(integrand, -15, 10, epsabs=1e-12, limit=200)[0]

    assert density(2) / density(1) == pytest.approx(expected, rel=1e-6)


# -------------------------------------------------------------------- float32

EXTREMES = [
    (gaussian_kl, (3.0, 1e-18, 0.5)),
    (gaussian_kl, (0.0, 1e15, 1.0)),
    (gaussian_kl, (1e3, 1e-8, 1e-3)),
    (half_gamma_kl, (60.0, 1e-15, 1.0)),
    (half_gamma_kl, (-80.0, 8.0, 1e-4)),
    (half_inverse_gamma_kl, (-60.0, 1e-15)),
    (half_inverse_gamma_kl, (80.0, 8.0)),
    (lasso_rate_kl, (-60.0, 1e-15)),
    (inverse_gamma_kl, (60.0, 1e-15, 2.0, 6.0)),
    (lasso_scale_kl, (1e6, 13.0, 1e-3, 0.5, 1e-12)),
    (lasso_scale_kl, (1.0, -80.0, 9.0, -20.0, 3.0)),
    (expected_log_regulariser, (70.0, 0.5, 1.0)),
    (expected_log_regulariser, (-70.0, 0.5, 1e-6)),
    (expected_regularised_scale, (70.0, 0.5, 4.0)),
    (expected_regularised_scale, (-70.0, 0.5, 4.0)),
]


@pytest.mark.parametrize(("function", "arguments"), EXTREMES)
def test_float32_says_what_float64_says(function, arguments):
    scalars = 2 if function is inverse_gamma_kl else 0
    tensors = arguments[: len(arguments) - scalars]
    plain = arguments[len(tensors) :]
    narrow = [torch.tensor(x, requires_grad=True) for x in tensors]
    fast = function(*narrow, *plain)
    fast.backward()
    assert fast.item() == pytest.approx(function(*wide(*tensors), *plain).item(), rel=1e-4)
    assert all(torch.isfinite(x.grad) for x in narrow if x.grad is not None)


def test_results_keep_the_dtype_of_their_arguments():
    for dtype in (torch.float32, torch.float64):
        m, v = torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)
        for result in (
            gaussian_kl(m, v, 2.0),
            half_gamma_kl(m, v, 4.0),
            half_inverse_gamma_kl(m, v),
            lasso_scale_kl(7, m, v, m[0], v[0]),
            lasso_rate_kl(m, v),
            inverse_gamma_kl(m, v, 2.0, 6.0),
            expected_log_regulariser(m, v, v),
            expected_regularised_scale(m, v, v),
        ):
            assert result.dtype == dtype
            assert result.shape == (3,)


def test_two_slabs_are_one_after_rescaling():
    """A fixed scale of 3 in the weights or in the prior: the same KL (card section 10.8)."""
    multiplied = value(gaussian_kl, 0.5, 0.1, 1)
    centred = value(gaussian_kl, 1.5, 0.3, 3)
    assert multiplied == pytest.approx(1.9325850929940454, abs=1e-12)
    assert centred == pytest.approx(multiplied, abs=1e-12)
