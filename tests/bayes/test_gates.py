"""Gates: their KL, their draw and their prior, by the card's vectors and by obvious twins."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bayespare.bayes.gates import bernoulli_kl, draw_gates, layer_inclusion, theory_inclusion

LAMBDA = 0.001541135531010872
LOGIT_99 = math.log(99)


def wide(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------------------------------- KL


@pytest.mark.parametrize(
    ("inclusion", "prior", "expected"),
    [
        (0.99, 1e-4, 9.062236433951577),
        (0.99, LAMBDA, 6.354497307595486),
        (0.5, LAMBDA, 2.5452418698270227),
        (LAMBDA, LAMBDA, 0.0),
    ],
)
def test_kl_has_the_published_values(inclusion, prior, expected):
    logit = torch.logit(wide(inclusion))
    assert bernoulli_kl(logit, prior).item() == pytest.approx(expected, abs=1e-12)


def test_kl_of_a_certain_gate_is_minus_the_log_of_its_prior():
    sure = bernoulli_kl(wide(700.0, -700.0), 1e-4)
    assert sure.tolist() == pytest.approx([9.210340371976184, 1.0000500033e-4], rel=1e-9)


@given(logit=st.floats(-30, 30), prior=st.floats(1e-6, 1 - 1e-6))
def test_kl_is_the_sum_over_both_values(logit, prior):
    inclusion, exclusion = 1 / (1 + math.exp(-logit)), 1 / (1 + math.exp(logit))
    expected = inclusion * math.log(inclusion / prior)
    expected += exclusion * math.log(exclusion / (1 - prior))
    assert bernoulli_kl(wide(logit), prior).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("logit", [-100.0, -90.0, -17.0, 17.0, 90.0, 100.0])
@pytest.mark.parametrize("prior", [1e-6, 0.01, 0.999])
def test_kl_is_finite_in_float32_where_the_published_code_is_not(logit, prior):
    narrow = torch.tensor(logit, requires_grad=True)
    value = bernoulli_kl(narrow, prior)
    value.backward()
    expected = bernoulli_kl(wide(logit), prior).item()
    assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert abs(narrow.grad.item()) < 1e-4


@given(logit=st.floats(-8, 8), prior=st.floats(1e-4, 0.9999))
def test_kl_gradient_is_the_distance_of_the_log_odds(logit, prior):
    theta = wide(logit).requires_grad_()
    bernoulli_kl(theta, prior).sum().backward()
    inclusion = 1 / (1 + math.exp(-logit))
    expected = inclusion * (1 - inclusion) * (logit - math.log(prior / (1 - prior)))
    assert theta.grad.item() == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_kl_gradient_has_the_published_value():
    theta = wide(0.0).requires_grad_()
    bernoulli_kl(theta, 0.01).sum().backward()
    assert theta.grad.item() == pytest.approx(1.1487799625336474, abs=1e-12)


def test_priors_may_differ_by_gate():
    priors = wide(0.01, 0.5)
    together = bernoulli_kl(wide(1.0, -2.0), priors)
    assert together.tolist() == [
        bernoulli_kl(wide(1.0), 0.01).item(),
        bernoulli_kl(wide(-2.0), 0.5).item(),
    ]


@pytest.mark.parametrize(
    ("slab", "expected"), [(0.0, 0.00154), (5.0, 1.03923e-5), (20.0, 3.17907e-12)]
)
def test_without_a_likelihood_the_optimum_is_the_prior_less_the_slab(slab, expected):
    """Found by descent, not by formula: logit(gamma*) = logit(lambda) - K_slab."""
    theta = wide(0.0).requires_grad_()
    for _ in range(40):
        loss = (bernoulli_kl(theta, 0.00154) + theta.sigmoid() * slab).sum()
        (grad,) = torch.autograd.grad(loss, theta)
        inclusion = theta.detach().sigmoid()
        # The natural gradient: the plain one vanishes with the gate.
        theta = (theta.detach() - grad / (inclusion * (1 - inclusion))).requires_grad_()
    assert theta.detach().sigmoid().item() == pytest.approx(expected, rel=1e-5)


# ----------------------------------------------------------------------- draw


@given(
    logit=st.floats(-9, 9),
    temperature=st.sampled_from([0.1, 0.5, 2.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_drawn_gates_are_exactly_bernoulli(logit, temperature, dtype):
    """Over all uniforms on a grid the share of ones is sigmoid(logit), at every temperature."""
    points = 20_000
    uniform = (torch.arange(points, dtype=dtype) + 0.5) / points
    drawn = draw_gates(torch.full((points,), logit, dtype=dtype), uniform, temperature)
    assert set(drawn.tolist()) <= {0.0, 1.0}
    assert drawn.dtype == dtype
    assert drawn.mean().item() == pytest.approx(1 / (1 + math.exp(-logit)), abs=1.5 / points)


def test_drawn_gates_by_monte_carlo():
    generator = torch.Generator().manual_seed(0)
    logit = torch.full((2_000_000,), LOGIT_99)
    for temperature in (0.5, 2.0):
        uniform = torch.empty_like(logit).uniform_(1e-7, 1 - 1e-7, generator=generator)
        assert draw_gates(logit, uniform, temperature).mean().item() == pytest.approx(
            0.99, abs=5 * math.sqrt(0.99 * 0.01 / 2e6)
        )


@pytest.mark.parametrize(
    ("uniform", "relaxed"),
    [(0.5, 0.9998979800), (0.005, 0.1983927776), (0.02, 0.8032289789)],
)
def test_draw_has_the_published_relaxation(uniform, relaxed):
    logit = wide(LOGIT_99).requires_grad_()
    gate = draw_gates(logit, wide(uniform), 0.5)
    gate.sum().backward()
    assert gate.item() == float(relaxed > 0.5)
    assert logit.grad.item() == pytest.approx(relaxed * (1 - relaxed) / 0.5, abs=1e-8)


def test_a_gate_on_the_edge_is_shut_and_has_the_published_gradient():
    logit = wide(0.0).requires_grad_()
    gate = draw_gates(logit, wide(0.5), 0.5)
    gate.sum().backward()
    assert (gate.item(), logit.grad.item()) == (0.0, 0.5)
    published = wide(LOGIT_99).requires_grad_()
    draw_gates(published, wide(0.01), 0.5).sum().backward()
    assert published.grad.item() == pytest.approx(0.5, abs=1e-10)


@given(
    logit=st.floats(-5, 5),
    uniform=st.floats(0.01, 0.99),
    temperature=st.floats(0.3, 3),
    upstream=st.floats(-3, 3),
)
def test_draw_passes_the_gradient_of_the_relaxed_gate(logit, uniform, temperature, upstream):
    theta = wide(logit).requires_grad_()
    (draw_gates(theta, wide(uniform), temperature) * upstream).sum().backward()
    twin = wide(logit).requires_grad_()
    noise = math.log(uniform) - math.log1p(-uniform)
    (torch.sigmoid((twin + noise) / temperature) * upstream).sum().backward()
    assert theta.grad.item() == pytest.approx(twin.grad.item(), rel=1e-9, abs=1e-12)


def test_draw_is_finite_in_float32_at_extreme_odds_and_uniforms():
    logit = torch.tensor([-100.0, -100.0, 100.0, 100.0], requires_grad=True)
    gate = draw_gates(logit, torch.tensor([1e-7, 1 - 1e-7, 1e-7, 1 - 1e-7]))
    gate.sum().backward()
    assert gate.tolist() == [0, 0, 1, 1]
    assert logit.grad.tolist() == [0, 0, 0, 0]


def test_draw_leaves_its_arguments_alone():
    logit, uniform = wide(0.3, -0.2), wide(0.1, 0.9)
    draw_gates(logit, uniform)
    assert (logit.tolist(), uniform.tolist()) == ([0.3, -0.2], [0.1, 0.9])


# ---------------------------------------------------------------------- prior


def test_theory_has_the_published_values():
    assert theory_inclusion((784, 400, 400, 10), 60_000) == pytest.approx(
        [LAMBDA, 0.002343842915729095], rel=1e-12
    )
    assert theory_inclusion((800, 800, 500, 10), 60_000) == pytest.approx(
        [0.0007476536190355422, 0.0011962462408110826], rel=1e-12
    )
    assert theory_inclusion((784, 400, 400, 10), 60_000, 0.0) == pytest.approx([0.0025] * 2)


@pytest.mark.parametrize(
    ("constant", "expected"),
    [
        (1e-10, (2.38e-3, 2.48e-3)),
        (1e-9, (1.54e-3, 2.34e-3)),
        (1e-8, (1.98e-5, 1.31e-3)),
        (1e-7, (2.4e-24, 4.0e-6)),
    ],
)
def test_theory_depends_on_its_constant_as_published(constant, expected):
    got = theory_inclusion((784, 400, 400, 10), 60_000, constant)
    assert got == pytest.approx(expected, rel=2e-2)


@given(
    widths=st.lists(st.integers(1, 900), min_size=3, max_size=6),
    examples=st.integers(2, 10**6),
)
def test_theory_is_the_card_s_formula_term_by_term(widths, examples):
    layers = len(widths) - 2  # L
    u = [
        (layers + 1) ** 2
        * (
            math.log(examples)
            + math.log(layers + 1)
            + math.log(widths[layer] + 1)
            + math.log(widths[layer + 1])
        )
        for layer in range(layers + 1)
    ]
    for layer, got in enumerate(theory_inclusion(widths, examples)):
        v = (widths[layer] + 1) ** 2
        v += sum(math.log(widths[m] + 1) for m in range(layers + 1) if m != layer)
        v += layers + math.log(widths[layer + 1]) + math.log(widths[layer] + 1)
        v += math.log(examples) + math.log(sum(u))
        expected = math.exp(-math.log(widths[layer + 1]) - 1e-9 * (widths[layer] + 1) * v)
        assert got == pytest.approx(expected, rel=1e-12)


def test_the_card_s_complexities_are_those_of_its_formula():
    """u and v_l of the twin above at the published sizes, so that the twin itself is checked."""
    u = [9 * math.log(60_000 * 3 * (a + 1) * b) for a, b in ((784, 400), (400, 400), (400, 10))]
    assert u == pytest.approx([222.8207, 216.7752, 183.5753], abs=1e-4)
    total = math.log(sum(u))
    v0 = 785**2 + 2 * math.log(401) + 2 + math.log(400 * 785 * 60_000) + total
    v1 = 401**2 + math.log(785 * 401) + 2 + math.log(400 * 401 * 60_000) + total
    assert (v0, v1) == pytest.approx((616269.0820, 160845.0820), abs=1e-3)


@given(
    widths=st.lists(st.integers(1, 900), min_size=2, max_size=6),
    examples=st.integers(2, 10**6),
)
def test_layers_of_an_mlp_have_the_values_of_its_widths(widths, examples):
    found = layer_inclusion(list(pairwise(widths)), examples)
    assert len(found) == len(widths) - 1
    assert found[:-1] == theory_inclusion(widths, examples)
    assert layer_inclusion([(9, k) for k in widths], examples, 0.0) == pytest.approx(
        [1 / k for k in widths]
    )
