"""FeatureSelector: rules, groups, correlated features, frames; and weights in training."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from torch import nn

from bayespare.bayes.likelihood import Categorical
from bayespare.data import Batches, from_tensors
from bayespare.sklearn import FeatureSelector, SparseClassifier, SparseRegressor
from bayespare.training.loop import run_epoch, validate

SHORT: dict[str, Any] = {"epochs": 3000, "hidden": (16,), "random_state": 0}


@cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """y = 2 x0 - x3 + noise among 8 columns; 6 is a near copy of 3, 7 is constant."""
    r = np.random.default_rng(0)
    x = r.standard_normal((300, 8))
    x[:, 6] = 3 * x[:, 3] + 0.3 * r.standard_normal(300)
    x[:, 7] = 2.5
    return x, 2 * x[:, 0] - x[:, 3] + 0.3 * r.standard_normal(300)


@cache
def fitted() -> FeatureSelector:
    return FeatureSelector(**SHORT).fit(*data())


def test_signal_is_kept_and_noise_is_not():
    selector = fitted()
    support = selector.get_support()
    assert support[0]
    assert support[3] or support[6]
    assert not support[[1, 2, 4, 5, 7]].any()
    x, _ = data()
    assert np.array_equal(selector.transform(x), x[:, support])
    assert selector.constant_features_ == [7]
    assert isinstance(selector.estimator_, SparseRegressor)
    (group,) = selector.correlated_groups_
    assert group["features"] == [3, 6]
    p = selector.inclusion_probabilities_[[3, 6]]
    assert group["probability"] == pytest.approx(1 - np.prod(1 - p), abs=1e-9)
    assert selector.importances_.sum() == pytest.approx(1)


def kept(odds: list[float], **settings: Any) -> list[int]:
    """Which features a selector keeps whose network said these log-odds."""
    selector = FeatureSelector(**settings)
    selector.n_features_in_ = len(odds)
    return selector._chosen(data()[0], np.array(odds)).units.nonzero()[:, 0].tolist()


def test_copies_that_share_their_evidence_have_the_best_of_them_kept():
    odds = [5.0, -3, -3, -0.2, -3, -3, -0.1, -np.inf]
    assert kept(odds) == [0, 6]
    assert kept([5.0, -3, -3, -2, -3, -3, -2, -9]) == [0]
    assert kept(odds, correlation=0.999) == [0]


def test_the_discovery_rule_bounds_the_mean():
    odds = [5.0, 1.0, 0.5, -8, -8, -8, -8, -8]
    assert kept(odds) == [0, 1, 2]
    assert kept(odds, rule="fdr", fdr=0.1) == [0]
    assert kept(odds, rule="fdr", fdr=0.25) == [0, 1, 2]


def test_the_likeliest_are_left_when_only_some_may_stay():
    assert kept([1.0, 2.0, 3.0, 4.0, -1, -1, -9, -9], max_features=2) == [2, 3]
    odds = [1.0, 2.0, 3.0, 3.0, -1, -1, -9, -9]
    assert kept(odds, max_features=2, groups=[[2, 3]]) == [2, 3]
    alone = kept(odds, max_features=1, groups=[[2, 3]], correlation=0.999)
    assert not {2, 3} & set(alone)


@pytest.mark.parametrize("constant", [0, 3, 5])
def test_a_constant_column_is_dropped_and_its_group_is_not(constant):
    odds = [4.0, -9, -9, 4, -9, 4, -9, -9]
    odds[constant] = -np.inf
    alike = {"groups": [[0, 3, 5]], "correlation": 0.999}
    left = [i for i in (0, 3, 5) if i != constant]
    assert kept(odds, **alike) == left
    assert kept(odds, **alike, rule="fdr") == left
    assert kept(odds, **alike, max_features=2) == left
    assert kept([-np.inf] * 8) == []


def test_columns_that_say_the_same_keep_their_places_behind_a_constant_one():
    selector = FeatureSelector()
    selector.n_features_in_ = 8
    odds = np.array([-np.inf, 1, 2, 3, 4, 5, 6, -np.inf])
    (found,) = selector._chosen(data()[0], odds).correlated
    assert found[0] == [3, 6]


def test_several_fits_are_averaged():
    x, y = data()
    selector = FeatureSelector(**{**SHORT, "epochs": 40}, seeds=3).fit(x, y)
    odds = np.stack([estimator.log_odds_ for estimator in selector.estimators_])
    assert len({tuple(line) for line in odds}) == 3
    mean = (1 / (1 + np.exp(-odds))).mean(0)
    assert selector.inclusion_probabilities_ == pytest.approx(mean)
    assert selector.stability_[7] == 0
    alone = [kept(line.tolist()) for line in odds]
    assert selector.stability_[0] == pytest.approx(np.mean([0 in line for line in alone]))
    assert selector.estimator_ is selector.estimators_[0]
    (first,) = FeatureSelector(**{**SHORT, "epochs": 40}).fit(x, y).estimators_
    assert np.array_equal(first.log_odds_, odds[0])


def test_classes_and_numbers_are_told_apart():
    x, y = data()
    labels = np.where(y > 0, "up", "down")
    settings = {**SHORT, "epochs": 4}
    assert isinstance(FeatureSelector(**settings).fit(x, labels).estimator_, SparseClassifier)
    whole = np.round(y).astype(int) > 0
    assert isinstance(
        FeatureSelector(**settings).fit(x, whole.astype(int)).estimator_, SparseClassifier
    )
    asked = FeatureSelector(**settings, task="regression").fit(x, whole.astype(int))
    assert isinstance(asked.estimator_, SparseRegressor)


def test_frames_keep_their_names():
    pandas = pytest.importorskip("pandas")
    x, y = data()
    frame = pandas.DataFrame(x, columns=list("abcdefgh"))
    selector = FeatureSelector(**SHORT).set_output(transform="pandas").fit(frame, y)
    kept = selector.transform(frame)
    assert list(kept.columns) == list(selector.get_feature_names_out())
    assert "a" in kept.columns
    assert selector.constant_features_ == ["h"]
    assert selector.correlated_groups_[0]["features"] == ["d", "g"]


def test_in_a_pipeline():
    x, y = data()
    pipe = make_pipeline(FeatureSelector(**SHORT), Ridge()).fit(x[:200], y[:200])
    assert pipe.score(x[200:], y[200:]) > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "medain"}, "did you mean 'median'"),
        ({"task": "classify"}, "task='classify'"),
        ({"fdr": 0.0}, "fdr=0.0"),
        ({"max_features": 0}, "max_features=0"),
        ({"correlation": 1.0}, "correlation=1.0"),
        ({"seeds": 0}, "seeds=0"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        FeatureSelector(**change).fit(*data())


# --------------------------------------------------------------- weights below the estimators


def test_weighted_examples_count_as_often_in_loss_and_scores():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 3, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])
    times = torch.tensor([1, 3, 2, 1, 1, 4])
    once = from_tensors(x, y)
    weighted = replace(once, weight=times.float())
    repeated = once.subset(torch.arange(6).repeat_interleave(times))
    network = nn.Linear(3, 3, bias=False)
    found, expected = (
        validate(network, Categorical(), Batches(part, 4, shuffle=False))
        for part in (weighted, repeated)
    )
    assert found.nll == pytest.approx(expected.nll, rel=1e-6)
    assert found.mean == pytest.approx(expected.mean, rel=1e-6)
    start = network.weight.detach().clone()
    moved = []
    for part in (weighted, repeated):
        with torch.no_grad():
            network.weight.copy_(start)
        optimizer = torch.optim.SGD(network.parameters(), lr=len(part))
        run_epoch(network, Categorical(), optimizer, Batches(part, len(part), shuffle=False))
        moved.append(network.weight.detach() - start)
    assert torch.allclose(*moved, atol=1e-5)


def test_weights_stay_with_their_examples():
    data = from_tensors(torch.arange(10.0)[:, None], torch.arange(10) % 2)
    weighted = replace(data, weight=torch.arange(10.0) + 1)
    part = weighted.subset(torch.tensor([7, 2])).to("cpu")
    assert part.weight.tolist() == [8, 3]
    for x, _, weight in Batches(weighted, 3, shuffle=True):
        assert torch.equal(weight, x[:, 0] + 1)


def test_rows_are_held_out_only_where_they_choose():
    x, y = data()
    trained_on = [
        SparseRegressor(method=method, epochs=6, **more).fit(x, y).result_.metrics["n_train"]
        for method, more in (("node-pip", {}), ("ss-ig", {}), ("spam", {"tempering": 1.0}))
    ]
    assert trained_on == [300, 270, 270]


def test_a_posterior_is_not_narrowed_on_the_rows_it_was_fitted_to(monkeypatch):
    def narrowing(*_: Any) -> None:
        raise AssertionError("narrowing")

    monkeypatch.setattr("bayespare.assess.narrowing", narrowing)
    x, y = data()
    SparseRegressor(method="node-pip", epochs=6).fit(x, y)
    with pytest.raises(AssertionError, match="narrowing"):
        SparseRegressor(method="ss-ig", epochs=6).fit(x, y)
