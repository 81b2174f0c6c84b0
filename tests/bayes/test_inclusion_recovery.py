"""Recovery formulas by the card's vectors (T1-T4, T13, T14) and by obvious twins."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from bayespare.bayes.inclusion import (
    break_even,
    gain_log_odds,
    gaussian_kl,
    mean_responsibility,
    node_kl,
    point_log_odds,
    prior_log_odds,
    prior_variance,
    profiled_gain,
    profiled_penalty,
    rate_mode,
    rate_posterior,
    reduced_log_odds,
    ridge,
    spike_log_odds,
)
from bayespare.errors import BayespareError

FIFTH = prior_log_odds(0.2)


def wide(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(expected: object, abs: float = 1e-5) -> object:
    return pytest.approx(expected, rel=1e-6, abs=abs)


M1, S1 = wide(0.5, -1, 0.2), wide(0.1, 0.3, 0.5)
M2, S2 = wide(0.10, -0.12, 0.05), wide(0.05, 0.05, 0.05)


# ----------------------------------------------------------------------- T1 to T4


def test_t1_kl_of_a_gated_node():
    parts = gaussian_kl(M1, S1, 1.0)
    assert parts.tolist() == near([1.932585, 1.248973, 0.338147])
    odds = torch.logit(wide(0.7))[0]
    assert node_kl(odds, torch.zeros_like(odds), FIFTH).item() == near(0.582685)
    assert node_kl(odds, parts.sum(), FIFTH).item() == near(3.046479)


@pytest.mark.parametrize(
    ("mean", "std", "spike", "slab_kl", "spike_kl", "odds", "penalty"),
    [
        (M2, S2, 0.01, 7.504397, 2.299442, -6.591250, 2.521214),
        (wide(0.6, -0.7, 0.5), wide(0.2, 0.2, 0.2), 0.25, 3.938314, 3.688872, -1.635736, 3.734029),
    ],
)
def test_t2_the_profile_is_the_bound_at_its_best(
    mean, std, spike, slab_kl, spike_kl, odds, penalty
):
    assert gaussian_kl(mean, std, 1.0).sum().item() == near(slab_kl)
    assert gaussian_kl(mean, std, spike**0.5).sum().item() == near(spike_kl)
    best = spike_log_odds(mean, std, FIFTH, 1.0, spike**0.5)
    assert best.item() == near(odds)
    assert profiled_penalty(mean, std, FIFTH, 1.0, spike**0.5).item() == near(penalty)
    assert bound(best, slab_kl, spike_kl) == near(penalty)
    for other in (best - 1, best + 1, wide(0.0)[0]):
        assert bound(other, slab_kl, spike_kl) > penalty


def bound(odds: torch.Tensor, slab_kl: float, spike_kl: float) -> float:
    """The G penalty at any log-odds, as the card writes it."""
    p = 1 / (1 + math.exp(-odds.item()))
    bernoulli = p * math.log(p / 0.2) + (1 - p) * math.log((1 - p) / 0.8)
    return bernoulli + p * slab_kl + (1 - p) * spike_kl


def test_t2_even_odds_cost_more():
    assert bound(wide(0.0)[0], 7.504397, 2.299442) == near(5.125063)


def test_t2_huge_log_odds_stay_finite():
    assert gaussian_kl(M1, S1, 0.1).sum().item() == near(77.791950)
    for dtype in (torch.float64, torch.float32):
        mean, std, prior = M1.to(dtype), S1.to(dtype), FIFTH.to(dtype)
        assert spike_log_odds(mean, std, prior, 1.0, 0.1).item() == near(72.885950, abs=1e-4)
        penalty = profiled_penalty(mean, std, prior, 1.0, 0.1).item()
        assert penalty == near(3.519705 - math.log(0.2), abs=1e-4)


def test_t3_gap_to_the_mixture_prior():
    m, s, v0 = 0.3, 0.2, 0.01
    w = np.linspace(m - 10 * s, m + 10 * s, 400_001)
    q = np.exp(-0.5 * ((w - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))
    slab = np.exp(-0.5 * w**2) / math.sqrt(2 * math.pi)
    spike = np.exp(-0.5 * w**2 / v0) / math.sqrt(2 * math.pi * v0)
    mixture = np.trapezoid(q * (np.log(q + 1e-300) - np.log(0.2 * slab + 0.8 * spike)), w)
    assert mixture == near(1.638200)
    mean, std = wide(m), wide(s)
    profile = profiled_penalty(mean, std, FIFTH, 1.0, 0.1).item()
    assert profile == near(2.721675)
    rho = spike_log_odds(mean, std, FIFTH, 1.0, 0.1).sigmoid().item()
    assert rho == near(0.939694)
    log_odds = point_log_odds(torch.tensor(w)[:, None], FIFTH, 1.0, 0.1)
    log_in, log_out = logsigmoid(log_odds).numpy(), logsigmoid(-log_odds).numpy()
    kl = rho * (math.log(rho) - log_in) + (1 - rho) * (math.log(1 - rho) - log_out)
    assert np.trapezoid(q * kl, w) == near(profile - mixture)
    assert profile - mixture == near(1.083475)


def test_t3_mean_responsibility():
    steps = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    noise = torch.special.ndtri(steps)[:, None]
    found = mean_responsibility(wide(0.3), wide(0.2), FIFTH, 1.0, 0.1, noise)
    assert found.item() == near(0.570939)


def test_t4_reduction_turns_into_savage_dickey():
    mean, std = wide(0.12, -0.05, 0.2), wide(0.1, 0.08, 0.1)
    expected = [3.104474, 4.545309, 4.322941, 4.227971, 4.215712, 4.215588]
    found = [
        (FIFTH - reduced_log_odds(mean, std, FIFTH, 1.0, v0**0.5)).item()
        for v0 in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8)
    ]
    assert found == near(expected)
    limit = reduced_log_odds(mean, std, FIFTH, 1.0)
    assert (FIFTH - limit).item() == near(4.215586)
    assert limit.item() == near(-5.601881)
    assert limit.sigmoid().item() == near(0.00367734, abs=1e-8)
    assert spike_log_odds(mean, std, FIFTH, 1.0, 0.1).sigmoid().item() == near(0.0152066, abs=1e-7)


@given(
    mean=st.lists(st.floats(-3, 3), min_size=1, max_size=4),
    std=st.floats(0.02, 0.9),
    prior=st.floats(0.01, 0.99),
)
def test_savage_dickey_is_the_ratio_of_densities_at_zero(mean, std, prior):
    q = torch.distributions.Normal(wide(*mean), wide(std))
    p = torch.distributions.Normal(wide(0.0), wide(1.1))
    zero = torch.zeros((), dtype=torch.float64)
    ratio = (p.log_prob(zero) - q.log_prob(zero)).sum()
    found = reduced_log_odds(
        wide(*mean), wide(std).expand(len(mean)), prior_log_odds(prior), 1.1
    ).item()
    assert found == pytest.approx(math.log(prior / (1 - prior)) + ratio.item(), rel=1e-9, abs=1e-9)


@given(mean=st.floats(-1, 1), std=st.floats(0.05, 0.9), spike=st.floats(0.1, 0.9))
def test_reduction_is_the_change_of_evidence_by_quadrature(mean, std, spike):
    """Exchange of priors: log of E_q[spike(w) / slab(w)]."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    # Far from zero a narrow spike falls between the nodes.
    assume(std < 2 * spike and abs(mean) < 3 * std)
    w = mean + std * nodes
    ratio = np.exp(-0.5 * w**2 * (1 / spike**2 - 1)) / spike
    change = math.log(np.sum(weights * ratio) / math.sqrt(2 * math.pi))
    found = FIFTH - reduced_log_odds(wide(mean), wide(std), FIFTH, 1.0, spike)
    assert found.item() == pytest.approx(change, rel=1e-5, abs=1e-5)


def test_t15_limits_of_the_formulas():
    same = spike_log_odds(M1, S1, FIFTH, 0.7, 0.7)
    assert same.sigmoid().item() == pytest.approx(0.2, abs=1e-15)
    at_prior = reduced_log_odds(torch.zeros(3).double(), wide(0.7, 0.7, 0.7), FIFTH, 0.7)
    assert at_prior.sigmoid().item() == pytest.approx(0.2, abs=1e-15)


# ---------------------------------------------------------------- gains, F5, T8's last line


@given(gain=st.floats(-40, 40), kl=st.floats(0, 30), prior=st.floats(0.01, 0.99))
def test_gain_log_odds_maximise_the_bound(gain, kl, prior):
    gain_, kl_, odds_ = wide(gain)[0], wide(kl)[0], prior_log_odds(prior)
    best = gain_log_odds(gain_, kl_, odds_)

    def value(odds: torch.Tensor) -> float:
        return (odds.sigmoid() * gain_ - node_kl(odds, kl_, odds_)).item()

    peak = value(best)
    assert peak == pytest.approx(profiled_gain(gain_, kl_, odds_).item(), abs=1e-9)
    assert peak >= max(value(best + 0.3), value(best - 0.3)) - 1e-9


def test_t8_profile_term():
    found = profiled_gain(wide(-0.472), wide(1.395472), prior_log_odds(0.25))
    assert found.item() == near(-0.237460)


# ------------------------------------------------------------------------------------ T13


def test_t13_envelope_gradient():
    mean, log_std = M2.clone().requires_grad_(), S2.log().requires_grad_()
    profiled_penalty(mean, log_std.exp(), FIFTH, 1.0, 0.1).backward()
    weight = ridge(spike_log_odds(M2, S2, FIFTH, 1.0, 0.1), 1.0, 0.1)
    assert weight.item() == near(99.864326)
    assert mean.grad.tolist() == near([9.986433, -11.983719, 4.993216])
    assert mean.grad.tolist() == pytest.approx((weight * M2).tolist(), abs=1e-8)
    assert log_std.grad.tolist() == near([-0.750339] * 3)
    assert log_std.grad.tolist() == pytest.approx((weight * S2**2 - 1).tolist(), abs=1e-8)


# ------------------------------------------------------------------------------------ T14


def test_t14_inclusion_rate():
    inclusion = wide(0.9, 0.2, 0.05, 0.6)
    rate = rate_posterior(inclusion, 1, 9)
    assert [rate.a.item(), rate.b.item()] == near([2.75, 11.25])
    assert rate.log_included.item() == near(-1.784017)
    assert rate.log_excluded.item() == near(-0.227652)
    assert rate.log_odds.item() == near(-1.784017 + 0.227652)
    assert rate_mode(inclusion, 1, 9).item() == near(0.145833)
    assert rate_posterior(inclusion).b.item() == near(4 + 2.25)


def test_t14_scales():
    inclusion = wide(0.9, 0.2, 0.05, 0.6)
    mean = torch.stack([wide(0.5, -1), wide(0.1, 0.1), wide(0.05, 0), wide(0.7, 0.2)])
    std = torch.stack([wide(0.1, 0.1), wide(0.3, 0.2), wide(0.3, 0.3), wide(0.2, 0.1)])
    assert prior_variance(inclusion, mean, std).item() == near(0.437179)
    assert prior_variance(1 - inclusion, mean, std).item() == near(0.144972)
    # With a prior: where the log density of the scale has its peak.
    found = prior_variance(inclusion, mean, std, shape=2.0, scale=0.3).item()
    energy = (inclusion * (mean**2 + std**2).sum(1)).sum().item()
    grid = np.linspace(0.01, 2, 200_000)
    density = -(0.5 * 2 * inclusion.sum().item() + 3) * np.log(grid) - (0.3 + energy / 2) / grid
    assert found == pytest.approx(grid[density.argmax()], abs=2e-5)


def test_t14_point_estimate_and_break_even():
    assert point_log_odds(wide(0.1), FIFTH, 1.0, 0.1).item() == near(-3.193879)
    assert point_log_odds(wide(0.1), FIFTH, 1.0, 0.1).sigmoid().item() == near(0.039397)
    assert break_even(FIFTH, 1.0, 0.1, 1).item() == near(0.272989)
    slab, spike = 0.1**0.5, 0.001**0.5
    for size in (1, 10, 50):
        assert break_even(prior_log_odds(0.5), slab, spike, size).item() == near(0.068203)
    tenth = [break_even(prior_log_odds(0.1), slab, spike, k).item() for k in (1, 10, 50)]
    assert tenth == near([0.095344, 0.071383, 0.068851])


# -------------------------------------------------------------------------------- refusals


def test_refusals_say_what_is_wrong():
    with pytest.raises(BayespareError, match="standard deviation must be more than 0"):
        reduced_log_odds(M1, torch.zeros(3).double(), FIFTH, 1.0)
    with pytest.raises(BayespareError, match="narrower than the slab"):
        spike_log_odds(M1, S1, FIFTH, 0.1, 1.0)
    with pytest.raises(BayespareError, match="between 0 and 1"):
        prior_log_odds(1.5)
    with pytest.raises(BayespareError, match="no node is included"):
        prior_variance(torch.zeros(3), M1[:, None], S1[:, None])
    with pytest.raises(BayespareError, match="more than 0"):
        rate_posterior(M1, a=0.0)
    with pytest.raises(BayespareError, match="has no mode"):
        rate_mode(torch.zeros(3), a=0.5, b=2.0)
