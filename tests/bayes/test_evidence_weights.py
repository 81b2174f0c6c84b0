"""Evidence of single weights: the card's vectors, quadrature, the published form, bad input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats
from torch import Tensor

from bayespare.bayes.evidence import (
    best_group_shrink,
    best_shrink,
    curvature_delta_f,
    delta_f,
    quadratic_cost,
    reduced_posterior,
    tempered,
)
from bayespare.errors import BayespareError

MEANS = st.floats(-3, 3)
STDS = st.floats(0.01, 1.5)
PRIORS = st.floats(0.05, 5)


def wide(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def published(mean: float, std: float, prior_std: float, reduced_std: float) -> float:
    """The form of the authors' code (card section 2.3)."""
    precision = 1 / std**2
    big = reduced_std**2 * (precision - 1 / prior_std**2) + 1
    logs = math.log(precision) + 2 * math.log(prior_std) - math.log(big)
    quadratic = precision * mean**2 - (precision * mean * reduced_std) ** 2 / big
    return 0.5 * (logs - quadratic)


# -------------------------------------------------------------------- vectors


@pytest.mark.parametrize(
    ("arguments", "expected", "reduced"),
    [
        ((0, 1, 1, 0), 0.0, (0, 0)),
        ((0, 0.1, 1, 0), 2.3025850930, (0, 0)),
        ((0.3, 0.1, 1, 0), -2.1974149070, (0, 0)),
        ((0.2145966026289347, 0.1, 1, 0), 0.0, (0, 0)),
        ((0.05, 0.02, 0.1, 0), -1.5155620876, (0, 0)),
        ((2, 0.01, 1, 0), 2 * math.log(10) - 20_000, (0, 0)),
        ((0.5, 0.5, 1, 0.25), 0.2124852100, (0.1052631579, 0.2294157339)),
        ((0.5, 0.1, 1, 0.1), -4.2600751912, (0.2512562814, 0.0708881205)),
        ((0.5, 0.1, 1, 1), 0.0, (0.5, 0.1)),
        ((0.5, 0.1, 1, 2), -0.5949246091, (0.5037783375, 0.1003771226)),
        ((0.3, 0.9, 1, 0.5), 0.0375084494, (0.0874635569, 0.4859543224)),
        ((0.3, 1.2, 1, 0.5), -0.1679654110, (0.0563909774, 0.5202659817)),
    ],
)
def test_one_weight_has_the_published_values(arguments, expected, reduced):
    assert delta_f(*wide(*arguments)).item() == pytest.approx(expected, abs=1e-9)
    found = [value.item() for value in reduced_posterior(*wide(*arguments))]
    assert found == pytest.approx(reduced, abs=1e-9)


@pytest.mark.parametrize(
    ("posterior", "prior", "reduced", "expected"),
    [
        ((0.4, 0.2), (0.1, 0.5), (0, 0.25), -0.2374684579),
        ((0.4, 0.2), (0, 1), (0.3, 0.1), 1.4534951259),
        ((-1, 0.3), (0, 2), (-0.5, 0.5), 0.9689306444),
    ],
)
def test_priors_with_a_mean_have_the_published_values(posterior, prior, reduced, expected):
    mean, std, prior_mean, prior_std, reduced_mean, reduced_std = wide(*posterior, *prior, *reduced)
    found = delta_f(
        mean, std, prior_std, reduced_std, prior_mean=prior_mean, reduced_mean=reduced_mean
    )
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_the_reduced_posterior_with_means_has_the_published_value():
    found = reduced_posterior(0.4, 0.2, 0.5, 0.25, prior_mean=0.1)
    assert [value.item() for value in found] == pytest.approx([0.2594594595, 0.1643989873])


@pytest.mark.parametrize(
    ("arguments", "square", "expected"),
    [
        ((0.5, 0.1, 1), 0.2449750026, 0.3143846389),
        ((0.12, 0.1, 1), 0.0045913682, 1.6225110955),
        ((0.09, 0.1, 1), 0.0, 1.8975850930),
    ],
)
def test_the_best_shrink_has_the_published_values(arguments, square, expected):
    scale, gain = best_shrink(*wide(*arguments))
    assert scale.square().item() == pytest.approx(square, abs=1e-9)
    assert gain.item() == pytest.approx(expected, abs=1e-9)


def test_the_best_shrink_of_a_group_has_the_published_values():
    mean = torch.tensor([0.3, -0.1, 0.2, 0.05], dtype=torch.float64)
    scale, gain = best_group_shrink(mean, 0.1, 1.0)
    assert scale.square().item() == pytest.approx(0.0262473217, abs=1e-9)
    assert gain.item() == pytest.approx(4.7212843061, abs=1e-9)
    assert delta_f(mean, 0.1, 1.0).sum().item() == pytest.approx(2.0853403720, abs=1e-9)


@pytest.mark.parametrize(
    ("ess", "curvature", "decay", "mean", "expected"),
    [
        (60_000, 1.0, 1 / 60_000, 0.01, 2.501008),
        (60_000, 1.0, 1 / 60_000, 0.0136, -0.047834),
        (60_000, 1.0, 1 / 60_000, 0.0135412537, 0.0),
        (50_000, 0.1, 1e-4, 0.02, 2.453377),
        (50_000, 0.1, 1e-4, 0.0371533388, 0.0),
        (50_000, 1e-3, 1e-4, 0.05, 1.130198),
        (50_000, 1e-3, 1e-4, 0.2088015606, 0.0),
        (50_000, 0.0, 1e-4, 0.3, -0.225),
    ],
)
def test_a_curvature_has_the_published_values(ess, curvature, decay, mean, expected):
    found = curvature_delta_f(*wide(mean, curvature, decay), ess=ess)
    assert found.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "exact", "within"),
    [((1, 1e-3, 1, 0.999), -1.0026684e-06, 2e-9), ((0.3, 1e-3, 1, 0.5), 0.5581460856, 2e-7)],
)
def test_single_precision_does_not_cancel(arguments, exact, within):
    found = delta_f(*(torch.tensor(value, dtype=torch.float32) for value in arguments))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact, abs=within)


# ---------------------------------------------------------------------- twins


@given(mean=MEANS, std=STDS, prior_std=PRIORS, reduced_std=st.floats(1e-3, 5))
def test_it_is_the_published_form_where_that_is_accurate(mean, std, prior_std, reduced_std):
    assume(reduced_std**2 * (1 / std**2 - 1 / prior_std**2) + 1 > 1e-6)
    slow = published(mean, std, prior_std, reduced_std)
    fast = delta_f(*wide(mean, std, prior_std, reduced_std)).item()
    assert fast == pytest.approx(slow, rel=1e-8, abs=1e-8)


@given(
    mean=st.floats(-1, 1),
    std=st.floats(0.1, 0.9),
    prior_mean=st.floats(-1, 1),
    reduced_mean=st.floats(-1, 1),
    reduced_std=st.floats(0.1, 1),
)
def test_it_is_the_integral_it_stands_for(mean, std, prior_mean, reduced_mean, reduced_std):
    # log E_q[reduced prior / prior], on a grid: the integrand is a Gaussian, wherever its top is.
    w = np.linspace(-12, 12, 24_001)
    logs = stats.norm.logpdf(w, mean, std) + stats.norm.logpdf(w, reduced_mean, reduced_std)
    logs -= stats.norm.logpdf(w, prior_mean, 1.0)
    top = logs.max()
    slow = top + np.log(integrate.trapezoid(np.exp(logs - top), w))
    found = delta_f(
        *wide(mean, std, 1.0, reduced_std), prior_mean=prior_mean, reduced_mean=reduced_mean
    )
    assert found.item() == pytest.approx(slow, abs=1e-6)
    moved = np.exp(logs - top) / integrate.trapezoid(np.exp(logs - top), w)
    average = integrate.trapezoid(w * moved, w)
    spread = math.sqrt(integrate.trapezoid((w - average) ** 2 * moved, w))
    shrunk = reduced_posterior(
        *wide(mean, std, 1.0, reduced_std), prior_mean=prior_mean, reduced_mean=reduced_mean
    )
    assert [value.item() for value in shrunk] == pytest.approx([average, spread], abs=1e-5)


@given(mean=MEANS, std=STDS, prior_std=PRIORS, shift=MEANS)
def test_a_spike_is_the_ratio_of_two_densities(mean, std, prior_std, shift):
    slow = stats.norm.logpdf(shift, mean, std) - stats.norm.logpdf(shift, 0, prior_std)
    found = delta_f(*wide(mean, std, prior_std), reduced_mean=shift)
    assert found.item() == pytest.approx(slow, rel=1e-9, abs=1e-9)


@given(mean=MEANS, std=STDS, prior_std=PRIORS)
def test_a_spike_gains_no_more_than_the_occam_factor(mean, std, prior_std):
    assert delta_f(*wide(mean, std, prior_std)).item() <= math.log(prior_std / std) + 1e-12


@given(mean=MEANS, std=STDS, prior_std=PRIORS, factor=st.floats(1e-3, 1e3))
def test_units_of_a_weight_do_not_matter(mean, std, prior_std, factor):
    found = delta_f(*wide(mean * factor, std * factor, prior_std * factor)).item()
    assert found == pytest.approx(delta_f(*wide(mean, std, prior_std)).item(), rel=1e-9, abs=1e-9)


@given(mean=MEANS, std=STDS, prior_std=PRIORS)
def test_a_narrow_reduced_prior_tends_to_the_spike(mean, std, prior_std):
    narrow = delta_f(*wide(mean, std, prior_std, 1e-8)).item()
    assert narrow == pytest.approx(delta_f(*wide(mean, std, prior_std)).item(), rel=1e-6, abs=1e-9)


@given(mean=MEANS, std=STDS, prior_std=PRIORS)
def test_cost_and_occam_factor_add_up(mean, std, prior_std):
    mean, std, prior_std = wide(mean, std, prior_std)
    occam = (prior_std / std).log()
    assert torch.allclose(delta_f(mean, std, prior_std), occam - quadratic_cost(mean, std))


@given(mean=MEANS, curvature=st.floats(0, 1e4), decay=st.floats(1e-6, 10), ess=st.floats(1, 1e5))
def test_a_curvature_is_a_standard_deviation(mean, curvature, decay, ess):
    slow = delta_f(*wide(mean, (ess * (curvature + decay)) ** -0.5, (ess * decay) ** -0.5)).item()
    fast = curvature_delta_f(*wide(mean, curvature, decay), ess=ess).item()
    assert fast == pytest.approx(slow, rel=1e-8, abs=1e-7)


@given(mean=MEANS, share=st.floats(0.02, 0.97), prior_std=PRIORS)
def test_no_scale_beats_the_best_shrink(mean, share, prior_std):
    values = wide(mean, share * prior_std, prior_std)
    scale, gain = best_shrink(*values)
    assert gain.item() == pytest.approx(delta_f(*values, scale).item(), abs=1e-9)
    tried = delta_f(*values, torch.linspace(0, 1, 301, dtype=torch.float64) * prior_std)
    assert gain.item() >= tried.max().item() - 1e-9
    # The classical rule of relevance: off where z^2 <= 1 - r.
    assert (scale.item() == 0) == ((mean / (share * prior_std)) ** 2 <= 1 - share**2)


@settings(max_examples=40)
@given(
    means=st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    stds=st.lists(st.floats(0.05, 0.9), min_size=3, max_size=3),
)
def test_no_shared_scale_beats_the_best_of_a_group(means, stds):
    mean, std = wide(means, stds)
    scale, gain = best_group_shrink(mean, std, 1.0)

    def loss(log_scale: float) -> float:
        return -delta_f(mean, std, 1.0, math.exp(log_scale)).sum().item()

    starts = np.linspace(-6, 0, 31)
    best = min(starts, key=loss)
    slow = optimize.minimize_scalar(
        loss, bounds=(best - 0.3, min(0.0, best + 0.3)), method="bounded", options={"xatol": 1e-9}
    )
    highest = max(-slow.fun, -loss(0.0), delta_f(mean, std, 1.0).sum().item())
    assert gain.item() >= highest - 1e-7
    assert gain.item() == pytest.approx(delta_f(mean, std, 1.0, scale).sum().item(), abs=1e-9)


def test_groups_are_shrunk_each_by_itself():
    mean = torch.tensor([[0.3, -0.1, 0.2], [0.01, 0.02, 0.0], [2.0, -1.0, 3.0]])
    std = torch.tensor([[0.1, 0.2, 0.05], [0.1, 0.1, 0.1], [0.1, 0.2, 0.3]])
    prior_std = torch.tensor([1.0, 0.5, 2.0])
    together = best_group_shrink(mean, std, prior_std)
    for row in range(3):
        alone = best_group_shrink(mean[row], std[row], prior_std[row])
        assert together.delta_f[row] == pytest.approx(alone.delta_f.item(), abs=1e-9)
        assert together.reduced_std[row] == pytest.approx(alone.reduced_std.item(), abs=1e-7)
    assert together.reduced_std[1] == 0.0


def test_a_weight_that_the_data_ignore_is_removed_whatever_side_of_its_prior_it_is_on():
    std = torch.tensor([0.999, 1.0, 1.001, 1.05])
    scale, gain = best_shrink(torch.full((4,), 0.01), std, 1.0)
    assert scale.tolist() == [0.0] * 4
    assert bool((gain >= 0).all())
    # The spike test keeps the last two.
    assert (delta_f(torch.full((4,), 0.01), std, 1.0) > 0).tolist() == [True, False, False, False]


def test_a_shrink_does_not_widen_unless_asked():
    scale, gain = best_shrink(torch.tensor(3.0), 0.1, 1.0)
    assert (scale.item(), gain.item()) == (1.0, 0.0)
    wider, more = best_shrink(torch.tensor(3.0), 0.1, 1.0, widen=True)
    assert wider.item() > 2.9
    assert more.item() == pytest.approx(delta_f(3.0, 0.1, 1.0, wider).item(), abs=1e-5)
    group = best_group_shrink(torch.tensor([3.0, 3.0]), 0.1, 1.0, widen=True)
    assert group.reduced_std.item() == pytest.approx(wider.item(), rel=1e-6)


@given(
    data_mean=st.floats(-2, 2),
    data_std=st.floats(0.1, 3),
    prior_std=st.floats(0.3, 3),
    temperature=st.floats(0.1, 5),
)
def test_tempering_raises_the_likelihood_to_a_power(data_mean, data_std, prior_std, temperature):
    def posterior(power: float) -> list[float]:
        precision = power / data_std**2 + 1 / prior_std**2
        return [power * data_mean / data_std**2 / precision, precision**-0.5]

    found = tempered(*wide(*posterior(1.0), prior_std), temperature)
    assert [value.item() for value in found] == pytest.approx(posterior(1 / temperature), abs=1e-8)


def test_scales_are_learnt_by_gradient():
    mean, std = wide([0.5, -0.2], [0.1, 0.3])
    scale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: delta_f(mean, std, 1.0, g), (scale,))
    values = [value.requires_grad_() for value in wide(0.5, 0.2, 1.0)]
    assert torch.autograd.gradcheck(delta_f, tuple(values))
    assert torch.autograd.gradcheck(curvature_delta_f, tuple(values))


# ------------------------------------------------------------- large tensors


@pytest.mark.parametrize(
    "layout", ["contiguous", "transposed", "channels-last", "broadcast", "flat", "wide"]
)
def test_large_tensors_are_scored_as_small_ones(layout):
    random = torch.Generator().manual_seed(0)
    mean = torch.randn(90_000, generator=random) * 0.1
    std = torch.rand(90_000, generator=random) * 0.3 + 0.01
    shapes = {"flat": (90_000,), "channels-last": (30, 60, 5, 10), "wide": (1, 90_000)}
    shape = shapes.get(layout, (300, 300))
    mean, std = mean.view(shape), std.view(shape)
    prior_std: Tensor | float = 0.5
    if layout == "transposed":
        mean, std = mean.T, std.T
    if layout == "channels-last":
        mean = mean.to(memory_format=torch.channels_last)
    if layout == "broadcast":
        prior_std = torch.rand(300, 1, generator=random) + 0.1
        std = std[0]
    slow = torch.log(prior_std / std) - 0.5 * (mean / std).square()
    assert torch.allclose(delta_f(mean, std, prior_std), slow, atol=1e-6)
    out = torch.full(slow.shape, torch.nan)
    assert delta_f(mean, std, prior_std, out=out) is out
    assert torch.allclose(out, slow, atol=1e-6)
    with_scale = delta_f(mean, std, prior_std, 0.1)
    assert not torch.allclose(with_scale, slow, atol=1e-2)
    # The same weights in small tensors, which are not cut into pieces.
    for i in range(0, len(mean), max(1, len(mean) // 4)):
        few = slice(i, i + 2)
        prior = prior_std[few] if isinstance(prior_std, Tensor) else prior_std
        alone = delta_f(mean[few], std if std.dim() < mean.dim() else std[few], prior, 0.1)
        assert torch.allclose(with_scale[few], alone, rtol=1e-6, atol=1e-6)


def test_half_precision_is_computed_in_single():
    mean, std = torch.tensor([0.3, 0.0]), torch.tensor([0.1, 0.1])
    for dtype in (torch.bfloat16, torch.float16):
        found = delta_f(mean.to(dtype), std.to(dtype), 1.0)
        assert found.dtype == torch.float32
        assert torch.allclose(found, torch.tensor([-2.197, 2.303]), atol=0.05)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": [0.1, 0.0, 0.1]}, r"fc1: .*not positive \(1 of 3 entries, first \(1,\): 0\)"),
        ({"std": [0.1, 0.1, -0.1]}, "fc1: the posterior standard deviation is not positive"),
        ({"std": [0.1, math.nan, 0.1]}, "fc1: the posterior standard deviation is not finite"),
        ({"std": [0.1, math.inf, 0.1]}, "fc1: the posterior standard deviation is not finite"),
        ({"mean": [0.1, math.nan, 0.1]}, "fc1: the posterior mean is not finite"),
        ({"mean": [0.1, 0.1, math.inf]}, "fc1: the posterior mean is not finite"),
        ({"prior_std": math.inf}, "fc1: the prior standard deviation is infinite.*proper prior"),
        ({"prior_std": 0.0}, "fc1: the prior standard deviation is not positive"),
        ({"prior_std": -1.0}, "fc1: the prior standard deviation is not positive"),
        ({"prior_std": math.nan}, "fc1: the prior standard deviation is not positive"),
        ({"reduced_std": -0.1}, "fc1: the reduced prior's standard deviation is negative"),
        ({"reduced_std": math.nan}, "fc1: the reduced prior's standard deviation is negative"),
        ({"prior_mean": math.nan}, "fc1: the prior mean is not finite"),
        ({"reduced_mean": math.inf}, "fc1: the reduced prior's mean is not finite"),
    ],
)
@pytest.mark.parametrize("function", [delta_f, reduced_posterior])
def test_a_bad_posterior_or_prior_is_named_and_refused(function, change, message):
    good = {"mean": [0.1, 0.2, 0.3], "std": [0.1] * 3, "prior_std": 1.0, "reduced_std": 0.0}
    arguments = {
        key: torch.tensor(value) if isinstance(value, list) else value
        for key, value in {**good, **change}.items()
    }
    with pytest.raises(BayespareError, match=message):
        function(**arguments, name="fc1")


@pytest.mark.parametrize(
    ("curvature", "precision", "ess", "message"),
    [
        ([1.0, -1e-4], 1.0, 1.0, "fc1: the curvature is negative.*Gauss-Newton"),
        ([1.0, math.nan], 1.0, 1.0, "fc1: the curvature is not finite"),
        ([1.0, 0.0], 0.0, 1.0, "fc1: the prior precision is zero.*infinite evidence"),
        ([1.0, 0.0], -1.0, 1.0, "fc1: the prior precision is not positive"),
        ([1.0, 0.0], math.inf, 1.0, "fc1: the prior precision is not positive"),
        ([1.0, 0.0], 1.0, 0.0, "fc1: ess=0.0 is not positive"),
    ],
)
def test_a_bad_curvature_is_named_and_refused(curvature, precision, ess, message):
    with pytest.raises(BayespareError, match=message):
        curvature_delta_f(torch.zeros(2), torch.tensor(curvature), precision, ess=ess, name="fc1")


def test_an_improper_widening_is_never_an_improvement():
    # A posterior twice as wide as its prior says that the likelihood grows away from zero.
    assert delta_f(0.3, 2.0, 1.0, 1.5).item() == -math.inf
    with pytest.raises(BayespareError, match="improper"):
        reduced_posterior(0.3, 2.0, 1.0, 1.5)
    with pytest.raises(BayespareError, match="improper"):
        tempered(0.3, 2.0, 1.0, 0.1)


def test_other_bad_input_is_refused():
    with pytest.raises(BayespareError, match="out has shape"):
        delta_f(torch.zeros(3), 0.1, 1.0, out=torch.zeros(2))
    with pytest.raises(BayespareError, match="temperature=0"):
        tempered(0.3, 0.2, 1.0, 0.0)
    with pytest.raises(BayespareError, match="margin"):
        best_shrink(0.3, 0.2, 1.0, margin=0.0)
    with pytest.raises(BayespareError, match="no weights"):
        best_group_shrink(torch.zeros(2, 0), 0.1, 1.0)
    assert delta_f(torch.zeros(0), torch.zeros(0), 1.0).shape == (0,)
