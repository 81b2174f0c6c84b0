"""Unit scales: moments and means against their own draws, KLs against the card."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from bayespare.bayes.inclusion import gaussian_kl
from bayespare.bayes.scales import (
    GroupHorseshoeScale,
    GroupLassoScale,
    Moments,
    NoScale,
    Scale,
    inverse_softplus,
)
from bayespare.bayes.weights import Statistics, slab_kl

pytestmark = pytest.mark.usefixtures("float64")


def lasso(log_mean: float, log_std: float, rate: tuple[float, float] = (0.0, 1.0)) -> Scale:
    return GroupLassoScale(torch.tensor([float(log_mean)]), torch.tensor([float(log_std)]), *rate)


def horseshoe(
    means: tuple[float, float, float, float],
    stds: tuple[float, float, float, float],
    bound: float | None = 1.0,
) -> GroupHorseshoeScale:
    """Means and standard deviations of log alpha, beta, s_a, s_b; one unit."""
    slab = None if bound is None else torch.tensor([bound])
    scale = GroupHorseshoeScale(torch.zeros(2, 1), 0.5, 0.0, slab)
    with torch.no_grad():
        scale.alpha_log_mean.fill_(means[0])
        scale.beta_log_mean.fill_(means[1])
        scale.global_log_mean.copy_(torch.tensor(means[2:]))
        rho = inverse_softplus(torch.tensor(stds))
        scale.alpha_rho.fill_(rho[0])
        scale.beta_rho.fill_(rho[1])
        scale.global_rho.copy_(rho[2:])
    return scale


def one_slab_kl(scale: Scale, mean: float, std: float, prior_std: float) -> float:
    """The KL of a single weight from its slab."""
    weight = Statistics(torch.ones(()), torch.tensor([mean**2 + std**2]), torch.tensor([std]).log())
    return slab_kl(weight, torch.ones(1), scale.moments(), prior_std).item()


def draws(scale: Scale, points: int = 500) -> Tensor:
    """Draws on a grid of normal quantiles: an expectation over both noises without luck."""
    normal = torch.tensor(stats.norm.ppf((np.arange(points) + 0.5) / points))
    return scale.draw(normal.repeat(points), normal.repeat_interleave(points)).detach()


# -------------------------------------------------------------------- vectors


def test_centred_slabs_have_the_published_values():
    assert one_slab_kl(lasso(0.4, 0.3), 0.3, 0.2, 1.3) == pytest.approx(1.5987703862557674)
    scale = horseshoe((0.1, 0.4, -0.5, 0.2), (0.3, 0.4, 0.2, 0.1))
    assert one_slab_kl(scale, 0.3, 0.2, 1.3) == pytest.approx(1.1298352726140057, abs=1e-9)
    assert scale.mean().item() == pytest.approx(0.7339820766894736, abs=1e-9)


def test_scale_kls_have_the_published_values():
    scale = horseshoe((0, 0, -1, -1), (0.5, 0.5, 0.8, 0.8))
    assert scale.kl_units(torch.ones(1)).item() == pytest.approx(2 * 0.979722043346799)
    alpha = math.exp(-1 + 0.32) - 0.5 * (-1 + 2 * math.log(0.8) + 1 + math.log(2))
    assert scale.kl_global().item() == pytest.approx(alpha + 2.6199913382950997)
    group = lasso(5, 0.05, (0.5, 0.1))
    assert group.kl_units(torch.tensor([785.0])).item() == pytest.approx(188.23608191250221)
    assert lasso(0, 1, (0, 0.5)).kl_global().item() == pytest.approx(0.5596763004771996)


def test_the_scale_of_a_half_cauchy_enters_squared():
    """Card 8.3: tau = 2 at m = 0, v = 0.5 costs 0.8230; the published code says -0.2800."""
    wide = GroupHorseshoeScale(torch.zeros(2, 1), 0.5, 0.0, torch.ones(1), 2.0, 2.0)
    expected = 0.8230078841066246 + 0.979722043346799
    assert wide.kl_units(torch.ones(1)).item() == pytest.approx(expected)
    assert wide.kl_global().item() == pytest.approx(expected)


def test_a_learnt_bound_pays_its_own_kl():
    learnt, fixed = (horseshoe((0, 0, 0, 0), (1, 1, 1, 1), bound) for bound in (None, 1.0))
    with torch.no_grad():
        learnt.slab_log_mean.fill_(1.0)
        learnt.slab_rho.copy_(inverse_softplus(torch.tensor(0.5)))
    extra = learnt.kl_global() - fixed.kl_global()
    assert extra.item() == pytest.approx(0.19186182697021303, abs=1e-12)


# ------------------------------------------------------ moments against draws

MEANS = st.tuples(*[st.floats(-1.5, 1.5)] * 4)
STDS = st.tuples(*[st.floats(0.05, 0.7)] * 4)


def assert_moments(moments: Moments, mean: Tensor, drawn: Tensor) -> None:
    assert moments.log_square.item() == pytest.approx(
        drawn.square().log().mean().item(), rel=5e-3, abs=5e-3
    )
    assert moments.inverse_square.item() == pytest.approx(
        drawn.square().reciprocal().mean().item(), rel=2e-2
    )
    assert mean.item() == pytest.approx(drawn.mean().item(), rel=5e-3)


@settings(max_examples=20)
@given(log_mean=st.floats(-2, 6), log_std=st.floats(0.01, 0.8))
def test_lasso_moments_are_those_of_its_draws(log_mean, log_std):
    scale = lasso(log_mean, log_std)
    assert_moments(scale.moments(), scale.mean(), draws(scale))


@settings(max_examples=20)
@given(means=MEANS, stds=STDS, bound=st.sampled_from([0.3, 1.0, 40.0]))
def test_horseshoe_moments_are_those_of_its_draws(means, stds, bound):
    scale = horseshoe(means, stds, bound)
    assert_moments(scale.moments(), scale.mean(), draws(scale))


@settings(max_examples=20)
@given(means=MEANS, stds=STDS, log_bound=st.floats(-1, 2), bound_std=st.floats(0.05, 1))
def test_a_learnt_bound_is_averaged_over_its_posterior(means, stds, log_bound, bound_std):
    """s^2 = t^2 c^2 / (c^2 + t^2) with both log-normal: a plain double sum is the twin."""
    scale = horseshoe(means, stds, None)
    with torch.no_grad():
        scale.slab_log_mean.fill_(log_bound)
        scale.slab_rho.copy_(inverse_softplus(torch.tensor(bound_std)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = np.outer(weights, weights) / (2 * np.pi)
    log_t2 = sum(means) + math.sqrt(sum(s * s for s in stds)) * nodes[:, None]
    log_c2 = log_bound + bound_std * nodes[None, :]
    log_s2 = log_t2 + log_c2 - np.logaddexp(log_t2, log_c2)
    moments = scale.moments()
    assert moments.log_square.item() == pytest.approx((weights * log_s2).sum(), abs=1e-5)
    assert moments.inverse_square.item() == pytest.approx((weights * np.exp(-log_s2)).sum())


def test_draws_share_the_global_scale_and_nothing_else():
    scale = GroupHorseshoeScale(torch.zeros(2, 3), 0.5, 0.0, torch.full((3,), 1e8))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 3, generator=generator)
    shared = torch.randn(4000, 1, generator=generator)
    logs = torch.stack([scale.draw(a, b[0]) for a, b in zip(noise, shared, strict=True)]).log()
    correlation = torch.corrcoef(logs.detach().T)[0, 1].item()
    # Two local and two global factors of one spread: half of the variance is shared.
    assert correlation == pytest.approx(0.5, abs=0.05)


def test_draws_pass_gradients_to_every_parameter_of_the_scale():
    for scale in (lasso(0.1, 0.5), horseshoe((0, 0, 0, 0), (1, 1, 1, 1))):
        scale.draw(torch.tensor([0.3]), torch.tensor(0.7)).sum().backward()
        missing = {n for n, p in scale.named_parameters() if p.grad is None or not p.grad.any()}
        assert missing <= {"rate_log_mean", "rate_rho"}


# ----------------------------------------------------------------- invariances


@pytest.mark.parametrize("tiny", [1e-7])
def test_fixed_scales_turn_every_slab_into_a_gaussian_one(tiny):
    """Card 10.8: at a known scale a, SS-GL and SS-GHS are SS-IG with sigma_0 a."""
    gaussian = gaussian_kl(*torch.tensor([[0.5], [0.1]]), 3.0).item()
    group = lasso(math.log(9), tiny)
    assert one_slab_kl(group, 0.5, 0.1, 1.0) == pytest.approx(gaussian)
    # The bound out of reach: t = 3. Or the horseshoe out of reach: c = 3.
    spread = (tiny,) * 4
    for means, bound in (((math.log(9), 0, 0, 0), 1e9), ((40.0, 0, 0, 0), 3.0)):
        scale = horseshoe(means, spread, bound)
        assert one_slab_kl(scale, 0.5, 0.1, 1.0) == pytest.approx(gaussian)
        assert scale.mean().item() == pytest.approx(3)
    # The scale in the weights instead: N(0.5, 0.1^2) times 3 from N(0, 3^2).
    multiplied = gaussian_kl(*torch.tensor([[1.5], [0.3]]), 3.0).item()
    assert multiplied == pytest.approx(gaussian_kl(*torch.tensor([[0.5], [0.1]]), 1.0).item())


def test_no_scale_is_the_plain_gaussian():
    scale = NoScale(3)
    assert one_slab_kl(scale, 0.3, 0.2, 1.3) == pytest.approx(1.4102637153631299)
    assert not scale.kl_units(torch.ones(3)).any()
    assert scale.kl_global().item() == 0
    assert scale.mean().item() == scale.draw(torch.ones(3), torch.ones(())).item() == 1
    assert not list(scale.parameters())


@pytest.mark.parametrize("size", [1.0, 28.0, 785.0])
def test_the_lasso_starts_at_the_smallest_kl(size):
    """Not 1,838 nats above it (card 8.12): no gradient is left on its local parameters."""
    scale = GroupLassoScale.at_prior(torch.tensor([size]))
    grads = torch.autograd.grad(
        scale.kl_units(torch.tensor([size])).sum(), [scale.log_mean, scale.rho]
    )
    assert torch.stack(grads).abs().max().item() < 1e-9


def test_per_unit_names_every_tensor_with_one_entry_a_unit():
    units = 5
    scales = [
        NoScale(units),
        GroupLassoScale.at_prior(torch.full((units,), 7.0)),
        GroupHorseshoeScale(torch.zeros(2, units), 0.5, 0.0, torch.ones(units)),
        GroupHorseshoeScale(torch.zeros(2, units), 0.5, 0.0, None),
    ]
    for scale in scales:
        indexed = {n for n, t in scale.state_dict().items() if t.shape == (units,)}
        assert set(scale.per_unit) == indexed
        shapes = {tuple(moment.shape) for moment in scale.moments()}
        assert shapes <= {(), (units,)}


@given(value=st.floats(1e-6, 300))
def test_inverse_softplus_inverts(value):
    rho = inverse_softplus(torch.tensor(value))
    assert torch.nn.functional.softplus(rho).item() == pytest.approx(value, rel=1e-9)


def test_float32_survives_extreme_scales():
    for scale in (
        GroupLassoScale(torch.tensor([-60.0, 60.0]), torch.tensor([1e-6, 5.0]), 0.0, 0.5).float(),
        GroupHorseshoeScale(torch.tensor([[-40.0, 40], [-40, 40]]), 1e-5, 0.0, None).float(),
        GroupHorseshoeScale(torch.tensor([[-40.0, 40], [-40, 40]]), 2.0, 0.0, torch.ones(2)),
    ):
        scale.float()
        values = [*scale.moments(), scale.mean(), scale.kl_units(torch.tensor([1.0, 1e5]).float())]
        total = sum(v.float().log1p().sum() if (v > 0).all() else v.sum() for v in values)
        total.backward()
        assert all(torch.isfinite(v).all() for v in values)
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in scale.parameters())
