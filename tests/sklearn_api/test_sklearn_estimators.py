"""Estimators as their users use them: weights, frames, pipelines, searches, bad input."""

import pickle
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bayespare import BayespareError
from bayespare.sklearn import SparseClassifier, SparseRegressor
from bayespare.sklearn.rows import Scaling, group_numbers, merged

SHORT: dict[str, Any] = {"epochs": 30, "hidden": (16,), "tempering": 0.3, "random_state": 0}


def plane(rows: int = 240, noise: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """y = 10 + 6 x0 - 1.5 x2 + noise; columns 1 and 3 say nothing, column 4 is constant."""
    r = np.random.default_rng(seed)
    x = r.standard_normal((rows, 5)) * [1, 3, 2, 1, 0] + 4
    return x, 10 + 6 * x[:, 0] - 1.5 * x[:, 2] + noise * r.standard_normal(rows)


def sides(rows: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels by the sign of the first column."""
    x, _ = plane(rows, seed=seed)
    return x, np.where(x[:, 0] > 4, "right", "left")


@cache
def regressor() -> SparseRegressor:
    return SparseRegressor(**SHORT).fit(*plane())


@cache
def classifier() -> SparseClassifier:
    return SparseClassifier(**SHORT).fit(*sides())


# ---------------------------------------------------------------------- what is learnt


def test_the_plane_is_found_and_noise_is_not_read():
    model = regressor()
    x, y = plane(seed=1)
    assert model.score(x, y) > 0.95
    assert model.get_support().tolist() == [True, False, True, False, False]
    assert model.get_support(indices=True).tolist() == [0, 2]
    odds, p = model.log_odds_, model.inclusion_probabilities_
    assert (odds[[0, 2]] > 0).all()
    assert (odds[[1, 3]] < 0).all()
    assert odds[4] == -np.inf
    assert p == pytest.approx(1 / (1 + np.exp(-odds)))
    assert model.importances_ == pytest.approx([2 / 3, 0, 1 / 3, 0, 0], abs=0.08)
    assert model.importances_.sum() == pytest.approx(1)
    counted = sum(p.numel() for p in model.result_.model.parameters())
    assert model.n_parameters_ == counted < sum(g.size for g in model.result_.plan.groups) * 16


def test_a_regressor_knows_how_far_off_it_is():
    model = SparseRegressor(**{**SHORT, "epochs": 60}).fit(*plane(noise=2.0))
    x, y = plane(1000, noise=2.0, seed=2)
    mean, std = model.predict(x, return_std=True)
    assert mean == pytest.approx(model.predict(x))
    # 95 % intervals of a Gaussian; and the spread is in the units of y.
    assert 0.88 < np.mean(np.abs(y - mean) < 1.96 * std) < 0.99
    assert 1.5 < np.median(std) < 4


def test_probabilities_are_probabilities_of_the_labels():
    model = classifier()
    x, y = sides(seed=1)
    p = model.predict_proba(x)
    assert model.classes_.tolist() == ["left", "right"]
    assert p.sum(1) == pytest.approx(1)
    assert np.log(p) == pytest.approx(model.predict_log_proba(x))
    assert (model.predict(x) == model.classes_[p.argmax(1)]).all()
    assert model.score(x, y) > 0.93
    assert model.get_support()[0]


def test_predictions_do_not_depend_on_the_rows_beside_them():
    x, _ = plane(seed=3)
    together = regressor().predict(x)
    alone = np.array([regressor().predict(row[None])[0] for row in x[:5]])
    assert alone == pytest.approx(together[:5], rel=1e-12)


def test_no_hidden_layer_is_a_linear_model():
    model = SparseRegressor(**{**SHORT, "hidden": (), "epochs": 80}).fit(*plane())
    assert model.score(*plane(seed=1)) > 0.9
    x = np.eye(5)
    a, b, both, none = model.predict(np.stack([x[0], x[2], x[0] + x[2], 0 * x[0]]))
    assert both - none == pytest.approx((a - none) + (b - none), abs=1e-6)


def test_the_seed_is_the_fit():
    x, y = plane()
    again = SparseRegressor(**SHORT).fit(x, y)
    assert np.array_equal(again.predict(x), regressor().predict(x))
    other = SparseRegressor(**{**SHORT, "random_state": 1}).fit(x, y)
    assert not np.array_equal(other.predict(x), regressor().predict(x))


def test_the_global_stream_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    SparseRegressor(epochs=2).fit(*plane(30))
    assert torch.equal(torch.rand(1), expected)


# ----------------------------------------------------------------------------- weights


def test_rows_are_merged_and_counted():
    x = np.array([[1.0, -0.0], [2, 3], [1, 0], [1, 0], [5, 5]])
    rows = merged(x, np.array([0, 1, 0, 1, 1]), np.array([1.0, 2, 0.5, 1, 0]))
    found = {(*r, y): w for r, y, w in zip(rows.x.tolist(), rows.y, rows.weight, strict=True)}
    assert found == {(1, 0, 0): 1.5, (2, 3, 1): 2, (1, 0, 1): 1}


def test_columns_are_scaled_by_weighted_moments():
    x, _ = plane(20)
    weight = np.arange(20) % 4
    scaling = Scaling.fit(x, weight)
    repeated = x.repeat(weight, axis=0)
    assert scaling.mean == pytest.approx(repeated.mean(0))
    assert scaling.std[:4] == pytest.approx(repeated.std(0)[:4])
    assert scaling.constant.tolist() == [False] * 4 + [True]
    assert (scaling.apply(x)[:, 4] == 0).all()


def test_a_weight_is_a_number_of_rows():
    """Repeated, weighted and shuffled rows are one likelihood, so one fit, to the last bit."""
    x, y = plane(60)
    r = np.random.default_rng(0)
    weight = r.integers(0, 4, 60)
    model = SparseRegressor(**SHORT)
    weighted = clone(model).fit(x, y, sample_weight=weight).predict(x)
    repeated = clone(model).fit(x.repeat(weight, axis=0), y.repeat(weight)).predict(x)
    order = r.permutation(60)
    shuffled = clone(model).fit(x[order], y[order], sample_weight=weight[order]).predict(x)
    plain = clone(model).fit(x, y).predict(x)
    assert np.array_equal(weighted, repeated)
    assert np.array_equal(weighted, shuffled)
    assert not np.array_equal(weighted, plain)


def test_weights_move_the_fit():
    """Two contradicting halves: the heavier one is believed."""
    r = np.random.default_rng(0)
    x = r.standard_normal((200, 1))
    y = np.where(np.arange(200) < 100, 1, -1) * x[:, 0]
    weight = np.where(np.arange(200) < 100, 1.0, 0.05)
    model = SparseRegressor(**SHORT).fit(x, y, sample_weight=weight)
    assert model.score(x[:100], y[:100]) > 0.8
    turned = SparseRegressor(**SHORT).fit(x, y, sample_weight=weight[::-1])
    assert turned.score(x[100:], y[100:]) > 0.8


def test_class_weights_are_sample_weights():
    x, y = sides(80)
    y[x[:, 1] > 8] = "left"
    factor = {"left": 1.0, "right": 3.0}
    by_class = SparseClassifier(**SHORT, class_weight=factor).fit(x, y)
    by_row = SparseClassifier(**SHORT).fit(x, y, sample_weight=np.array([factor[v] for v in y]))
    assert np.array_equal(by_class.predict_proba(x), by_row.predict_proba(x))
    share = (y == "left").mean()
    balanced = {"left": 0.5 / share, "right": 0.5 / (1 - share)}
    one = SparseClassifier(**SHORT, class_weight="balanced").fit(x, y)
    two = SparseClassifier(**SHORT, class_weight=balanced).fit(x, y)
    assert one.predict_proba(x) == pytest.approx(two.predict_proba(x), abs=1e-4)


# ------------------------------------------------------------------------------ groups


def test_groups_by_label_or_by_list():
    assert group_numbers(None, 3, None) == (0, 1, 2)
    assert group_numbers(["a", "b", "a"], 3, None) == (0, 1, 0)
    assert group_numbers([[0, 2]], 4, None) == (0, 1, 0, 2)
    assert group_numbers([["z", "x"]], 3, ["x", "y", "z"]) == (0, 1, 0)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([0, 1], "2 labels for 5 features"),
        ([[0, 9]], "no feature 9"),
        ([["x9"]], "no feature 'x9'"),
        ([[0, 1], [1, 2]], "feature 1 is named twice"),
        ([[0, 1], 2, 3, 4, 4], "one label for each feature, or lists"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        SparseRegressor(groups=groups).fit(*plane(30))


def test_a_group_is_kept_or_dropped_as_one():
    model = SparseRegressor(**SHORT, groups=[[0, 1], [2, 3]]).fit(*plane())
    assert model.get_support().tolist() == [True, True, True, True, False]
    odds, effect = model.log_odds_, model.importances_
    assert odds[0] == odds[1] > 0
    assert effect[0] == effect[1]


# -------------------------------------------------------------------- the rest of sklearn


def test_clone_and_pickle():
    model = regressor()
    assert clone(model).get_params() == model.get_params()
    x, _ = plane()
    back = pickle.loads(pickle.dumps(model))
    assert np.array_equal(back.predict(x), model.predict(x))
    assert np.array_equal(back.log_odds_, model.log_odds_)
    with pytest.raises(NotFittedError):
        clone(model).get_support()
    assert not hasattr(clone(model), "log_odds_")


def test_pipelines_and_searches():
    x, y = sides(120)
    pipe = make_pipeline(StandardScaler(), SparseClassifier(**SHORT))
    assert cross_val_score(pipe, x, y, cv=2).mean() > 0.7
    pipe.set_params(sparseclassifier__epochs=5)
    grid = {"sparseclassifier__hidden": [(4,), (8, 8)]}
    search = GridSearchCV(pipe, grid, cv=2, error_score="raise").fit(x, y)
    assert search.best_params_["sparseclassifier__hidden"] in [(4,), (8, 8)]


def test_frames_have_names_and_an_order():
    pandas = pytest.importorskip("pandas")
    x, y = plane()
    frame = pandas.DataFrame(x, columns=list("abcde"))
    model = SparseRegressor(**SHORT, groups=[["a", "b"]]).fit(frame, pandas.Series(y))
    assert model.feature_names_in_.tolist() == list("abcde")
    assert model.log_odds_[0] == model.log_odds_[1]
    assert model.predict(frame) == pytest.approx(model.predict(frame.astype("float64")))
    with pytest.raises(ValueError, match="same order"):
        model.predict(frame[list("badce")])
    with pytest.raises(ValueError, match="unseen at fit time"):
        model.predict(frame.rename(columns={"a": "z"}))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(x)


@pytest.mark.parametrize("method", ["ss-ig", "ss-gl"])
def test_any_method_by_its_name(method):
    model = SparseRegressor(**SHORT, method=method).fit(*plane())
    assert model.score(*plane(seed=1)) > 0.8


def test_a_budget_is_met():
    model = SparseRegressor(**{**SHORT, "tempering": "auto"}, max_params=60).fit(*plane())
    assert model.n_parameters_ <= 60


def test_every_epoch_is_told_when_asked(capsys):
    SparseRegressor(**{**SHORT, "epochs": 4}, verbose=1).fit(*plane(40))
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("warm 1 | nll ")
    assert any("parameters" in line for line in told)


# ----------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "ss-gsh"}, "did you mean 'ss-ghs'"),
        ({"settings": {"priro": 0.1}}, "did you mean 'prior'"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch": 0}, "batch=0"),
        ({"tempering": "high"}, "tempering='high'"),
        ({"validation_fraction": 1.5}, "validation_fraction=1.5"),
        ({"activation": "rellu"}, "did you mean 'relu'"),
        ({"hidden": (8, -1)}, "width '-1'"),
        ({"samples": 0}, "samples=0"),
        ({"max_params": 0}, "max_params=0"),
        ({"device": "tpu9"}, "device=tpu9"),
    ],
)
def test_bad_settings_are_value_errors_that_say_which(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        SparseRegressor(**{**SHORT, **change}).fit(*plane(30))
    assert isinstance(caught.value, BayespareError)


def test_bad_targets_are_refused():
    x, y = sides(40)
    with pytest.raises(ValueError, match="one class only"):
        SparseClassifier(epochs=2).fit(x, ["a"] * 40)
    with pytest.raises(ValueError, match="one class only"):
        SparseClassifier(epochs=2).fit(x, y, sample_weight=(y == "left").astype(float))
    with pytest.raises(ValueError, match="at least one non-zero"):
        SparseRegressor(epochs=2).fit(*plane(40), sample_weight=np.zeros(40))
    with pytest.raises(ValueError, match="Negative values"):
        SparseRegressor(epochs=2).fit(*plane(40), sample_weight=-np.ones(40))
    with pytest.raises(ValueError, match="all the same"):
        SparseRegressor(epochs=2).fit(np.ones((30, 2)), np.ones(30))
    with pytest.raises(ValueError, match="not in class_weight"):
        SparseClassifier(epochs=2, class_weight={"up": 2.0}).fit(x, y)


def test_bad_inputs_are_refused():
    x, y = plane(40)
    huge = np.where(np.arange(40)[:, None] == 3, 1e308, x)
    with pytest.raises(ValueError, match="too large"):
        SparseRegressor(epochs=2).fit(huge, y)
    with pytest.raises(ValueError, match="NaN"):
        SparseRegressor(epochs=2).fit(np.where(x > 5, np.nan, x), y)
    with pytest.raises(ValueError, match="could not convert string"):
        SparseRegressor(epochs=2).fit(np.array([["a", "b"]] * 40), y)
    with pytest.raises(ValueError, match="expecting 5 features"):
        regressor().predict(x[:, :3])


def test_a_constant_target_and_constant_inputs_are_no_error():
    x, y = plane(60)
    flat = SparseRegressor(**SHORT).fit(x, np.full(60, 7.0))
    assert flat.predict(x) == pytest.approx(7.0, abs=0.2)
    blind = SparseRegressor(**SHORT).fit(np.ones((60, 2)), y)
    assert blind.get_support().tolist() == [False, False]
    assert blind.predict(np.ones((1, 2))) == pytest.approx(y.mean(), abs=y.std())


def test_more_rows_a_step_than_there_are_is_said():
    with pytest.warns(UserWarning, match="batch=500: there are 27 rows"):
        SparseRegressor(epochs=2, batch=500).fit(*plane(30))


@pytest.mark.parametrize("kind", [str, object])
def test_labels_and_names_are_shown_without_the_words_of_numpy(kind):
    x, _ = plane(60)
    with pytest.raises(ValueError, match=r"one class only \('a'\)$"):
        SparseClassifier(epochs=2).fit(x, np.array([np.str_("a")] * 60, dtype=kind))
    with pytest.raises(ValueError, match=r"there is no feature 'b'$"):
        SparseRegressor(epochs=2, groups=[[np.str_("b")]]).fit(*plane(60))
