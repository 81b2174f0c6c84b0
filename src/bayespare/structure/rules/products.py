"""Rules for products with a parameter: where units are read and where new ones are born."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import NOBODY, Ids, Ref, Value, varying
from bayespare.structure.plan import UnitKind
from bayespare.structure.rules.registry import rule

_NOT_PLAIN = "has a weight that is not a plain parameter"


def _multiply(
    flow: Flow,
    call: Call,
    value: Tensor,
    in_axis: int,
    ref: Ref,
    dims: tuple[int | None, int | None],
    kind: UnitKind = "unit",
) -> tuple[Ids, Ids | None]:
    """Read units along ``in_axis`` through a weight; return the new units and those kept.

    Args:
        flow: The state of the trace.
        call: The product.
        value: What is multiplied by the weight.
        in_axis: The dimension of ``value`` that is summed over.
        ref: The weight.
        dims: Its stored dimensions that are read and written.
        kind: What the new units are.

    Returns:
        The ids of the layer's outputs, and the ids that pass through along another dimension of
        ``value`` (None when there are none), in which case the outputs are not removable.
    """
    read, write = dims
    assert read is not None  # callers refuse a weight whose matrix dimensions were added
    assert write is not None
    ledger = flow.ledger
    units = ledger.birth(flow.group_name(ref.name), kind, ledger.named[ref.name].shape[write])
    ledger.record(ref.name, write, "write", units)
    ids = flow.ids(value)
    size = value.shape[in_axis]
    in_axis %= value.ndim
    through = None
    if ids is not None and not ledger.is_input(ids) and set(varying(ids)) - {in_axis}:
        ledger.pin(units, flow.where(call, "mixes positions, not units"))
        through, ids = ids, None
    columns = np.full(size, NOBODY) if ids is None else ledger.collapse(ids, in_axis, size)
    features = (columns >= 0) & (columns < ledger.input_size)
    if features.any() and (kind == "channel" or not flow.reads_plainly(ref.name)):
        what = "convolved" if kind == "channel" else "read outside a Linear layer"
        ledger.pin(columns[features], f"{what}, not a list of features")
    ledger.record(ref.name, read, "read", columns)
    return units, through


def _add_bias(flow: Flow, call: Call, bias: Any, axis: int, units: Ids) -> None:
    """Let a bias belong to the units it is added to."""
    if bias is None:
        return
    ref = flow.ref(bias)
    dim = ref.dims[axis] if ref else None
    if ref and dim is not None and bias.shape[axis] == len(units):
        flow.ledger.record(ref.name, dim, "write", units)
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
    """A matrix product with a parameter on one side."""
    left, right = (call.args[factor] for factor in _FACTORS[call.name])
    left_ref, right_ref = flow.ref(left), flow.ref(right)
    ref = right_ref or left_ref
    if (
        ref is None
        or (left_ref and right_ref)
        or None in ref.dims[-2:]
        or any(dim is not None for dim in ref.dims[:-2])
    ):
        both = flow.ids(left) is not None and flow.ids(right) is not None
        what = "multiplies units with each other" if both else _NOT_PLAIN
        flow.refuse(call, flow.where(call, what))
        return None
    if right_ref:
        value, in_axis, dims = left, -1, (ref.dims[-2], ref.dims[-1])
    else:
        value, in_axis, dims = right, -2, (ref.dims[-1], ref.dims[-2])
    units, through = _multiply(flow, call, value, in_axis, ref, dims)
    if call.name in ("addmm", "baddbmm"):
        bias = call.args["self"]
        _add_bias(flow, call, bias, in_axis if bias.ndim >= -in_axis else 0, units)
    return through if through is not None else _laid(units, in_axis, call.out[0].ndim)


@rule("linear")
def linear(flow: Flow, call: Call) -> Value:
    """A linear layer that its backend runs as one operator."""
    value, ref = call.args["input"], flow.ref(call.args["weight"])
    if ref is None or ref.dims != (0, 1):
        flow.refuse(call, flow.where(call, _NOT_PLAIN))
        return None
    units, through = _multiply(flow, call, value, -1, ref, (1, 0))
    _add_bias(flow, call, call.args.get("bias"), -1, units)
    return through if through is not None else _laid(units, -1, call.out[0].ndim)


@rule("convolution")
def convolution(flow: Flow, call: Call) -> Value:
    """A convolution over one group of channels."""
    ref = flow.ref(call.args["weight"])
    if ref is None or None in ref.dims[:2]:
        flow.refuse(call, flow.where(call, _NOT_PLAIN))
        return None
    if call.args["groups"] != 1 or call.args["transposed"]:
        kind = "grouped" if call.args["groups"] != 1 else "transposed"
        flow.refuse(call, f"{kind} convolution (in {flow.stack.place}) is not understood")
        return None
    units, through = _multiply(
        flow, call, call.args["input"], 1, ref, (ref.dims[1], ref.dims[0]), "channel"
    )
    _add_bias(flow, call, call.args["bias"], 0, units)
    if through is not None:
        flow.ledger.pin(through[through >= 0], flow.where(call, "convolves over units"))
        return None
    return _laid(units, 1, call.out[0].ndim)


def _laid(units: Ids, axis: int, ndim: int) -> Ids:
    """Lay ids along one dimension."""
    shape = [1] * ndim
    shape[axis] = len(units)
    return units.reshape(shape)
