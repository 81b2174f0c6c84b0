"""One network fitted to rows: what the estimators share, without scikit-learn."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bayespare import methods
from bayespare.bayes.inclusion import drop, relative
from bayespare.data import Dataset, Task, hold_out
from bayespare.errors import BayespareError
from bayespare.measure import Prediction, predict
from bayespare.nets import build
from bayespare.nets.mlp import perceptron
from bayespare.options import Options
from bayespare.pipeline import sparsify
from bayespare.result import Result
from bayespare.sklearn.rows import EstimatorError, Rows, Scaling

LEAST_ROWS = 20
"""With fewer rows than this none are held out: two could not tell networks apart."""

IMPORTANCE_ROWS = 2000


@dataclass(frozen=True)
class Recipe:
    """How to fit a network.

    Attributes:
        method: Name of a registered method.
        settings: Of the method.
        hidden: Widths of the hidden layers; empty: a linear model.
        activation: Between the layers, by its name in :mod:`bayespare.nets`.
        epochs: Epochs a dense network would get; None: from the number of rows.
        batch: Rows per step; None: from the number of rows.
        tempering: ``auto``, or the weight of the KL.
        max_params: Budget of physical parameters.
        validation_fraction: Share of the rows that chooses the size.
        samples: Posterior draws for predictions.
        device: Where to train.
        seed: Of everything random.
        report: Called with a row of history after every epoch.
    """

    method: str = "ss-ghs"
    settings: dict[str, Any] = field(default_factory=dict)
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "relu"
    epochs: int | None = None
    batch: int | None = None
    tempering: float | Literal["auto"] = "auto"
    max_params: int | None = None
    validation_fraction: float = 0.1
    samples: int = 32
    device: str = "auto"
    seed: int = 0
    report: Callable[[dict[str, Any]], None] | None = None

    def options(self, rows: int) -> Options:
        """The options of the run.

        Epochs are for three steps a row, from 200 to 8,000: with few rows a fit takes a second, and
        twice the steps are no better on diabetes and breast cancer (3-fold). A method that takes
        small data whole gets 1,400: its steps do not get more with the rows.
        """
        batch = None if self.batch is None else min(self.batch, rows)
        options = Options(
            method=self.method,
            settings=self.settings,
            epochs=self.epochs,
            batch=batch,
            tempering=self.tempering,
            seed=self.seed,
            device=self.device,
            max_params=self.max_params,
            baseline=False,
            samples=self.samples,
        )
        if self.epochs is None and not options.published:
            whole = methods.most_batch(self.method) is not None
            steps = 1400 if whole else min(8000, max(200, 3 * rows))
            each = max(1, rows // options.batch_for(rows))
            options = replace(options, epochs=math.ceil(steps / each))
        return options

    def network(self, inputs: int, outputs: int) -> nn.Module:
        """A fresh network that predicts zero: nothing can take it for a trained one."""
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            if self.hidden:
                widths = ",".join(str(width) for width in self.hidden)
                spec = f"mlp:{widths},act={self.activation}"
                network = build(spec, inputs=(inputs,), outputs=outputs)
            else:
                network = perceptron([inputs, outputs])
        last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return network


@dataclass(frozen=True, eq=False)
class FittedNetwork:
    """A fitted network and what it says of the features.

    Attributes:
        result: Of the run.
        model: The compact network in float64: predictions do not depend on the batch they are in.
        scaling: Of the inputs.
        log_odds: Of the inclusion of each feature, nats, shape ``(J,)``.
        support: Which features the network reads, shape ``(J,)``.
        importances: How much predictions change without each feature (or its group), sum 1.
    """

    result: Result
    model: nn.Module
    scaling: Scaling
    log_odds: np.ndarray
    support: np.ndarray
    importances: np.ndarray

    def predict(self, x: np.ndarray, samples: int) -> Prediction:
        """Predict rows with the posterior.

        Raises:
            EstimatorError: If a prediction is not finite.
        """
        result = self.result
        try:
            return predict(
                self.model,
                self.scaling.apply(x),
                task=result.task,
                posterior=result.posterior,
                samples=samples,
                noise_std=result.point.noise_std,
                target_scale=result.target_scale,
            )
        except BayespareError as error:
            raise EstimatorError(str(error)) from error


def fit_network(
    rows: Rows,
    task: Task,
    recipe: Recipe,
    *,
    classes: Sequence[str] = (),
    groups: tuple[int, ...] | None = None,
) -> FittedNetwork:
    """Fit a network to rows.

    Args:
        rows: Distinct rows; classes as indices.
        task: Of the target.
        recipe: How.
        classes: Labels; empty for regression.
        groups: Number of the group each feature belongs to.

    Raises:
        EstimatorError: On a bad setting; the message says which.
    """
    scaling = Scaling.fit(rows.x, rows.weight)
    x = scaling.apply(rows.x)
    groups = tuple(range(rows.x.shape[1])) if groups is None else groups
    y, scale = torch.from_numpy(rows.y), (0.0, 1.0)
    if task == "regression":
        of_y = Scaling.fit(rows.y[:, None], rows.weight)
        y, scale = of_y.apply(rows.y[:, None])[:, 0].float(), (of_y.mean.item(), of_y.std.item())
    uniform = bool((rows.weight == 1).all())
    data = Dataset(
        x.float(),
        y,
        task,
        classes=tuple(classes),
        feature_groups=groups,
        target_scale=scale,
        weight=None if uniform else torch.from_numpy(rows.weight).float(),
    )
    try:
        train, valid = _split(data, recipe)
        if recipe.batch is not None and recipe.batch > len(train):
            rest = f"there are {len(train)} rows; all are used"
            warnings.warn(f"batch={recipe.batch}: {rest}", stacklevel=2)
        options = vars(recipe.options(len(train)))
        network = recipe.network(x.shape[1], data.outputs)
        result = sparsify(network, train, valid=valid, report=recipe.report, **options)
    except BayespareError as error:
        raise EstimatorError(str(error)) from error
    number = torch.tensor(groups)
    read = _of_inputs(result.verdict.keep, number, torch.tensor(True)).numpy()
    log_odds = _of_inputs(result.log_odds, number, torch.tensor(torch.inf)).double().numpy()
    model = copy.deepcopy(result.model).double()
    return FittedNetwork(
        result=result,
        model=model,
        scaling=scaling,
        log_odds=np.where(scaling.constant, -np.inf, log_odds),
        support=read & ~scaling.constant,
        importances=_importances(model, x[:IMPORTANCE_ROWS], number, read),
    )


def _split(data: Dataset, recipe: Recipe) -> tuple[Dataset, Dataset]:
    """Training and validation rows; few rows, or rows that would choose nothing, are both."""
    fraction = recipe.validation_fraction
    if not 0 < fraction < 1:
        raise EstimatorError(f"validation_fraction={fraction}: must lie between 0 and 1")
    if len(data) < LEAST_ROWS or not recipe.options(len(data)).validates(len(data)):
        return data, data
    return hold_out(data, fraction, seed=recipe.seed)


def _of_inputs(by_group: Any, number: Tensor, otherwise: Tensor) -> Tensor:
    """What a mapping says of each feature; features that were not judged have ``otherwise``."""
    values = by_group.get("input")
    return otherwise.expand(len(number)) if values is None else values[number]


@torch.no_grad()
def _importances(model: nn.Module, x: Tensor, number: Tensor, read: np.ndarray) -> np.ndarray:
    """Relative change of the network's outputs without each feature; a group's is its members'."""
    whole = model(x)
    effects = torch.zeros(int(number.max()) + 1, dtype=torch.float64)
    for group in torch.unique(number[torch.from_numpy(read)]).tolist():
        effects[group] = drop(whole, model(x * (number != group)))
    return np.asarray(relative(effects)[number].numpy())
