"""From log-odds to a set of features: rules, correlated columns, several fits, real tables."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bayespare import data
from bayespare.errors import BayespareError
from bayespare.select import Limits, choose, learner_scores, names_of, pooled_log_odds, select

ODDS = st.lists(st.floats(-50, 50), min_size=1, max_size=8)


def independent(columns: int) -> torch.Tensor:
    return torch.randn(200, columns, generator=torch.Generator().manual_seed(0))


@given(st.lists(ODDS, min_size=1, max_size=4).filter(lambda rows: len({len(r) for r in rows}) == 1))
def test_pooled_log_odds_are_those_of_the_mean_probability(rows):
    odds = torch.tensor(rows, dtype=torch.float64)
    pooled = pooled_log_odds(odds)
    assert torch.allclose(pooled.sigmoid(), odds.sigmoid().mean(0), atol=1e-12)
    assert torch.allclose((-pooled).sigmoid(), (-odds).sigmoid().mean(0), atol=1e-12)


@given(ODDS)
def test_the_median_rule_keeps_what_is_more_probable_than_not(odds):
    line = torch.tensor(odds, dtype=torch.float64)
    chosen = choose(line, torch.arange(len(line)), independent(len(line)), Limits())
    assert chosen.units.tolist() == [value > 0 for value in odds]
    assert chosen.correlated == []


def test_copies_share_their_evidence():
    x = independent(3)
    x = torch.cat((x, 2 * x[:, :1]), 1)
    odds = torch.tensor([-0.1, -3.0, 4.0, -0.2], dtype=torch.float64)
    chosen = choose(odds, torch.arange(4), x, Limits())
    ((columns, together),) = chosen.correlated
    assert columns == [0, 3]
    apart = (1 - odds[[0, 3]].sigmoid()).prod()
    assert together == pytest.approx(float(1 - apart))
    assert chosen.units.tolist() == [True, False, True, False]


def test_the_most_features_are_counted_in_inputs():
    """A one-hot column of three is three inputs; where they do not fit, a likely one that does."""
    unit = torch.tensor([0, 1, 1, 1, 2])
    all_fit, two, without = [True] * 3, [True, True, False], [True, False, True]
    for odds, most, kept in (
        ([5.0, 4.0, 3.0], 5, all_fit),
        ([5.0, 4.0, 3.0], 4, two),
        ([5.0, 4.0, 3.0], 3, without),
        ([5.0, 4.0, -3.0], 3, [True, False, False]),
        ([4.0, 5.0, 3.0], 2, without),
        ([4.0, 5.0, 3.0], 1, [True, False, False]),
    ):
        line = torch.tensor(odds, dtype=torch.float64)
        assert choose(line, unit, independent(5), Limits(max_features=most)).units.tolist() == kept


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"max_features": 0}, "max_features=0"),
        ({"max_features": "5"}, "max_features='5': must be a whole number, 1 or more"),
        ({"fdr": 1.0}, r"fdr=1\.0: must be a number between 0 and 1"),
        ({"fdr": "0.1"}, r"fdr='0\.1': must be a number between 0 and 1"),
        ({"correlation": 0.0}, r"correlation=0\.0: must be a number between 0 and 1"),
        ({"rule": "median "}, "rule='median ': not a rule .did you mean 'median'"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits, says):
    with pytest.raises(BayespareError, match=says):
        Limits(**limits)


def test_images_are_refused():
    from bayespare.data import Splits

    splits = data.load("digits")
    assert isinstance(splits, Splits)
    image = splits.train.subset(torch.arange(60))
    object.__setattr__(image, "x", image.x.view(-1, 1, 8, 8))
    object.__setattr__(splits, "train", image)
    with pytest.raises(BayespareError, match=r"shape \(1, 8, 8\); only rows of features"):
        select(splits)


def test_a_method_that_judges_no_inputs_is_refused():
    with pytest.raises(BayespareError, match="method=flat-map: keeps everything"):
        select(data.load("wine"), method="flat-map", epochs=4)
    with pytest.raises(BayespareError, match="seeds=0"):
        select(data.load("wine"), seeds=0)


def test_scores_read_the_inputs_that_are_kept():
    splits = data.load("wine")
    kept = torch.ones(splits.train.inputs[0], dtype=torch.bool)
    for own in learner_scores(splits, kept).values():
        assert own["all"] == own["selected"] > 0.8
    assert all("selected" not in own for own in learner_scores(splits, ~kept).values())


def test_a_bundled_table_from_end_to_end():
    found = select(data.load("diabetes"), seeds=2, epochs=2000)
    names = [feature.name for feature in found.features]
    assert sorted(names) == sorted(names_of(data.load("diabetes").train))
    # What every analysis of these data finds: body mass, blood pressure, triglycerides.
    assert {"bmi", "s5"} <= set(found.selected)
    assert 2 <= len(found.selected) < 10
    assert sum(feature.importance for feature in found.features) == pytest.approx(1)
    assert found.scores["linear model"]["selected"] > 0.25
    for feature in found.features:
        assert feature.probability == pytest.approx(1 / (1 + math.exp(-feature.log_odds)))
        assert feature.selected == (feature.log_odds > 0)
        assert feature.stability in (0.0, 0.5, 1.0)
