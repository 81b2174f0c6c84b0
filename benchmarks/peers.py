"""Other selectors on the same designs: ``python benchmarks/peers.py [seeds] [names]``.

What users would pick instead on the designs of ``selection.py``, with documented defaults; one
setting is chosen by each peer's own cross-validation or validation rows where it has one: the
penalty of the lasso, the point on LassoNet's path, and, as ``stg-tuned``, the weight of STG's
gates. Needs the extra ``peers`` (knockpy is built by a C compiler); STG, which asks for packages of
its time, ``pip install --no-deps stg==0.1.2 h5py lifelines autograd autograd-gamma formulaic six``.
Each fit is a JSON line in ``benchmarks/results/selection_peers.jsonl``; those that are there are
skipped.
"""

from __future__ import annotations

import collections
import collections.abc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from selection import DESIGNS, design, distinct
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LassoCV, LogisticRegressionCV
from sklearn.model_selection import train_test_split

from bayespare.bayes.inclusion import recovery


class Found(NamedTuple):
    """Scores, the higher the more relevant, and which columns are kept."""

    scores: np.ndarray
    kept: np.ndarray


Peer = Callable[[np.ndarray, np.ndarray, bool, int], Found]


def lasso(x: np.ndarray, y: np.ndarray, classes: bool, seed: int) -> Found:
    """A linear model with an L1 penalty chosen by 5-fold cross-validation."""
    if classes:
        found = LogisticRegressionCV(
            l1_ratios=(1.0,),
            solver="saga",
            max_iter=3000,
            scoring="neg_log_loss",
            random_state=seed,
            use_legacy_attributes=False,
        ).fit(x, y)
    else:
        found = LassoCV(cv=5, random_state=seed).fit(x, y)
    weight = np.abs(np.atleast_2d(found.coef_)).max(0)
    return Found(weight, weight > 1e-8)


def forest(x: np.ndarray, y: np.ndarray, classes: bool, seed: int) -> Found:
    """Importances of a random forest above their mean, as scikit-learn's SelectFromModel."""
    kind = RandomForestClassifier if classes else RandomForestRegressor
    scores = kind(500, random_state=seed).fit(x, y).feature_importances_
    return Found(scores, scores >= scores.mean())


def boruta(x: np.ndarray, y: np.ndarray, classes: bool, seed: int) -> Found:
    """Columns whose importance beats that of shuffled copies (Kursa and Rudnicki 2010)."""
    from boruta import BorutaPy

    kind = RandomForestClassifier if classes else RandomForestRegressor
    found = BorutaPy(kind(max_depth=5), n_estimators="auto", random_state=seed).fit(x, y)
    return Found(-found.ranking_.astype(float), found.support_)


def lassonet(x: np.ndarray, y: np.ndarray, classes: bool, seed: int) -> Found:
    """The network of LassoNet's path that is best on a fifth of the rows (Lemhadri et al. 2021)."""
    from lassonet import LassoNetClassifier, LassoNetRegressor

    kind = LassoNetClassifier if classes else LassoNetRegressor
    network = kind(
        hidden_dims=(32,), torch_seed=seed, random_state=seed, verbose=0, device=torch.device("cpu")
    )
    x_train, x_valid, y_train, y_valid = _parts(x, y, seed)
    path = network.path(x_train, y_train, X_val=x_valid, y_val=y_valid)
    best = min(path, key=lambda step: step.val_loss)
    return Found(network.feature_importances_.numpy(), best.selected.numpy())


def stg(
    x: np.ndarray, y: np.ndarray, classes: bool, seed: int, weights: tuple[float, ...] = (0.1,)
) -> Found:
    """Stochastic gates (Yamada et al. 2020); of several weights the best on a fifth of the rows."""
    for name in ("Sequence", "Mapping", "Set", "Iterable"):
        # The package was last released before Python 3.10 moved these.
        setattr(collections, name, getattr(collections.abc, name))
    from stg import STG

    x_train, x_valid, y_train, y_valid = _parts(x, y, seed)
    found = []
    for weight in weights:
        model: Any = STG(
            task_type="classification" if classes else "regression",
            input_dim=x.shape[1],
            output_dim=2 if classes else 1,
            hidden_dims=[32],
            activation="relu",
            optimizer="Adam",
            learning_rate=1e-2,
            batch_size=len(x_train),
            feature_selection=True,
            sigma=0.5,
            lam=weight,
            random_state=seed,
            device="cpu",
        )
        columns = (part if classes else part[:, None] for part in (y_train, y_valid))
        train, valid = columns
        quiet = {"print_interval": 10**9, "verbose": False}
        model.fit(x_train, train, nr_epochs=3000, valid_X=x_valid, valid_y=valid, **quiet)
        said = np.asarray(model.predict(x_valid))
        wrong = np.mean(said != y_valid) if classes else np.mean((said.ravel() - y_valid) ** 2)
        gates = np.asarray(model.get_gates("raw"))
        found.append((float(wrong), Found(gates, gates > -0.5)))
    return min(found, key=lambda pair: pair[0])[1]


def stg_tuned(x: np.ndarray, y: np.ndarray, classes: bool, seed: int) -> Found:
    """STG with the weight of its gates chosen."""
    return stg(x, y, classes, seed, (0.03, 0.1, 0.3, 1.0))


def knockoffs(x: np.ndarray, y: np.ndarray, classes: bool, seed: int) -> Found:
    """Gaussian model-X knockoffs at a false discovery rate of .1, the lasso's statistic (knockpy).

    The threshold of the filter needs ten discoveries to bound the rate by a tenth, so with fewer
    relevant columns it often selects none; its statistics rank them all the same.
    """
    from knockpy.knockoff_filter import KnockoffFilter

    knockoff_filter = KnockoffFilter(fstat="lasso", ksampler="gaussian")
    kept = knockoff_filter.forward(X=x.astype(float), y=y.astype(float), fdr=0.1)
    return Found(np.asarray(knockoff_filter.W), np.asarray(kept) > 0)


PEERS: dict[str, Peer] = {
    "lasso": lasso,
    "forest": forest,
    "boruta": boruta,
    "lassonet": lassonet,
    "knockoffs": knockoffs,
    "stg": stg,
    "stg-tuned": stg_tuned,
}


def _parts(x: np.ndarray, y: np.ndarray, seed: int) -> list[np.ndarray]:
    return list(train_test_split(x, y, test_size=0.2, random_state=seed))


def fit(name: str, seed: int, peer: str) -> dict[str, object]:
    """Select by one peer; compare with the truth. Targets that are numbers are standardised.

    Seconds are those of the processor, on one thread.
    """
    x, y, truth = design(name, seed)
    classes = y.dtype.kind == "i"
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    y = y if classes else ((y - y.mean()) / y.std()).astype(np.float32)
    np.random.seed(seed)  # noqa: NPY002 (what the peers draw from)
    torch.manual_seed(seed)
    started = time.process_time()
    found = PEERS[peer](x, y, classes, seed)
    row: dict[str, object] = {"design": name, "seed": seed, "method": peer}
    row["seconds"] = time.process_time() - started
    row |= {"selected": int(found.kept.sum()), "true": int(truth.sum())}
    if truth.any():
        parts = distinct(x, truth, found.scores, np.asarray(found.kept, dtype=bool))
        row |= asdict(recovery(*(torch.tensor(part) for part in parts)))
    return row


def main() -> None:
    """Run all designs, one seed after the other."""
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    names = sys.argv[2:] or list(PEERS)
    path = Path(__file__).with_name("results") / "selection_peers.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(row["design"], row["seed"], row["method"]) for row in map(json.loads, lines)}
    for seed in range(seeds):
        for name in DESIGNS:
            for peer in names:
                if (name, seed, peer) not in done:
                    line = json.dumps(fit(name, seed, peer))
                    with path.open("a") as file:
                        file.write(line + "\n")
                    print(line, flush=True)


if __name__ == "__main__":
    main()
