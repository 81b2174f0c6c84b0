"""Rules for products with a parameter: where units are read and where new ones are born."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import NOBODY, Ids, Ref, Value, varying
from bayespare.structure.plan import UnitKind
from bayespare.structure.rules.attention import product
from bayespare.structure.rules.registry import rule

NOT_PLAIN = (
    "has a weight that is not a plain parameter (if it is parametrized: "
    "torch.nn.utils.parametrize.remove_parametrizations makes it one)"
)


def multiply(
    flow: Flow,
    call: Call,
    value: Tensor,
    in_axis: int,
    ref: Ref,
    axes: tuple[int, int],
    sizes: tuple[int, int],
    kind: UnitKind = "unit",
) -> tuple[Ids, Ids | None]:
    """Read units along ``in_axis`` through a weight; return the new units and those kept.

    Args:
        flow: The state of the trace.
        call: The product.
        value: What is multiplied by the weight.
        in_axis: The dimension of ``value`` that is summed over.
        ref: The weight, or the part of it that is used.
        axes: Its dimensions that are read and written.
        sizes: How long they are.
        kind: What the new units are.

    Returns:
        The ids of the layer's outputs, and the ids that pass through along another dimension of
        ``value`` (None when there are none), in which case the outputs are not removable.
    """
    read, write = (ref.dims[axis] for axis in axes)
    assert read is not None  # callers refuse a weight whose matrix dimensions were added
    assert write is not None
    ledger = flow.ledger
    units = ledger.birth(flow.group_name(ref.name), kind, sizes[1])
    ledger.record(ref.name, write, "write", units, ref.start(axes[1]))
    ids = flow.ids(value)
    size = value.shape[in_axis]
    in_axis %= value.ndim
    through = None
    if ids is not None and not ledger.is_input(ids) and set(varying(ids)) > {in_axis}:
        # Heads read through one weight: what it reads of every head is the same.
        ids = ledger.coarsen(ids, in_axis)
    if ids is not None and not ledger.is_input(ids) and set(varying(ids)) - {in_axis}:
        ledger.pin(units, flow.where(call, "mixes positions, not units"))
        through, ids = ids, None
    columns = np.full(size, NOBODY) if ids is None else ledger.collapse(ids, in_axis, size)
    features = (columns >= 0) & (columns < ledger.input_size)
    if features.any() and (kind == "channel" or not flow.reads_plainly(ref.name)):
        what = "convolved" if kind == "channel" else "read outside a Linear layer"
        ledger.pin(columns[features], f"{what}, not a list of features")
    elif kind == "unit" and flow.reads_plainly(ref.name) and len(np.unique(columns)) < size:
        ledger.fixture(flow.stack.name, "flat", "inputs", columns)
    ledger.record(ref.name, read, "read", columns, ref.start(axes[0]))
    return units, through


def add_bias(flow: Flow, call: Call, bias: Any, axis: int, units: Ids) -> None:
    """Let a bias belong to the units it is added to."""
    if bias is None:
        return
    ref = flow.ref(bias)
    dim = ref.dims[axis] if ref else None
    if ref and dim is not None and bias.shape[axis] == len(units):
        flow.ledger.record(ref.name, dim, "write", units, ref.start(axis))
    else:
        flow.pin(iter([bias]), flow.where(call, "adds it to a product"))
        flow.ledger.pin(units, flow.where(call, "adds what is not a parameter"))


_FACTORS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
}


@rule(*_FACTORS)
def matmul(flow: Flow, call: Call) -> Value:
    """A matrix product with a parameter on one side, or of units with units."""
    left, right = (call.args[factor] for factor in _FACTORS[call.name])
    left_ref, right_ref = flow.ref(left), flow.ref(right)
    ref = right_ref or left_ref
    if ref is None and call.name != "addmm":
        return _of_units(flow, call, left, right)
    if (
        ref is None
        or (left_ref and right_ref)
        or None in ref.dims[-2:]
        or any(dim is not None for dim in ref.dims[:-2])
    ):
        flow.refuse(call, flow.where(call, NOT_PLAIN))
        return None
    # The dimensions of the weight that are read and written; the value's that is summed over.
    if right_ref:
        value, in_axis, weight, axes = left, -1, right, (right.ndim - 2, right.ndim - 1)
    else:
        value, in_axis, weight, axes = right, -2, left, (left.ndim - 1, left.ndim - 2)
    sizes = (weight.shape[axes[0]], weight.shape[axes[1]])
    flow.make(call.out[0], ref.name)
    units, through = multiply(flow, call, value, in_axis, ref, axes, sizes)
    if call.name in ("addmm", "baddbmm"):
        bias = call.args["self"]
        add_bias(flow, call, bias, in_axis if bias.ndim >= -in_axis else 0, units)
    return through if through is not None else laid(units, in_axis, call.out[0].ndim)


def _of_units(flow: Flow, call: Call, left: Tensor, right: Tensor) -> Value:
    """A product in which no factor is a parameter; what is added must be alike for all heads."""
    added = call.args["self"] if call.name == "baddbmm" else None
    if added is not None:
        ids = flow.ids(added)
        if ids is not None and flow.ledger.is_input(ids):
            flow.ledger.pin(ids, flow.where(call, "masks with it"))
        elif ids is not None or flow.ref(added) is not None or added.shape[0] > 1:
            flow.refuse(call, flow.where(call, "has a mask of its own for every head"))
            return None
    return product(flow, call, flow.ids(left), flow.ids(right))


@rule("linear")
def linear(flow: Flow, call: Call) -> Value:
    """A linear layer that its backend runs as one operator."""
    value, ref = call.args["input"], flow.ref(call.args["weight"])
    if ref is None or None in ref.dims:
        flow.refuse(call, flow.where(call, NOT_PLAIN))
        return None
    rows, columns = call.args["weight"].shape
    flow.make(call.out[0], ref.name)
    units, through = multiply(flow, call, value, -1, ref, (1, 0), (columns, rows))
    add_bias(flow, call, call.args.get("bias"), -1, units)
    return through if through is not None else laid(units, -1, call.out[0].ndim)


@rule("embedding")
def embedding(flow: Flow, call: Call) -> Value:
    """A table of vectors: its columns are units, its rows (the vocabulary) stay."""
    indices, ref = call.args["indices"], flow.ref(call.args["weight"])
    ids = flow.ids(indices)
    if ids is not None:
        flow.ledger.pin(ids, flow.where(call, "looks it up, which is no list of features"))
    if ref is None or ref.dims[1] is None:
        flow.refuse(call, flow.where(call, NOT_PLAIN))
        return None
    columns = call.args["weight"].shape[1]
    units = flow.ledger.birth(flow.group_name(ref.name), "unit", columns)
    flow.ledger.record(ref.name, ref.dims[1], "write", units, ref.start(1))
    return laid(units, -1, call.out[0].ndim)


def laid(units: Ids, axis: int, ndim: int) -> Ids:
    """Lay ids along one dimension."""
    shape = [1] * ndim
    shape[axis] = len(units)
    return units.reshape(shape)
