"""Regression."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import validate_data

from bayespare.measure import RealPrediction
from bayespare.sklearn.base import SparseEstimator


class SparseRegressor(RegressorMixin, SparseEstimator):  # type: ignore[misc]
    """A sparse Bayesian neural network for regression, with error bars.

    Numbers only: encode categories before, and name their columns in ``groups``. Inputs and target
    are standardised inside. Rows that are alike are merged and their weights added, so a row of
    weight two is the same as two rows.

    Args:
        method: Which posterior decides, by its registered name.
        hidden: Widths of the hidden layers; ``()``: a linear model.
        activation: Between the layers: ``relu``, ``silu``, ``gelu``, ``elu``, ``tanh``,
            ``sigmoid``.
        epochs: Epochs a dense network would get; None: from the number of rows.
        batch: Rows per step; None: from the number of rows.
        tempering: Weight of the KL against the likelihood, or ``auto``: chosen on validation rows.
        settings: Of the method.
        groups: Features that are kept or dropped together (one-hot columns, lags): one label for
            each feature, or lists of names or positions.
        max_params: Budget of physical parameters; None: the posterior alone decides.
        validation_fraction: Share of the rows that chooses the size. There is none below 20 rows,
            and none where there is nothing to choose (``node-pip``).
        samples: Posterior draws for predictions.
        device: Where to train: ``auto``, ``cpu``, ``cuda``.
        random_state: Seed, generator or None; with a seed every fit is the same.
        verbose: Print a line after every epoch.

    Attributes:
        inclusion_probabilities_: Posterior inclusion probability of each feature.
        log_odds_: The same as log-odds, nats.
        importances_: Relative change of the predictions without each feature.
        n_parameters_: Physical parameters of the compact network.
        result_: The whole run.
        n_features_in_: Number of features.
        feature_names_in_: Their names, where the input had names.
    """

    _task = "regression"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit.

        Args:
            X: Inputs, shape ``(N, J)``.
            y: Target, shape ``(N,)``.
            sample_weight: How often each row counts in the likelihood, 0 or more.

        Raises:
            ValueError: On bad input or a bad setting; the message says which.
        """
        x, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        self._fit(x, np.asarray(y, dtype=np.float64), self._weights(x, sample_weight))
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predictive mean, averaged over the posterior.

        Args:
            X: Inputs, shape ``(N, J)``.
            return_std: Also return the standard deviation of the target: noise and posterior.

        Returns:
            Mean, shape ``(N,)``; with ``return_std`` a pair of these.
        """
        prediction = self._predicted(X)
        assert isinstance(prediction, RealPrediction)
        mean = prediction.mean.numpy()
        return (mean, prediction.variance.sqrt().numpy()) if return_std else mean
