"""scikit-learn's own checks, none of them expected to fail; short fits of small networks."""

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from bayespare.sklearn import FeatureSelector, SparseClassifier, SparseRegressor

QUICK: dict[str, Any] = {"hidden": (16,), "tempering": 0.1}


@parametrize_with_checks(
    [
        SparseClassifier(epochs=20, batch=32, **QUICK),
        SparseRegressor(epochs=60, batch=32, **QUICK),
        FeatureSelector(epochs=2, **QUICK),
    ]
)
@pytest.mark.filterwarnings("ignore:batch=32:UserWarning")
@pytest.mark.filterwarnings("ignore:No features were selected:UserWarning")
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)
