"""Classification."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from bayespare.measure import ClassPrediction
from bayespare.sklearn.base import SparseEstimator
from bayespare.sklearn.rows import EstimatorError, plain


class SparseClassifier(ClassifierMixin, SparseEstimator):  # type: ignore[misc]
    """A sparse Bayesian neural network for classification, with probabilities over the posterior.

    Settings and attributes as :class:`bayespare.sklearn.SparseRegressor`, and:

    Args:
        method: See there, as all others that are not described here.
        hidden: See there.
        activation: See there.
        epochs: See there.
        batch: See there.
        tempering: See there.
        settings: See there.
        groups: See there.
        max_params: See there.
        validation_fraction: See there.
        class_weight: Factor of the rows of each class in the likelihood: by label, ``balanced``
            (all classes count the same), or None.
        samples: See there.
        device: See there.
        random_state: See there.
        verbose: See there.

    Attributes:
        classes_: Labels, sorted, of the rows that count.
    """

    _task = "classification"

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
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
        samples: int = 32,
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            method=method,
            hidden=hidden,
            activation=activation,
            epochs=epochs,
            batch=batch,
            tempering=tempering,
            settings=settings,
            groups=groups,
            max_params=max_params,
            validation_fraction=validation_fraction,
            samples=samples,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit.

        Args:
            X: Inputs, shape ``(N, J)``.
            y: Labels, shape ``(N,)``.
            sample_weight: How often each row counts in the likelihood, 0 or more.

        Raises:
            ValueError: On bad input or a bad setting; the message says which.
        """
        x, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        weight = self._weights(x, sample_weight)
        there = weight > 0
        classes, index = np.unique(y[there], return_inverse=True)
        if len(classes) < 2:
            raise EstimatorError(
                f"the target has one class only ({plain(classes[0])!r})"
                if len(classes)
                else "sample_weight: every row has weight zero"
            )
        weight = weight[there] * self._class_factors(classes, index, weight[there])[index]
        self.classes_ = classes
        self._fit(x[there], index, weight, classes)
        return self

    def _class_factors(
        self, classes: np.ndarray, index: np.ndarray, weight: np.ndarray
    ) -> np.ndarray:
        """Factor of each class; balanced ones count rows by their weight."""
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            return np.asarray(weight.sum() / (len(classes) * np.bincount(index, weight)))
        return np.asarray(
            compute_class_weight(self.class_weight, classes=classes, y=classes[index])
        )

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities, averaged over the posterior, shape ``(N, classes)``."""
        prediction = self._predicted(X)
        assert isinstance(prediction, ClassPrediction)
        return prediction.probs.numpy()

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Log of :meth:`predict_proba`, nats; finite however small."""
        prediction = self._predicted(X)
        assert isinstance(prediction, ClassPrediction)
        return prediction.log_probs.numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each row, shape ``(N,)``."""
        best = self.predict_log_proba(X).argmax(1)
        return np.asarray(self.classes_[best])
