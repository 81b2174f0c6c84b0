"""Every metric against a loop that follows its definition, scikit-learn, or an exact case."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from bayespare.errors import BayespareError
from bayespare.measure import (
    ClassPrediction,
    RealPrediction,
    brier,
    coverage,
    ece,
    ece_chance,
    ece_mass,
    evaluate,
    gaussian_nll,
    nll,
    paired_difference,
    reliability,
    rmse,
    wilson_interval,
)


def random_case(seed: int, rows: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits.log_softmax(1), torch.randint(0, classes, (rows,), generator=generator)


def classified(log_probs: Tensor) -> ClassPrediction:
    return ClassPrediction(log_probs, torch.zeros(len(log_probs), dtype=torch.float64))


cases = st.tuples(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 6))


@settings(max_examples=60, deadline=None)
@given(cases, st.integers(1, 20))
def test_ece_matches_a_loop_over_bins(case: tuple[int, int, int], bins: int) -> None:
    log_probs, y = random_case(*case)
    rows = [
        (max(p), p.index(max(p)) == t)
        for p, t in zip(log_probs.exp().tolist(), y.tolist(), strict=True)
    ]
    slow = 0.0
    for b in range(bins):
        inside = [(c, r) for c, r in rows if b / bins < c <= (b + 1) / bins]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            right = sum(r for _, r in inside) / len(inside)
            slow += len(inside) / len(rows) * abs(right - confidence)
    assert ece(log_probs.exp(), y, bins) == pytest.approx(slow, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 15))
def test_ece_by_chance_is_the_mean_over_all_outcomes(seed: int, rows: int, bins: int) -> None:
    """Every pattern of right and wrong, weighted by its probability under the confidences."""
    probs = random_case(seed, rows, 3)[0].exp()
    confidence, label = probs.max(1)
    expected = square = 0.0
    for pattern in itertools.product((True, False), repeat=rows):
        right = torch.tensor(pattern)
        weight = float(torch.where(right, confidence, 1 - confidence).prod())
        error = ece(probs, torch.where(right, label, (label + 1) % 3), bins)
        expected, square = expected + weight * error, square + weight * error**2
    spread = math.sqrt(max(0.0, square - expected**2) / 2000)
    assert ece_chance(probs, bins, draws=2000) == pytest.approx(expected, abs=5 * spread + 1e-9)


@settings(max_examples=60, deadline=None)
@given(cases, st.integers(1, 20))
def test_equal_mass_ece_matches_a_loop_over_sorted_rows(
    case: tuple[int, int, int], bins: int
) -> None:
    log_probs, y = random_case(*case)
    probs = log_probs.exp()
    rows = sorted(
        (max(p), p.index(max(p)) == t) for p, t in zip(probs.tolist(), y.tolist(), strict=True)
    )
    n = len(rows)
    slow = 0.0
    for b in range(bins):
        inside = rows[b * n // bins : (b + 1) * n // bins]
        if inside:
            slow += abs(sum(r for _, r in inside) - sum(c for c, _ in inside)) / n
    assert ece_mass(probs, y, bins) == pytest.approx(slow, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(cases)
def test_the_order_of_the_rows_does_not_matter(case: tuple[int, int, int]) -> None:
    log_probs, y = random_case(*case)
    # Few distinct confidences, so that bins have ties at their edges.
    log_probs = log_probs.round().log_softmax(1)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(case[0]))
    one = evaluate(classified(log_probs), y)
    two = evaluate(classified(log_probs[order]), y[order])
    assert one.keys() == two.keys()
    for key in one:
        assert one[key] == pytest.approx(two[key], abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(cases)
def test_brier_and_nll_match_loops_and_scikit_learn(case: tuple[int, int, int]) -> None:
    log_probs, y = random_case(*case)
    probs = log_probs.exp()
    slow_brier = slow_nll = 0.0
    for p, label in zip(probs.tolist(), y.tolist(), strict=True):
        slow_brier += sum((q - (k == label)) ** 2 for k, q in enumerate(p)) / len(y)
        slow_nll -= math.log(p[label]) / len(y)
    assert brier(probs, y) == pytest.approx(slow_brier)
    assert nll(log_probs, y) == pytest.approx(slow_nll)
    classes = list(range(probs.shape[1]))
    assert nll(log_probs, y) == pytest.approx(log_loss(y.numpy(), probs.numpy(), labels=classes))
    if probs.shape[1] == 2:
        # scikit-learn's binary score counts one of the two classes.
        half = brier_score_loss(y.numpy(), probs[:, 1].numpy(), pos_label=1)
        assert brier(probs, y) == pytest.approx(2 * half)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.data())
def test_wilson_interval_solves_its_quadratic_and_matches_scipy(
    n: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    z = stats.norm.ppf(0.975)
    for bound in (low, high):
        # The bounds are the shares at which the observed one is just z standard errors away.
        assert (k / n - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / n, abs=1e-9)
    peer = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((peer.low, peer.high), abs=1e-12)
    assert 0 <= low <= k / n <= high <= 1


def test_wilson_interval_refuses_what_is_no_share() -> None:
    with pytest.raises(BayespareError, match="3 of 2"):
        wilson_interval(3, 2)


def test_scores_of_four_rows_by_hand() -> None:
    """Card of SpaM, TV13."""
    probs = torch.tensor(
        [[0.72, 0.18, 0.10], [0.29, 0.42, 0.29], [0.04, 0.93, 0.03], [0.36, 0.33, 0.31]],
        dtype=torch.float64,
    )
    y = torch.tensor([0, 2, 1, 0])
    assert nll(probs.log(), y) == pytest.approx(0.6651500908, abs=1e-9)
    assert brier(probs, y) == pytest.approx(0.37685)
    assert ece(probs, y, 10) == pytest.approx(0.3525)


def test_a_perfect_and_a_constant_classifier() -> None:
    y = torch.arange(10) % 2
    perfect = torch.nn.functional.one_hot(y, 2).double().mul(2000).log_softmax(1)
    scores = evaluate(classified(perfect), y)
    assert scores["accuracy"] == 1.0
    for key in ("nll", "ece", "ece_mass", "brier"):
        assert scores[key] == pytest.approx(0.0, abs=1e-12)
    constant = torch.full((10, 2), 0.5, dtype=torch.float64).log()
    scores = evaluate(classified(constant), y)
    assert scores["ece"] == scores["ece_mass"] == pytest.approx(0.0, abs=1e-12)
    assert scores["nll"] == pytest.approx(math.log(2))
    assert scores["brier"] == pytest.approx(0.5)


def test_a_sure_and_wrong_classifier_has_a_large_but_finite_nll() -> None:
    log_probs = torch.tensor([[0.0, -1e5]], dtype=torch.float64)
    assert evaluate(classified(log_probs), torch.tensor([1]))["nll"] == pytest.approx(1e5)


def test_reliability_rows_add_up() -> None:
    log_probs, y = random_case(3, 200, 4)
    rows = reliability(log_probs.exp(), y)
    assert sum(count for _, _, count in rows) == 200
    right = sum(accuracy * count for _, accuracy, count in rows) / 200
    assert right == pytest.approx(float((log_probs.argmax(1) == y).double().mean()))
    assert [c for c, _, _ in rows] == sorted(c for c, _, _ in rows)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_regression_scores_match_loops_and_scipy(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    mean, y = rng.normal(size=rows), rng.normal(size=rows)
    variance = rng.uniform(0.1, 3, size=rows)
    made = [torch.from_numpy(a) for a in (mean, variance, y)]
    slow = -np.mean([stats.norm.logpdf(y[i], mean[i], variance[i] ** 0.5) for i in range(rows)])
    assert gaussian_nll(*made) == pytest.approx(slow)
    slow = math.sqrt(sum((mean[i] - y[i]) ** 2 for i in range(rows)) / rows)
    assert rmse(made[0], made[2]) == pytest.approx(slow)
    inside = coverage(*made)
    for level in (0.5, 0.9, 0.95):
        low, high = stats.norm.interval(level, mean, variance**0.5)
        assert inside[f"{100 * level:g}"] == pytest.approx(((low <= y) & (y <= high)).mean())


def test_exact_bayesian_regression_covers_its_levels() -> None:
    """Conjugate line through the origin, many worlds drawn from the prior: coverage is exact."""
    rng = np.random.default_rng(0)
    means, variances, targets = [], [], []
    for _ in range(3000):
        weight = rng.normal()
        x = rng.normal(size=5)
        y = weight * x + 0.5 * rng.normal(size=5)
        precision = 1 + (x @ x) / 0.25
        new = rng.normal()
        means.append(new * (x @ y) / 0.25 / precision)
        variances.append(new**2 / precision + 0.25)
        targets.append(weight * new + 0.5 * rng.normal())
    made = [torch.tensor(a, dtype=torch.float64) for a in (means, variances, targets)]
    inside = coverage(*made)
    for level in (0.5, 0.9, 0.95):
        error = 4 * math.sqrt(level * (1 - level) / 3000)
        assert inside[f"{100 * level:g}"] == pytest.approx(level, abs=error)


def test_evaluate_regression_has_the_keys_of_the_metrics_file() -> None:
    mean = torch.zeros(4, dtype=torch.float64)
    prediction = RealPrediction(mean, mean + 1, mean)
    scores = evaluate(prediction, torch.tensor([[0.0], [1.0], [-1.0], [2.0]]))
    assert scores.keys() == {"rmse", "nll", "coverage"}
    assert scores["rmse"] == pytest.approx(math.sqrt(6 / 4))


def test_paired_difference_matches_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(50) < 0.8, rng.random(50) < 0.6
    mean, error = paired_difference(torch.from_numpy(a), torch.from_numpy(b))
    assert mean == pytest.approx(a.mean() - b.mean())
    peer = stats.ttest_rel(a.astype(float), b.astype(float))
    assert mean / error == pytest.approx(peer.statistic)
    assert paired_difference(torch.from_numpy(a), torch.from_numpy(a)) == (0.0, 0.0)


def test_bad_requests_are_one_line_errors() -> None:
    log_probs, _ = random_case(0, 3, 2)
    zero = torch.zeros(3, dtype=torch.float64)
    real = RealPrediction(zero, zero + 1, zero)
    for prediction, y, message in [
        (classified(log_probs), torch.zeros(2).long(), "3 rows were predicted"),
        (classified(log_probs), torch.tensor([0, 1, 2]), "from 0 to 1"),
        (classified(log_probs), torch.tensor([0.0, 1.0, 1.0]), "whole numbers"),
        (real, torch.tensor([0.0, math.nan, 1.0]), "not finite"),
        (RealPrediction(zero, zero, zero), zero, "noise_std"),
    ]:
        with pytest.raises(BayespareError, match=message):
            evaluate(prediction, y)
    with pytest.raises(BayespareError, match="two scores per row"):
        paired_difference(torch.ones(3), torch.ones(4))
