"""Which inputs belong in the model: posterior inclusion probabilities, and what follows from them.

The rules that turn log-odds into a set of features are shared by ``bayespare select`` and by
:class:`bayespare.sklearn.FeatureSelector`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from bayespare import methods, nets
from bayespare.bayes.inclusion import (
    correlated_groups,
    discovery_set,
    drop,
    group_log_odds,
    median_set,
    relative,
)
from bayespare.checks import check_positive, check_whole
from bayespare.data import Dataset, Splits
from bayespare.data.table_transform import TableTransform
from bayespare.errors import BayespareError, did_you_mean
from bayespare.options import Options
from bayespare.pipeline import sparsify
from bayespare.training.history import Row

Rule = Literal["median", "fdr"]


@dataclass(frozen=True)
class Limits:
    """How log-odds become a set of features.

    Attributes:
        rule: ``median``: those more probable than not; ``fdr``: the largest set whose expected
            share of noise is bounded.
        fdr: That bound, between 0 and 1.
        max_features: Most inputs to keep; None: no limit.
        correlation: Absolute correlation above which inputs share their evidence.
    """

    rule: Rule = "median"
    fdr: float = 0.1
    max_features: int | None = None
    correlation: float = 0.95

    def __post_init__(self) -> None:
        if self.max_features is not None:
            check_whole("max_features", self.max_features, 1)
        for name in ("fdr", "correlation"):
            check_positive(name, getattr(self, name), below=1)
        if self.rule not in get_args(Rule):
            hint = did_you_mean(str(self.rule), get_args(Rule))
            raise BayespareError(f"rule={self.rule!r}: not a rule{hint}")


class Chosen(NamedTuple):
    """A set of features.

    Attributes:
        units: Whether each unit is kept, boolean, shape ``(U,)``.
        correlated: Columns that say the same thing, and the probability that one of them at least
            belongs.
    """

    units: Tensor
    correlated: list[tuple[list[int], float]]


def choose(log_odds: Tensor, unit: Tensor, x: Tensor, limits: Limits) -> Chosen:
    """Turn log-odds into a set.

    Units that say the same thing share their evidence: if together they are probably in and none
    is alone, the best of them is kept (median rule).

    Args:
        log_odds: Of each unit, nats, shape ``(U,)``.
        unit: Which unit each column of ``x`` belongs to, shape ``(J,)``.
        x: Inputs, shape ``(N, J)``.
        limits: Which rule, and its bounds.
    """
    fdr = limits.rule == "fdr"
    chosen = discovery_set(log_odds, limits.fdr) if fdr else median_set(log_odds)
    correlated = []
    for columns in correlated_groups(x, limits.correlation):
        members = torch.unique(unit[columns])
        if len(members) < 2:
            continue
        together = group_log_odds(log_odds[members], [0] * len(members))
        correlated.append((list(columns), float(together.sigmoid())))
        if not fdr and together > 0 and not chosen[members].any():
            chosen[members[log_odds[members].argmax()]] = True
    return Chosen(_capped(chosen, log_odds, unit, limits.max_features), correlated)


def _capped(chosen: Tensor, log_odds: Tensor, unit: Tensor, most: int | None) -> Tensor:
    """Keep the likeliest units that fit into ``most`` columns; a group too large is passed over."""
    if most is None:
        return chosen
    left, sizes = most, torch.bincount(unit, minlength=len(log_odds)).tolist()
    kept = torch.zeros_like(chosen)
    for best in log_odds.argsort(descending=True, stable=True).tolist():
        if chosen[best] and sizes[best] <= left:
            kept[best] = True
            left -= sizes[best]
    return kept


@dataclass(frozen=True)
class Feature:
    """What the posterior says of one column of the user's data.

    Attributes:
        name: Of the column.
        probability: That it belongs in the model; the mean over seeds.
        log_odds: The same, nats; minus infinity for a column that does not vary.
        importance: Relative change of the predictions without it; all sum to 1.
        selected: Whether it is kept.
        stability: Share of the seeds that would keep it by themselves.
        inputs: How many inputs of the network it makes (one-hot columns make several).
    """

    name: str
    probability: float
    log_odds: float
    importance: float
    selected: bool
    stability: float
    inputs: int


@dataclass(frozen=True)
class Selection:
    """A ranked list of features, and how well the selected ones do.

    Attributes:
        features: The most probable first.
        correlated: Groups of features that say the same thing: ``features``, ``probability``.
        constant: Names of columns that do not vary.
        scores: By learner, test scores with ``all`` and with ``selected`` features; accuracy, or
            the share of variance explained.
        seeds: How many fits were averaged.
    """

    features: tuple[Feature, ...]
    correlated: tuple[dict[str, Any], ...]
    constant: tuple[str, ...]
    scores: dict[str, dict[str, float]]
    seeds: int

    @property
    def selected(self) -> list[str]:
        """Names of the features that are kept, the most probable first."""
        return [feature.name for feature in self.features if feature.selected]


def select(
    splits: Splits,
    *,
    method: str = "node-pip",
    net: str = "mlp:32",
    limits: Limits | None = None,
    groups: Sequence[Sequence[str]] = (),
    seeds: int = 1,
    epochs: int | None = None,
    seed: int = 0,
    device: str = "auto",
    report: Callable[[Row], None] | None = None,
) -> Selection:
    """Find out which columns of a table, or inputs of an array, belong in the model.

    Args:
        splits: The data; the test part scores the selected features and nothing else.
        method: Any that judges input features.
        net: Network that is fitted.
        limits: Which rule decides; default: the median rule.
        groups: Names of columns that are kept or dropped together, group by group.
        seeds: Fits from different starts, averaged.
        epochs: Passes over the training data of each; None: 1,400 where ``method`` takes small
            data whole, else by their size.
        seed: Of the first fit.
        device: Where to train.
        report: Called with every row of history.

    Raises:
        BayespareError: If inputs are no columns, or nothing can be said of them.
    """
    limits = limits or Limits()
    train = splits.train
    if len(train.inputs) != 1:
        raise BayespareError(
            f"select: the inputs have shape {train.inputs}; only rows of features can be selected"
        )
    if not methods.find(method).removes:
        raise BayespareError(f"method={method}: keeps everything; use one that judges, as node-pip")
    check_whole("seeds", seeds, 1)
    train, names = grouped(train, groups)
    splits, unit = replace(splits, train=train), units_of(train)
    fits = [_fit(splits, unit, method, net, seed + i, epochs, device, report) for i in range(seeds)]
    odds = torch.stack([line for line, _ in fits])
    pooled = pooled_log_odds(odds)
    inputs = train.x.cpu()
    chosen = choose(pooled, unit, inputs, limits)
    alone = torch.stack([choose(line, unit, inputs, limits).units for line in odds])
    importance = torch.stack([line for _, line in fits]).mean(0)
    features = [
        Feature(
            name,
            float(pooled[i].sigmoid()),
            float(pooled[i]),
            float(importance[i]),
            bool(chosen.units[i]),
            float(alone[:, i].double().mean()),
            int((unit == i).sum()),
        )
        for i, name in enumerate(names)
    ]
    ranked = sorted(features, key=lambda f: (-f.selected, -f.log_odds, -f.importance))
    return Selection(
        tuple(ranked),
        tuple(
            {"features": [names[int(unit[c])] for c in columns], "probability": probability}
            for columns, probability in chosen.correlated
        ),
        tuple(name for i, name in enumerate(names) if _constant(train, unit == i)),
        learner_scores(splits, chosen.units[unit]),
        seeds,
    )


def fit_options(
    method: str, epochs: int | None = None, seed: int = 0, device: str = "auto"
) -> Options:
    """Options of one fit, arguments as :func:`select`."""
    if epochs is None and methods.most_batch(method) is not None:
        epochs = 1400
    return Options(method=method, epochs=epochs, seed=seed, device=device, baseline=False)


def fit_parts(splits: Splits, options: Options) -> tuple[Dataset, Dataset]:
    """Training and validation data of a fit; rows that would choose nothing are trained on."""
    if options.validates(len(splits.train)):
        return splits.train, splits.valid
    whole = splits.train.joined(splits.valid)
    return whole, whole


def pooled_log_odds(odds: Tensor) -> Tensor:
    """Log-odds of the mean probability over fits; ``(S, U)`` to ``(U,)``, exact in the tails."""
    logsigmoid = nn.functional.logsigmoid
    return logsigmoid(odds).logsumexp(0) - logsigmoid(-odds).logsumexp(0)


def units_of(train: Dataset) -> Tensor:
    """Which of the user's columns each input belongs to, shape ``(J,)``."""
    groups = train.feature_groups or tuple(range(train.inputs[0]))
    _, unit = torch.tensor(groups).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    found: Tensor = unit
    return found


def names_of(train: Dataset) -> list[str]:
    """Names of the user's columns, in the order of :func:`units_of`."""
    if isinstance(train.transform, TableTransform):
        return [column.name for column in train.transform.columns]
    names = list(train.features) or [f"x{i}" for i in range(train.inputs[0])]
    unit = units_of(train)
    return [names[int((unit == i).nonzero()[0])] for i in range(int(unit.max()) + 1)]


def grouped(train: Dataset, groups: Sequence[Sequence[str]]) -> tuple[Dataset, list[str]]:
    """Make one unit of the columns of each group.

    Returns:
        The data, and the names of their units: those of the columns, joined by plus signs.

    Raises:
        BayespareError: If a column is unknown or in two groups.
    """
    names = names_of(train)
    label = list(range(len(names)))
    named: set[str] = set()
    for group in groups:
        for name in group:
            if name not in names:
                raise BayespareError(f"groups: no column {name!r}{did_you_mean(name, names)}")
            if name in named:
                raise BayespareError(f"groups: column {name!r} is named twice")
            named.add(name)
            label[names.index(name)] = names.index(group[0])
    joined: dict[int, list[str]] = {}
    for name, own in zip(names, label, strict=True):
        joined.setdefault(own, []).append(name)
    numbers = {own: number for number, own in enumerate(sorted(joined))}
    units = tuple(numbers[label[unit]] for unit in units_of(train).tolist())
    return replace(train, feature_groups=units), ["+".join(joined[own]) for own in numbers]


def _constant(train: Dataset, columns: Tensor) -> bool:
    # Not by their deviation: that of a constant may be rounding.
    values = train.x[:, columns.to(train.x.device)]
    return bool((values == values[0]).all())


def _fit(
    splits: Splits,
    unit: Tensor,
    method: str,
    net: str,
    seed: int,
    epochs: int | None,
    device: str,
    report: Callable[[Row], None] | None,
) -> tuple[Tensor, Tensor]:
    """Log-odds and relative importance of every unit, by one fit."""
    inputs, outputs = splits.train.inputs, splits.train.outputs
    network = nets.build(net, inputs=inputs, outputs=outputs, seed=seed)
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    # Predicts a constant: nothing can take it for a trained network.
    nn.init.zeros_(last.weight)
    options = fit_options(method, epochs, seed, device)
    train, valid = fit_parts(splits, options)
    result = sparsify(network, train, valid=valid, report=report, **vars(options))
    if "input" not in result.log_odds:
        raise BayespareError(f"method={method}: says nothing of input features; use node-pip")
    odds = result.log_odds["input"].double()
    constant = torch.tensor([_constant(train, unit == i) for i in range(len(odds))])
    odds = torch.where(constant, -torch.inf, odds)
    with torch.no_grad():
        x = train.x[:2000].cpu()
        model = result.model.eval()
        whole = model(x)
        kept = result.verdict.keep["input"]
        effects = torch.zeros(len(odds), dtype=torch.float64)
        for i in kept.nonzero()[:, 0].tolist():
            effects[i] = drop(whole, model(x * (unit != i)))
    return odds, relative(effects)


def learner_scores(splits: Splits, kept: Tensor) -> dict[str, dict[str, float]]:
    """Test scores of a linear model and a random forest, with all inputs and with those kept.

    Args:
        splits: The data.
        kept: Boolean per input, shape ``(J,)``.
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.linear_model import LogisticRegression, Ridge

    classes = splits.train.task == "classification"
    learners: dict[str, Callable[[], Any]] = {
        "linear model": (lambda: LogisticRegression(max_iter=2000)) if classes else Ridge,
        "random forest": (
            (lambda: RandomForestClassifier(random_state=0))
            if classes
            else (lambda: RandomForestRegressor(random_state=0))
        ),
    }
    fitted = splits.train.joined(splits.valid).to("cpu")
    x, y = fitted.x.numpy(), fitted.y.numpy()
    test_x, test_y = splits.test.x.cpu().numpy(), splits.test.y.cpu().numpy()
    scores = {}
    for name, make in learners.items():
        row = {"all": float(make().fit(x, y).score(test_x, test_y))}
        if kept.any():
            few = kept.numpy()
            row["selected"] = float(make().fit(x[:, few], y).score(test_x[:, few], test_y))
        scores[name] = row
    return scores
