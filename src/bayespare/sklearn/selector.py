"""Feature selection by posterior inclusion probability."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from bayespare.data import Task, infer_task
from bayespare.data.place import Place
from bayespare.errors import BayespareError, did_you_mean
from bayespare.select import Chosen, Limits, choose, pooled_log_odds
from bayespare.sklearn.base import SparseEstimator
from bayespare.sklearn.classifier import SparseClassifier
from bayespare.sklearn.regressor import SparseRegressor
from bayespare.sklearn.rows import EstimatorError, group_numbers

RULES = ("median", "fdr")
TASKS = ("auto", "classification", "regression")


class FeatureSelector(SelectorMixin, BaseEstimator):  # type: ignore[misc]
    """Keeps the features that probably belong in the model; no noise, no ratio to choose.

    A sparse Bayesian network is fitted, and features are selected by their posterior inclusion
    probability: the median rule keeps those above one half, the ``fdr`` rule the largest set whose
    expected share of noise is bounded. Features that say the same thing (correlated by more than
    ``correlation``) share their evidence: if together they are probably in and none is alone, the
    best of them is kept. With several ``seeds`` the probabilities are means over as many fits.

    Args:
        task: ``classification``, ``regression``, or ``auto``: by the target's values.
        rule: ``median`` or ``fdr``.
        fdr: Bound of the expected share of false discoveries; ``fdr`` rule only.
        max_features: Keep at most so many, those with the highest log-odds.
        groups: Features that are kept or dropped together, as in :class:`SparseRegressor`.
        correlation: Absolute correlation above which features are reported as a group.
        seeds: Fits from different starts, averaged.
        method: Which posterior decides.
        hidden: Widths of the hidden layers.
        epochs: Epochs a dense network would get; None: from the number of rows.
        tempering: Weight of the KL; ``auto`` is Bayes' rule, 1, for ``node-pip``, and chosen on
            validation rows for the other methods.
        settings: Of the method.
        device: Where to train.
        random_state: Seed, generator or None.
        verbose: Print a line after every epoch.

    Attributes:
        estimator_: The fitted classifier or regressor; of several, the first.
        estimators_: All of them.
        log_odds_: Log posterior odds of each feature, nats, shape ``(J,)``.
        inclusion_probabilities_: The same as probabilities; the mean over seeds.
        importances_: Relative change of the predictions without each feature, or its group.
        stability_: Share of the seeds that would keep each feature by themselves.
        correlated_groups_: Groups of correlated features, each with its ``features`` (names, or
            positions) and the posterior ``probability`` that one of them at least is in.
        constant_features_: Names, or positions, of features that do not vary; never kept.
    """

    def __init__(
        self,
        *,
        task: Literal["auto", "classification", "regression"] = "auto",
        rule: Literal["median", "fdr"] = "median",
        fdr: float = 0.1,
        max_features: int | None = None,
        groups: Iterable[Any] | None = None,
        correlation: float = 0.95,
        seeds: int = 1,
        method: str = "node-pip",
        hidden: int | tuple[int, ...] = (32,),
        epochs: int | None = None,
        tempering: float | Literal["auto"] = "auto",
        settings: dict[str, Any] | None = None,
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.task = task
        self.rule = rule
        self.fdr = fdr
        self.max_features = max_features
        self.groups = groups
        self.correlation = correlation
        self.seeds = seeds
        self.method = method
        self.hidden = hidden
        self.epochs = epochs
        self.tempering = tempering
        self.settings = settings
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit a network and select.

        Args:
            X: Inputs, shape ``(N, J)``.
            y: Target, shape ``(N,)``: labels or numbers.
            sample_weight: How often each row counts in the likelihood, 0 or more.

        Raises:
            ValueError: On bad input or a bad setting; the message says which.
        """
        self._check_settings()
        x, target = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        random = check_random_state(self.random_state)
        self.estimators_ = [
            self._estimator(target, random).fit(X, y, sample_weight=sample_weight)
            for _ in range(self.seeds)
        ]
        self._combine(x)
        return self

    def _check_settings(self) -> None:
        for name, value, known in (("rule", self.rule, RULES), ("task", self.task, TASKS)):
            if value not in known:
                raise EstimatorError(f"{name}={value!r}{did_you_mean(str(value), known)}")
        if not isinstance(self.seeds, int | np.integer) or self.seeds < 1:
            raise EstimatorError(f"seeds={self.seeds!r}: must be a whole number, 1 or more")
        try:
            Limits(self.rule, self.fdr, self.max_features, self.correlation)
        except BayespareError as error:
            raise EstimatorError(str(error)) from error

    def _estimator(self, target: np.ndarray, random: np.random.RandomState) -> SparseEstimator:
        task = self.task
        if task == "auto":
            task = _task_of(target)
        kind = SparseClassifier if task == "classification" else SparseRegressor
        return kind(
            method=self.method,
            hidden=self.hidden,
            epochs=self.epochs,
            tempering=self.tempering,
            settings=self.settings,
            groups=self.groups,
            device=self.device,
            random_state=random,
            verbose=self.verbose,
        )

    def _combine(self, x: np.ndarray) -> None:
        """What the fits say together, and which features it keeps."""
        odds = np.stack([estimator.log_odds_ for estimator in self.estimators_])
        self.estimator_ = self.estimators_[0]
        self.log_odds_ = pooled_log_odds(torch.from_numpy(odds)).numpy()
        self.inclusion_probabilities_ = 0.5 * (1 + np.tanh(0.5 * self.log_odds_))
        self.importances_ = np.mean([e.importances_ for e in self.estimators_], axis=0)
        self.stability_ = np.mean([self._chosen(x, line).units.numpy() for line in odds], axis=0)
        names = self._names()
        self.constant_features_ = [names[i] for i in np.flatnonzero(np.isneginf(self.log_odds_))]
        chosen = self._chosen(x, self.log_odds_)
        self._support = chosen.units.numpy()
        self.correlated_groups_ = [
            {"features": [names[c] for c in columns], "probability": probability}
            for columns, probability in chosen.correlated
        ]

    def _chosen(self, x: np.ndarray, log_odds: np.ndarray) -> Chosen:
        """Which features to keep, all members of a group alike but those that do not vary."""
        odds = torch.from_numpy(log_odds)
        number = torch.tensor(group_numbers(self.groups, len(odds), self._names()))
        # A constant column says nothing of the group that it is in.
        best = odds.new_full((int(number.max()) + 1,), -torch.inf)
        best.scatter_reduce_(0, number, odds, "amax")
        varies = ~odds.isneginf()
        limits = Limits(self.rule, self.fdr, self.max_features, self.correlation)
        found = choose(best, number[varies], torch.tensor(x)[:, varies], limits)
        places = varies.nonzero()[:, 0].tolist()
        correlated = [([places[c] for c in columns], p) for columns, p in found.correlated]
        return Chosen(found.units[number] & varies, correlated)

    def _names(self) -> list[Any]:
        names = getattr(self, "feature_names_in_", None)
        return list(range(self.n_features_in_)) if names is None else list(names)

    def _get_support_mask(self) -> np.ndarray:
        check_is_fitted(self)
        return self._support

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def _task_of(target: np.ndarray) -> Task:
    """What the target's values ask for; a constant one is refused, or fitted, by the estimator."""
    if target.dtype.kind not in "iuf":
        return "classification"
    if len(np.unique(target)) < 2:
        return "regression" if target.dtype.kind == "f" else "classification"
    return infer_task(target, Place("y"))[0]
