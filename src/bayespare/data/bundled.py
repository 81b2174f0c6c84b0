"""The small data sets that come with scikit-learn."""

from __future__ import annotations

import importlib

import numpy as np

from bayespare.data.place import Place
from bayespare.data.raw import Examples, Raw, fingerprint_of
from bayespare.errors import BayespareError

BUNDLED = ("digits", "breast_cancer", "wine", "iris", "diabetes")


def load_bundled(name: str) -> Raw:
    """Read one of :data:`BUNDLED`; nothing is downloaded.

    The pixels of ``digits`` share one mean and standard deviation, since some of them are almost
    always zero; ``diabetes`` comes in its original units.

    Raises:
        BayespareError: If scikit-learn is not installed.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise BayespareError(
            f"data {name!r} comes with scikit-learn, which is not installed: "
            "pip install 'bayespare[sklearn]'"
        ) from error
    bunch = getattr(datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    x, y = np.asarray(bunch.data), np.asarray(bunch.target)
    is_class = name != "diabetes"
    return Raw(
        source=name,
        train=Examples(x, y, Place(name)),
        fingerprint=fingerprint_of([x, y]),
        per_channel=name != "digits",
        features=tuple(str(feature) for feature in bunch.feature_names),
        classes=tuple(str(label) for label in bunch.target_names) if is_class else (),
        task="classification" if is_class else "regression",
    )
