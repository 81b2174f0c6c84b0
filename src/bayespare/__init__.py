"""Bayespare: give it a PyTorch model and data, get back a smaller one that knows how sure it is."""

from bayespare.errors import BayespareError, NonFiniteLossError, UnsupportedStructureError
from bayespare.export import Exported, export
from bayespare.load import LoadedRun, load
from bayespare.options import Options
from bayespare.pipeline import sparsify
from bayespare.posthoc import prune, reduce
from bayespare.result import Point, Result
from bayespare.runtime import SparseRuntime, sparse_runtime
from bayespare.structure import (
    Counts,
    Group,
    Plan,
    Slot,
    Verdict,
    close,
    compact,
    count,
    mask,
    recalibrate,
    trace,
    uniform,
)
from bayespare.training.finish import Finished, finish
from bayespare.version import __version__

__all__ = [
    "BayespareError",
    "Counts",
    "Exported",
    "Finished",
    "Group",
    "LoadedRun",
    "NonFiniteLossError",
    "Options",
    "Plan",
    "Point",
    "Result",
    "Slot",
    "SparseRuntime",
    "UnsupportedStructureError",
    "Verdict",
    "__version__",
    "close",
    "compact",
    "count",
    "export",
    "finish",
    "load",
    "mask",
    "prune",
    "recalibrate",
    "reduce",
    "sparse_runtime",
    "sparsify",
    "trace",
    "uniform",
]
