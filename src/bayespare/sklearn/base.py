"""What the classifier and the regressor share: settings, the fit, and what it says of features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bayespare.data import Task
from bayespare.measure import Prediction
from bayespare.result import Result
from bayespare.sklearn.network import FittedNetwork, Recipe, fit_network
from bayespare.sklearn.rows import EstimatorError, group_numbers, merged


class SparseEstimator(BaseEstimator):  # type: ignore[misc]
    """A network whose size and inputs are chosen by their posterior.

    Parameters as in :class:`bayespare.sklearn.SparseRegressor`.
    """

    _task: Task

    def __init__(
        self,
        *,
        method: str = "ss-ghs",
        hidden: int | tuple[int, ...] = (64, 64),
        activation: str = "relu",
        epochs: int | None = None,
        batch: int | None = None,
        tempering: float | Literal["auto"] = "auto",
        settings: dict[str, Any] | None = None,
        groups: Iterable[Any] | None = None,
        max_params: int | None = None,
        validation_fraction: float = 0.1,
        samples: int = 32,
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.method = method
        self.hidden = hidden
        self.activation = activation
        self.epochs = epochs
        self.batch = batch
        self.tempering = tempering
        self.settings = settings
        self.groups = groups
        self.max_params = max_params
        self.validation_fraction = validation_fraction
        self.samples = samples
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # ------------------------------------------------------------------- fit
    def _recipe(self) -> Recipe:
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        hidden = (self.hidden,) if isinstance(self.hidden, int) else tuple(self.hidden)
        return Recipe(
            method=self.method,
            settings=dict(self.settings or {}),
            hidden=hidden,
            activation=self.activation,
            epochs=self.epochs,
            batch=self.batch,
            tempering=self.tempering,
            max_params=self.max_params,
            validation_fraction=self.validation_fraction,
            samples=self.samples,
            device=self.device,
            seed=int(seed),
            report=_print_row if self.verbose else None,
        )

    def _weights(self, x: np.ndarray, sample_weight: Any) -> np.ndarray:
        weight = _check_sample_weight(
            sample_weight, x, dtype=np.float64, ensure_non_negative=True, copy=True
        )
        return np.asarray(weight)

    def _fit(
        self, x: np.ndarray, y: np.ndarray, weight: np.ndarray, classes: np.ndarray | None = None
    ) -> None:
        """Fit validated rows; ``y`` holds class indices or numbers."""
        names = getattr(self, "feature_names_in_", None)
        groups = group_numbers(self.groups, x.shape[1], None if names is None else list(names))
        rows = merged(x, y, weight)
        if len(rows.y) < 2:
            raise EstimatorError("the rows are all the same: nothing can be learnt from 1 sample")
        labels = () if classes is None else tuple(str(label) for label in classes)
        self._network = fit_network(rows, self._task, self._recipe(), classes=labels, groups=groups)

    def _validated(self, x: Any) -> np.ndarray:
        check_is_fitted(self)
        return np.asarray(validate_data(self, x, dtype=np.float64, reset=False))

    def _predicted(self, x: Any) -> Prediction:
        return self._fitted.predict(self._validated(x), self.samples)

    # --------------------------------------------------------------- results
    @property
    def _fitted(self) -> FittedNetwork:
        check_is_fitted(self)
        network: FittedNetwork = self._network
        return network

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_network")

    @property
    def result_(self) -> Result:
        """The run: compact network, posterior, frontier, history; ``result_.save(folder)``."""
        return self._fitted.result

    @property
    def log_odds_(self) -> np.ndarray:
        """Log posterior odds that each feature belongs in the model, nats, shape ``(J,)``.

        Members of a group share theirs; a constant feature has ``-inf``, one that the method does
        not judge ``inf``.
        """
        return self._fitted.log_odds

    @property
    def inclusion_probabilities_(self) -> np.ndarray:
        """Posterior probability that each feature belongs in the model, shape ``(J,)``."""
        return np.asarray(0.5 * (1 + np.tanh(0.5 * self.log_odds_)))

    @property
    def importances_(self) -> np.ndarray:
        """Relative change of the outputs without each feature, or its group; shape ``(J,)``.

        Measured on training rows, for the mean of the posterior. Groups sum to 1.
        """
        return self._fitted.importances

    @property
    def n_parameters_(self) -> int:
        """Physical parameters of the compact network."""
        return int(self._fitted.result.metrics["compact"]["parameters"])

    def get_support(self, indices: bool = False) -> np.ndarray:
        """Which features the compact network reads.

        Args:
            indices: Return positions instead of a boolean mask.
        """
        support = self._fitted.support
        return np.flatnonzero(support) if indices else support


def _print_row(row: dict[str, Any]) -> None:
    parts = [f"{row['phase']} {row['epoch']}", f"nll {row['train_nll']:.4f}"]
    if "parameters" in row:
        parts.append(f"parameters {row['parameters']:,}")
    print(" | ".join(parts), flush=True)
