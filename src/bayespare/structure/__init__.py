"""What can be removed from a network, and removing it: trace, mask, compact, close, count."""

from bayespare.structure.closure import close
from bayespare.structure.compact import compact, mask
from bayespare.structure.counting import Counts, count
from bayespare.structure.plan import Group, Plan, Slot, Verdict
from bayespare.structure.select import Select
from bayespare.structure.slicing import slice_slots
from bayespare.structure.trace import trace

__all__ = [
    "Counts",
    "Group",
    "Plan",
    "Select",
    "Slot",
    "Verdict",
    "close",
    "compact",
    "count",
    "mask",
    "slice_slots",
    "trace",
]
