"""What can be removed from a network, and removing it: trace, mask, compact, close, count."""

from bayespare.structure.closure import close
from bayespare.structure.compact import compact, mask
from bayespare.structure.counting import Counts, count
from bayespare.structure.narrow import NarrowAttention, NarrowLayerNorm, NarrowRMSNorm
from bayespare.structure.plan import Fixture, Group, Plan, Slot, Verdict
from bayespare.structure.recalibrate import recalibrate
from bayespare.structure.select import Select
from bayespare.structure.sizes import follow
from bayespare.structure.slicing import slice_slots
from bayespare.structure.trace import trace
from bayespare.structure.uniform import uniform

__all__ = [
    "Counts",
    "Fixture",
    "Group",
    "NarrowAttention",
    "NarrowLayerNorm",
    "NarrowRMSNorm",
    "Plan",
    "Select",
    "Slot",
    "Verdict",
    "close",
    "compact",
    "count",
    "follow",
    "mask",
    "recalibrate",
    "slice_slots",
    "trace",
    "uniform",
]
