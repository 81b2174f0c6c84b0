"""``eval``: how good a run's network is on data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bayespare.cli.keys import EvalKeys
from bayespare.cli.output import Output
from bayespare.cli.runs import fingerprint, load_run, own_data, scores
from bayespare.cli.tables import scores_table
from bayespare.data import read_inputs
from bayespare.data.read import read
from bayespare.errors import BayespareError
from bayespare.load import LoadedRun
from bayespare.runtime import sparse_runtime


def evaluate(keys: EvalKeys, output: Output) -> Mapping[str, Any]:
    """Print the scores of the posterior's mean and of the average over its draws.

    Raises:
        BayespareError: If the run or the data cannot be read, or do not fit each other.
    """
    run = load_run(keys.run, keys.net, "eval")
    what, x, y = _rows(run, keys)
    found = scores(run, x, y, keys.samples)
    output.say(f"{what}: {len(y):,} rows")
    output.say(scores_table(found))
    sparse = _sparse(run, run.as_read(x), output)
    return {"run": str(run.folder), "data": what, "rows": len(y), **found, **sparse}


def _sparse(run: LoadedRun, x: Tensor, output: Output) -> dict[str, Any]:
    """Whether linear layers that are mostly zero are faster as CSR here; nothing without any."""
    found = {}
    for batch in (1, 256):
        runtime = sparse_runtime(run.model, x[:batch], batch=batch)
        if not runtime.layers:
            return {}
        output.say(str(runtime))
        found[str(batch)] = {
            "layers": list(runtime.taken),
            "dense_ms": runtime.dense_ms,
            "sparse_ms": runtime.sparse_ms,
        }
    return {"sparse_runtime": found}


def _rows(run: LoadedRun, keys: EvalKeys) -> tuple[str, Tensor, Tensor]:
    """A part of the run's own data, or all rows of others."""
    if keys.data is None or _is_own(run, keys.data):
        splits = own_data(run)
        part = getattr(splits, keys.split)
        return f"{splits.name}, {keys.split} split", part.x, part.y
    if "split" in keys.model_fields_set:
        raise BayespareError(
            f"eval: split={keys.split} is for the run's own data, {keys.data} are others"
        )
    x, y = read_inputs(keys.data, run.transform, target=run.target)
    if y is None:
        column = f" (target column {run.target.column!r})" if run.target.column else ""
        raise BayespareError(f"{keys.data}: there are no targets to compare with{column}")
    return keys.data, x, y


def _is_own(run: LoadedRun, data: str) -> bool:
    """Whether these are the bytes the run was fitted on, most of which it has learnt."""
    known = fingerprint(run)
    return known is not None and read(data, need_labels=False).fingerprint == known
