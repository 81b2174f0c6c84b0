"""Bayespare: give it a PyTorch model and data, get back a smaller one that knows how sure it is."""

__version__ = "0.1.0"

from bayespare.errors import BayespareError, NonFiniteLossError, UnsupportedStructureError
from bayespare.pipeline import Options, sparsify
from bayespare.result import Point, Result
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
    trace,
)

__all__ = [
    "BayespareError",
    "Counts",
    "Group",
    "NonFiniteLossError",
    "Options",
    "Plan",
    "Point",
    "Result",
    "Slot",
    "UnsupportedStructureError",
    "Verdict",
    "close",
    "compact",
    "count",
    "mask",
    "sparsify",
    "trace",
]
