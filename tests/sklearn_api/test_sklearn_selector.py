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


def with_odds(odds: list[float], **settings: Any) -> FeatureSelector:
    """A selector whose network said these log-odds."""
    selector = FeatureSelector(**settings)
    selector.n_features_in_ = len(odds)

    class Said(SparseRegressor):
        log_odds_ = np.array(odds)

    selector.estimator_ = Said()
    return selector


def test_copies_that_share_their_evidence_have_the_best_of_them_kept():
    x, _ = data()
    odds = [5.0, -3, -3, -0.2, -3, -3, -0.1, -np.inf]
    selector = with_odds(odds)
    assert selector._selected(x).nonzero()[0].tolist() == [0, 6]
    assert with_odds([5.0, -3, -3, -2, -3, -3, -2, -9])._selected(x).nonzero()[0].tolist() == [0]
    alone = with_odds(odds, correlation=0.999)
    assert alone._selected(x).nonzero()[0].tolist() == [0]
    assert alone.correlated_groups_ == []


def test_the_discovery_rule_bounds_the_mean():
    x, _ = data()
    odds = [5.0, 1.0, 0.5, -8, -8, -8, -8, -8]
    assert with_odds(odds)._selected(x).sum() == 3
    assert with_odds(odds, rule="fdr", fdr=0.1)._selected(x).nonzero()[0].tolist() == [0]
    assert with_odds(odds, rule="fdr", fdr=0.25)._selected(x).sum() == 3


def test_the_likeliest_are_left_when_only_some_may_stay():
    x, _ = data()
    odds = [1.0, 2.0, 3.0, 4.0, -1, -1, -9, -9]
    assert with_odds(odds, max_features=2)._selected(x).nonzero()[0].tolist() == [2, 3]
    odds = [1.0, 2.0, 3.0, 3.0, -1, -1, -9, -9]
    grouped = with_odds(odds, max_features=2, groups=[[2, 3]])
    assert grouped._selected(x).nonzero()[0].tolist() == [2, 3]
    grouped = with_odds(odds, max_features=1, groups=[[2, 3]], correlation=0.999)
    assert not grouped._selected(x)[[2, 3]].any()


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
