"""Rules for element-wise operators: activations, sums, products, casts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import Ids, Value, align, varying
from bayespare.structure.rules.registry import rule

_ADDS = frozenset({"add", "add_", "sub", "sub_", "rsub"})


@rule("hardswish", "hardswish_", "_prelu_kernel", "log_sigmoid_forward", "copy_", "masked_fill")
@rule("rrelu_with_noise", "native_dropout", "where", "masked_fill_")
def pointwise(flow: Flow, call: Call) -> Value:
    """Element by element: operands that lie on each other are the same units."""
    ndim = call.out[0].ndim
    operands = [operand for operand in call.tensors() if operand.ndim]
    known = [align(i, ndim) for o in operands if (i := flow.ids(o)) is not None]
    if not known:
        flow.pin(call.tensors(), flow.where(call, "computes with it beforehand"))
        return None
    if all(flow.ledger.is_input(i) for i in known):
        for operand in operands:
            ref = flow.ref(operand)
            if ref:
                flow.ledger.lose(ref.name, "acts on the input of the network")
        joined = known[0]
        for ids in known[1:]:
            joined = flow.ledger.unify(joined, ids)
        return joined
    axes = {axis for ids in known for axis in varying(ids)}
    if len(axes) > 1:
        flow.refuse(call, flow.where(call, "combines units of two dimensions"))
        return None
    return _along_units(flow, call, operands, axes.pop() if axes else None)


def _along_units(flow: Flow, call: Call, operands: Sequence[Tensor], axis: int | None) -> Value:
    """Join operands whose units lie along one dimension (None: each has a single unit)."""
    ndim = call.out[0].ndim
    places = [_place(operand, axis, ndim) for operand in operands]
    joined: Ids | None = None
    for operand, place in zip(operands, places, strict=True):
        ids = flow.ids(operand)
        if ids is not None and (axis is None or place is not None):
            ids = align(ids, ndim)
            joined = ids if joined is None else flow.ledger.unify(joined, ids)
        elif ids is not None:
            flow.ledger.pin(ids, flow.where(call, "spreads it over other units"))
    assert joined is not None  # the dimension was found on one of them
    for operand, place in zip(operands, places, strict=True):
        ref = flow.ref(operand)
        dim = ref.dims[place] if ref and place is not None else None
        if ref and dim is not None and place is not None:
            row = flow.ledger.collapse(joined, axis or 0, operand.shape[place])
            flow.ledger.record(ref.name, dim, "write" if call.name in _ADDS else "scale", row)
        elif ref:
            flow.ledger.lose(ref.name, "acts on all units at once")
        elif flow.ids(operand) is None and place is not None:
            flow.ledger.pin(joined, flow.where(call, "meets a tensor of fixed size"))
    return joined


def _place(operand: Tensor, axis: int | None, ndim: int) -> int | None:
    """Where a dimension of the result lies in an operand; None when the operand is spread."""
    if axis is None:
        return None
    place = axis - ndim + operand.ndim
    return place if place >= 0 and operand.shape[place] > 1 else None
