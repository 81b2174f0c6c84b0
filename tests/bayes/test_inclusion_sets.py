"""Groups, sets and importance, by enumeration and by the card's vectors (T12, T14)."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bayespare.bayes.inclusion import (
    correlated_groups,
    discovery_set,
    drop,
    energy,
    gated_moments,
    group_log_odds,
    median_set,
    path_inclusion,
    recovery,
    relative,
)
from bayespare.errors import BayespareError

LISTS = st.lists(st.floats(-8, 8), min_size=1, max_size=8)


def wide(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ----------------------------------------------------------------------------- groups


def test_t14_noisy_or():
    found = group_log_odds(torch.logit(wide(0.1, 0.3, 0.05)), [0, 0, 0])
    assert found.sigmoid().item() == pytest.approx(0.4015, abs=1e-12)


@given(odds=LISTS, data=st.data())
def test_a_group_is_in_if_a_member_is(odds, data):
    cut = data.draw(st.integers(1, len(odds)))
    groups = [int(i >= cut) for i in range(len(odds))]
    found = group_log_odds(wide(*odds), groups)
    for number in set(groups):
        none = math.prod(
            1 - 1 / (1 + math.exp(-v)) for v, g in zip(odds, groups, strict=True) if g == number
        )
        assert found[number].sigmoid().item() == pytest.approx(1 - none, abs=1e-12)


def test_groups_keep_their_precision_far_out():
    narrow = torch.tensor([-60.0, -60.0, 60.0, 50.0])
    found = group_log_odds(narrow, [0, 0, 1, 1])
    assert found.tolist() == pytest.approx([-60 + math.log(2), 110.0], abs=1e-4)
    assert group_log_odds(torch.tensor([torch.inf, -3.0]), [0, 0]).item() == torch.inf
    assert group_log_odds(torch.tensor([-torch.inf]), [0]).item() == -torch.inf


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(BayespareError, match="do not fit"):
        group_log_odds(torch.zeros(3), [0, 1])
    with pytest.raises(BayespareError, match="without a gap"):
        group_log_odds(torch.zeros(3), [0, 2, 2])


def test_paths_are_counted_where_they_do_not_cross():
    """One hidden unit after each input: nothing is shared, so the rule is exact."""
    first = wide(0.3, 0.0, 0.0, 0.8).view(2, 2)
    second = wide(0.5, 0.9).view(1, 2)
    assert path_inclusion([first, second]).tolist() == pytest.approx([0.15, 0.72])
    wide_last = wide(0.5, 0.2, 0.1, 0.9).view(2, 2)
    expected = [0.3 * (1 - 0.5 * 0.9), 0.8 * (1 - 0.8 * 0.1)]
    assert path_inclusion([first, wide_last]).tolist() == pytest.approx(expected)


@pytest.fixture(params=[1, 2**24])
def slices(request, monkeypatch):
    """One column at a time, or all at once."""
    monkeypatch.setattr("bayespare.bayes.inclusion.select.WORKING", request.param)


@pytest.mark.usefixtures("slices")
def test_columns_that_follow_each_other_are_grouped():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 7, generator=generator)
    x[:, 3] = -2 * x[:, 0] + 1
    x[:, 5] = x[:, 3] + 0.05 * torch.randn(200, generator=generator)
    x[:, 6] = x[:, 2]
    x[:, 4] = 3.0
    assert correlated_groups(x) == [[0, 3, 5], [2, 6]]
    assert correlated_groups(x[:, [1, 4]]) == []


@pytest.mark.usefixtures("slices")
def test_columns_are_grouped_through_others():
    """A chain, 15 degrees a step: neighbours correlate by 0.966, those two steps apart by 0.866."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(500, 2, generator=generator)
    plane, _ = torch.linalg.qr(noise - noise.mean(0))
    angle = torch.deg2rad(15.0 * torch.arange(6))
    chain = plane @ torch.stack([angle.cos(), angle.sin()])
    assert correlated_groups(chain[:, [0, 2, 4]]) == []
    order = [5, 2, 0, 3, 1, 4]
    assert correlated_groups(chain[:, order]) == [[0, 1, 2, 3, 4, 5]]


# ------------------------------------------------------------------------------- sets


def test_the_median_model_has_what_is_more_likely_in_than_out():
    odds = wide(3.0, -0.1, 0.1, 0.0, 40.0)
    assert median_set(odds).tolist() == [True, False, True, False, True]
    assert median_set(odds, most=2).tolist() == [True, False, False, False, True]


@given(odds=LISTS, rate=st.sampled_from([0.01, 0.05, 0.2, 0.5]))
def test_the_discovery_set_is_the_largest_within_the_rate(odds, rate):
    values = wide(*odds)
    chosen = discovery_set(values, rate)
    excluded = (-values).sigmoid()
    sizes = [
        len(subset)
        for size in range(1, len(odds) + 1)
        for subset in itertools.combinations(range(len(odds)), size)
        if float(excluded[list(subset)].mean()) <= rate
    ]
    assert int(chosen.sum()) == max(sizes, default=0)
    if chosen.any():
        assert float(excluded[chosen].mean()) <= rate


def test_sets_refuse_what_makes_no_sense():
    with pytest.raises(BayespareError, match="max_features=0"):
        median_set(wide(1.0), most=0)
    with pytest.raises(BayespareError, match="between 0 and 1"):
        discovery_set(wide(1.0), 1.0)


def test_t14_recovery():
    truth = torch.tensor([1, 0, 1, 0, 0, 1, 0, 0]).bool()
    scores = wide(0.9, 0.8, 0.7, 0.4, 0.35, 0.3, 0.2, 0.1)
    found = recovery(truth, scores, scores > 0.5)
    assert found.auroc == pytest.approx(0.733333, abs=1e-6)
    assert [found.precision, found.recall, found.f1] == pytest.approx([2 / 3] * 3)
    assert found.accuracy == 0.75
    assert found.r_precision == pytest.approx(2 / 3)


def test_ties_count_half_and_an_empty_selection_is_precise():
    truth = torch.tensor([True, False])
    found = recovery(truth, wide(1.0, 1.0), torch.zeros(2, dtype=torch.bool))
    assert (found.auroc, found.precision, found.recall, found.f1) == (0.5, 1.0, 0.0, 0.0)
    with pytest.raises(BayespareError, match="null"):
        recovery(torch.tensor([True]), wide(1.0), torch.tensor([True]))


# ------------------------------------------------------------------------- importance


def test_drop_is_the_change_when_a_node_is_silenced():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 3, generator=generator, dtype=torch.float64)
    weights = wide(2.0, 0.0, -1.0)
    whole = x @ weights
    effects = torch.stack([drop(whole, (x * (torch.arange(3) != j)) @ weights) for j in range(3)])
    assert effects.tolist() == pytest.approx([2, 0, 1], rel=0.03)
    assert relative(effects).sum().item() == pytest.approx(1)
    assert relative(torch.zeros(3)).tolist() == [0, 0, 0]


def test_drop_of_logits_knows_no_constant():
    logits = torch.randn(10, 3, dtype=torch.float64)
    assert drop(logits, logits + 5).item() == pytest.approx(0, abs=1e-12)
    assert drop(logits[:, :1], logits[:, :1] + 5).item() == pytest.approx(5)


def test_energy_is_the_mean_square_by_monte_carlo():
    mean, std = wide(0.5, -1.0).view(1, 2), wide(0.2, 0.4).view(1, 2)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    draws = (mean + std * noise).square().sum(1).mean()
    assert energy(wide(0.7), mean, std).item() == pytest.approx(0.7 * draws.item(), rel=0.01)


def test_t12_outputs_that_share_a_gate_depend_on_each_other():
    inputs, inclusion = wide(0.5, -1, 2), wide(0.9, 0.5, 0.1)
    mean = wide(0.3, 0.1, -0.2, 0.4, 0.05, 0.6).view(3, 2)
    std = wide(0.01, 0.02, 0.03, 0.01, 0.02, 0.02).view(3, 2).sqrt()
    centre, cov = gated_moments(inputs, mean, std, inclusion)
    assert centre.tolist() == pytest.approx([0.245, -0.035])
    assert cov.diagonal().tolist() == pytest.approx([0.038175, 0.187325])
    assert cov[0, 1].item() == pytest.approx(-0.008525)
    generator = torch.Generator().manual_seed(0)
    gates = torch.bernoulli(inclusion.expand(1_000_000, 3), generator=generator)
    noise = torch.randn(1_000_000, 3, 2, generator=generator, dtype=torch.float64)
    drawn = torch.einsum("nj,njk->nk", gates * inputs, mean + std * noise)
    assert torch.cov(drawn.T).flatten().tolist() == pytest.approx(cov.flatten().tolist(), abs=1e-3)
