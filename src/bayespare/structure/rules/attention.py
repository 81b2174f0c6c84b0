"""Rules for products of units with units: attention, whose heads are units."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import Ids, Value, varying
from bayespare.structure.rules.registry import rule

_SHARED = "is shared by all heads"
_ALONE = "meets a tensor of fixed size"


def product(flow: Flow, call: Call, left: Ids | None, right: Ids | None) -> Value:
    """A matrix product of two tensors that carry units, ``(..., n, k)`` by ``(..., k, m)``.

    Along ``k`` a unit of one is a unit of the other: it adds a term that is zero when both are
    removed. Along the batch (heads) a unit of one is a unit of the other as well, and all that
    lies within one batch entry goes with it.
    """
    sides = [side for side in (left, right) if side is not None]
    if any(flow.ledger.is_input(side) for side in sides):
        flow.refuse(call, flow.where(call, "multiplies it with units"))
        return None
    batch = set(range(call.out[0].ndim - 2))
    if left is not None and set(varying(left)) & batch:
        left = _heads(flow, call, left, batch)
    if right is not None and set(varying(right)) & batch:
        right = _heads(flow, call, right, batch)
    left, right = _contracted(flow, call, left, right)
    return _outer(flow, call, left, right)


def _heads(flow: Flow, call: Call, ids: Ids, batch: set[int]) -> Ids:
    """Make every batch entry whole: its units are one, a head."""
    for axis in set(varying(ids)) - batch:
        ids = flow.ledger.coarsen(ids, axis)
    flow.ledger.mark(ids, "head", flow.stack.name)
    return ids


def _contracted(
    flow: Flow, call: Call, left: Ids | None, right: Ids | None
) -> tuple[Ids | None, Ids | None]:
    """Settle the dimension that is summed over; what is left lies along the others."""
    rows, columns = _line(left, -1), _line(right, -2)
    if rows is not None and columns is not None:
        flow.ledger.unify(rows, columns)
    elif rows is not None:
        flow.ledger.pin(rows, flow.where(call, _SHARED if right is not None else _ALONE))
    elif columns is not None:
        flow.ledger.pin(columns, flow.where(call, _SHARED if left is not None else _ALONE))
    return (None if rows is not None else left), (None if columns is not None else right)


def _line(ids: Ids | None, axis: int) -> Ids | None:
    """The ids along one dimension when units lie along that one."""
    if ids is None or ids.shape[axis] == 1:
        return None
    line: Ids = np.moveaxis(ids, axis, -1).reshape(-1, ids.shape[axis])[0]
    return line


def _outer(flow: Flow, call: Call, left: Ids | None, right: Ids | None) -> Value:
    """Lay what is left along the dimensions of the result."""
    found = [side for side in (left, right) if side is not None]
    if len(found) < 2:
        if found and set(varying(found[0])) & set(range(call.out[0].ndim - 2)):
            flow.ledger.pin(found[0], flow.where(call, _ALONE))
            return None
        return found[0] if found else None
    first, second = found
    if varying(first) != varying(second):
        # Rows of one by columns of the other: an entry would belong to two units.
        flow.refuse(call, flow.where(call, "combines units of two dimensions"))
        return None
    return flow.ledger.unify(first, second)


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention")
@rule("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention")
@rule("_scaled_dot_product_fused_attention_overrideable")
@rule("_scaled_dot_product_attention_math")
def scaled_dot_product(flow: Flow, call: Call) -> Value:
    """Attention, ``(batch, heads, positions, channels)``: heads are units.

    With fewer keys than queries a key's head and all query heads that use it are one unit.
    """
    query, key, value = (call.args[name] for name in ("query", "key", "value"))
    mask = call.args.get("attn_mask", call.args.get("attn_bias"))
    found = [ids for t in (query, key, value) if (ids := flow.ids(t)) is not None]
    if any(flow.ledger.is_input(ids) for ids in found):
        flow.refuse(call, flow.where(call, "attends with it"))
        return None
    axis = query.ndim - 3
    heads = query.shape[axis]
    if not any(ids.shape[axis] > 1 for ids in found):
        return _single(flow, call)
    joined: Ids | None = None
    for tensor in (query, key, value):
        ids = flow.ids(tensor)
        if ids is None or ids.shape[axis] == 1:
            if ids is not None:
                flow.ledger.pin(ids, flow.where(call, _SHARED))
            if tensor.shape[axis] > 1:
                flow.refuse(call, flow.where(call, _ALONE))
                return None
            continue
        ids = _heads(flow, call, ids, set(range(axis + 1)))
        ids = np.repeat(ids, heads // tensor.shape[axis], axis)
        joined = ids if joined is None else flow.ledger.unify(joined, ids)
    return joined if _masked_alike(flow, call, mask) else None


def _masked_alike(flow: Flow, call: Call, mask: Tensor | None) -> bool:
    """Whether a mask is the same for every head; refuses the call when it is not."""
    ids = None if mask is None else flow.ids(mask)
    if ids is not None and flow.ledger.is_input(ids):
        flow.ledger.pin(ids, flow.where(call, "masks with it"))
        ids = None
    if ids is not None or (mask is not None and mask.ndim > 2 and mask.shape[-3] > 1):
        flow.refuse(call, flow.where(call, "has a mask of its own for every head"))
        return False
    return True


def _single(flow: Flow, call: Call) -> Value:
    """One head, or heads that are no units: channels of the values pass through alone."""
    for name in ("query", "key"):
        ids = flow.ids(call.args[name])
        if ids is not None:
            what = "scales by the width of a head"
            flow.owe([ids], flow.where(call, what), call.out)
    mask = call.args.get("attn_mask", call.args.get("attn_bias"))
    ids = flow.ids(call.args["value"])
    if not _masked_alike(flow, call, mask):
        return None
    if ids is not None and varying(ids) != [ids.ndim - 1]:
        flow.refuse(call)
        return None
    return ids
