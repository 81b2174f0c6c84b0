"""``predict``: a CSV file with what the network says about every row, and how sure it is."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bayespare.cli.keys import PredictKeys
from bayespare.cli.output import Output
from bayespare.cli.runs import load_run
from bayespare.data import read_inputs
from bayespare.errors import BayespareError
from bayespare.measure import ClassPrediction, Prediction
from bayespare.training.checkpoint import replacing


def predict(keys: PredictKeys, output: Output) -> Mapping[str, Any]:
    """Write predictions averaged over the posterior.

    Classification: ``row``, ``label``, one column ``p(class)`` for each class, and
    ``epistemic_nats`` (mutual information of label and parameters). Regression: ``row``,
    ``mean``, ``std`` (epistemic and noise together) and ``epistemic_std``, in the target's units.
    Rows are counted from 0.

    Raises:
        BayespareError: If something is missing, the file exists, or the data do not fit.
    """
    if keys.data is None or keys.out is None:
        missing = "data" if keys.data is None else "out"
        raise BayespareError(
            f"predict: {missing}= is missing, as in: bayespare predict RUN data=FILE out=p.csv"
        )
    path = Path(keys.out)
    if path.is_dir():
        raise BayespareError(f"out={path}: is a folder")
    if path.exists() and not keys.exist_ok:
        raise BayespareError(f"out={path}: exists; choose another file, or give exist_ok=true")
    if not path.parent.is_dir():
        raise BayespareError(f"out={path}: there is no folder {path.parent}")
    run = load_run(keys.run, keys.net, "predict")
    x = read_inputs(keys.data, run.transform).x
    prediction = run.predict(x, samples=keys.samples)
    _write(path, rows(prediction, run.classes))
    output.say(f"{len(x):,} rows: {path}")
    return {"run": str(run.folder), "out": str(path), "rows": len(x)}


def rows(prediction: Prediction, classes: Sequence[str]) -> Iterator[list[Any]]:
    """The lines of the file, the header first."""
    if isinstance(prediction, ClassPrediction):
        yield ["row", "label", *(f"p({name})" for name in classes), "epistemic_nats"]
        labels, epistemic = prediction.labels.tolist(), prediction.epistemic.tolist()
        for i, probs in enumerate(prediction.probs.tolist()):
            yield [i, classes[labels[i]], *map(_short, probs), _short(epistemic[i])]
        return
    yield ["row", "mean", "std", "epistemic_std"]
    columns = (prediction.mean, prediction.variance.sqrt(), prediction.epistemic.sqrt())
    for i, values in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        yield [i, *map(_short, values)]


def _short(value: float) -> str:
    return f"{value:.9g}"


def _write(path: Path, lines: Iterator[list[Any]]) -> None:
    """Write aside, then rename: a file is whole or not there."""
    with replacing(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
