"""The table of verbs: adding one touches its own file, its keys and a row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bayespare.cli.config import config
from bayespare.cli.evaluate import evaluate
from bayespare.cli.explain import explain
from bayespare.cli.export import export
from bayespare.cli.fit import fit
from bayespare.cli.keys import (
    ConfigKeys,
    EvalKeys,
    ExplainKeys,
    ExportKeys,
    FitKeys,
    Keys,
    PickKeys,
    PredictKeys,
    PruneKeys,
    ReduceKeys,
    ReportKeys,
    SelectKeys,
    SweepKeys,
)
from bayespare.cli.output import Output
from bayespare.cli.pick import pick
from bayespare.cli.predict import predict
from bayespare.cli.reduce import prune, reduce
from bayespare.cli.report import report
from bayespare.cli.select import select
from bayespare.cli.sweep import sweep


@dataclass(frozen=True)
class Verb:
    """One verb.

    Attributes:
        keys: What it can be told.
        run: Does it, and returns the object that ``--json`` prints.
    """

    keys: type[Keys]
    run: Callable[[Any, Output], Mapping[str, Any]]


VERBS: Mapping[str, Verb] = {
    "fit": Verb(FitKeys, fit),
    "pick": Verb(PickKeys, pick),
    "eval": Verb(EvalKeys, evaluate),
    "predict": Verb(PredictKeys, predict),
    "explain": Verb(ExplainKeys, explain),
    "export": Verb(ExportKeys, export),
    "reduce": Verb(ReduceKeys, reduce),
    "prune": Verb(PruneKeys, prune),
    "select": Verb(SelectKeys, select),
    "sweep": Verb(SweepKeys, sweep),
    "config": Verb(ConfigKeys, config),
    "report": Verb(ReportKeys, report),
}
