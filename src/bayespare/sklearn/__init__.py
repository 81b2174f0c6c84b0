"""Sparse Bayesian networks as scikit-learn estimators, and a feature selector.

Needs scikit-learn: ``pip install 'bayespare[sklearn]'``.
"""

from bayespare.errors import BayespareError

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise BayespareError(
        "bayespare.sklearn needs scikit-learn: pip install 'bayespare[sklearn]'"
    ) from error

from bayespare.sklearn.classifier import SparseClassifier
from bayespare.sklearn.regressor import SparseRegressor
from bayespare.sklearn.selector import FeatureSelector

__all__ = ["FeatureSelector", "SparseClassifier", "SparseRegressor"]
