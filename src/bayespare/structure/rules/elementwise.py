"""Rules for element-wise operators: activations, sums, products, casts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import Ids, Value, align, varying
from bayespare.structure.plan import Role
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
        return _of_parameters(flow, call, operands)
    if all(flow.ledger.is_input(i) for i in known):
        for operand in operands:
            ref = flow.ref(operand)
            if ref:
                flow.ledger.lose(ref.name, "acts on the input of the network")
        joined = known[0]
        for ids in known[1:]:
            joined = flow.ledger.unify(joined, ids)
        return joined
    known = _without_masks(flow, call, known)
    spans = [set(varying(ids)) for ids in known]
    axes = set[int]().union(*spans)
    if any(not span <= other and not other <= span for span in spans for other in spans):
        flow.refuse(call, flow.where(call, "combines units of two dimensions"))
        return None
    joined = _join(flow, call, operands, axes)
    for operand in operands:
        if flow.ids(operand) is None:
            joined = _meet(flow, call, operand, joined)
    return joined


def _of_parameters(flow: Flow, call: Call, operands: Sequence[Tensor]) -> Value:
    """A function of one parameter alone still shows it, entry by entry."""
    shape = call.out[0].shape
    if len(operands) == 1 and operands[0].shape == shape:
        return flow.ref(operands[0])
    flow.pin(call.tensors(), flow.where(call, "computes with it beforehand"))
    return None


def _without_masks(flow: Flow, call: Call, known: list[Ids]) -> list[Ids]:
    """Leave out inputs that lie along other dimensions than the units: masks, positions."""
    hidden = [ids for ids in known if not flow.ledger.is_input(ids)]
    axes = {axis for ids in hidden for axis in varying(ids)}
    kept = []
    for ids in known:
        if flow.ledger.is_input(ids) and varying(ids) and not axes & set(varying(ids)):
            flow.ledger.pin(ids, flow.where(call, "combines it with units"))
        else:
            kept.append(ids)
    return kept


def _join(flow: Flow, call: Call, operands: Sequence[Tensor], axes: set[int]) -> Ids:
    """Unify the operands that carry ids along the dimensions on which units lie.

    One that is spread along all of them, as a gate of one channel, has to stay.
    """
    ndim = call.out[0].ndim
    joined: Ids | None = None
    for operand in operands:
        ids = flow.ids(operand)
        if ids is None:
            continue
        placed = not axes or any(place(operand, axis, ndim) is not None for axis in axes)
        ids = align(ids, ndim)
        if flow.ledger.is_input(ids) and varying(ids) and not axes & set(varying(ids)):
            continue
        if placed:
            joined = ids if joined is None else flow.ledger.unify(joined, ids)
        else:
            flow.ledger.pin(ids, flow.where(call, "spreads it over other units"))
    assert joined is not None  # the dimensions were found on one of them
    return joined


def _meet(flow: Flow, call: Call, operand: Tensor, joined: Ids) -> Ids:
    """Let units meet a parameter, which is cut with them, or a tensor of fixed size.

    Where units lie along several dimensions (heads, then the channels of each) it is the first
    along which a parameter is cut; what has a fixed size along the others makes them whole.
    """
    ref = flow.ref(operand)
    used = False
    for number, axis in enumerate(varying(joined)):
        at = place(operand, axis, call.out[0].ndim)
        if at is None:
            continue
        dim = ref.dims[at] if ref else None
        if ref and dim is not None and number == 0:
            row = flow.ledger.collapse(joined, axis, operand.shape[at])
            role: Role = "write" if call.name in _ADDS else "scale"
            flow.ledger.record(ref.name, dim, role, row, ref.start(at))
            joined = _laid(row, axis, joined.ndim)
            used = True
            break
        if len(varying(joined)) == 1:
            fixed = flow.where(call, "meets a tensor of fixed size")
            flow.ledger.pin(joined, flow.why(operand) or fixed)
        else:
            joined = flow.ledger.coarsen(joined, axis)
    if ref and not used:
        flow.ledger.lose(ref.name, "acts on all units at once")
    return joined


def _laid(row: Ids, axis: int, ndim: int) -> Ids:
    shape = [1] * ndim
    shape[axis] = len(row)
    return row.reshape(shape)


def place(operand: Tensor, axis: int, ndim: int) -> int | None:
    """Where a dimension of the result lies in an operand; None when the operand is spread."""
    at = axis - ndim + operand.ndim
    return at if at >= 0 and operand.shape[at] > 1 else None
