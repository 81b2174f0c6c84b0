"""Rules for operators that treat every unit alone: pooling, padding, reductions.

Where one of them would work across units instead, it refuses: removing one would change the rest.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import NOBODY, Ids, Value, varying
from bayespare.structure.rules.moves import whole_along
from bayespare.structure.rules.registry import rule


def mixed(flow: Flow, call: Call) -> Value:
    """Refuse a call that works across units."""
    flow.refuse(call, flow.where(call, _MIXES))
    return None


_MIXES = "mixes units with each other"
_SPATIAL = {"1d": 1, "2d": 2, "3d": 3}


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d")
@rule("avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d")
@rule("adaptive_max_pool3d", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
@rule("replication_pad1d", "replication_pad2d", "replication_pad3d", "upsample_nearest1d")
@rule("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d")
def spatial(flow: Flow, call: Call) -> Value:
    """Pooling and the like: acts on each channel alone, over the last dimensions."""
    ids = flow.ids(call.args.get("self", call.args.get("input")))
    if ids is None:
        flow.refuse(call)
        return None
    count = next(number for mark, number in _SPATIAL.items() if mark in call.name)
    if any(axis >= ids.ndim - count for axis in varying(ids)):
        if flow.ledger.is_input(ids):
            flow.ledger.pin(ids, "pooled, not a list of features")
            return None
        return mixed(flow, call)
    return ids


@rule("constant_pad_nd")
def pad(flow: Flow, call: Call) -> Value:
    """Constant padding: padded positions of a unit go with it.

    Channels of zeros (the parameter-free shortcut of a ResNet) become units, so that those they are
    added to may go; features of the input are padded with what belongs to nobody.
    """
    ids = flow.ids(call.args["self"])
    if ids is None:
        flow.refuse(call)
        return None
    amounts = call.args["pad"]
    added = []
    for number in range(len(amounts) // 2):
        axis = ids.ndim - 1 - number
        before, after = amounts[2 * number : 2 * number + 2]
        if ids.shape[axis] == 1 or not (before or after):
            continue
        if min(before, after) < 0 and not flow.ledger.is_input(ids):
            return mixed(flow, call)
        sole = varying(ids) == [axis] and not flow.ledger.is_input(ids)
        if sole and not call.args.get("value"):
            units = flow.ledger.birth(flow.stack.name or "padding", "channel", before + after)
            added.append((units, axis))
        else:
            units = np.full(max(before, 0) + max(after, 0), NOBODY)
        lines = units.reshape([-1 if a == axis else 1 for a in range(ids.ndim)])
        # Features of an image differ along every axis: each gets the same margin.
        lines = np.broadcast_to(
            lines, [len(units) if a == axis else n for a, n in enumerate(ids.shape)]
        )
        first, last = np.split(lines, [max(before, 0)], axis)
        ids = np.concatenate([first, ids, last], axis)
        ids = ids.take(range(max(-before, 0), ids.shape[axis] + min(after, 0)), axis)
    for units, axis in added:
        flow.padded(units, axis, ids)
    return ids


@rule("mean", "sum", "amax", "amin", "var", "std", "max", "min", "logsumexp", "prod")
@rule("linalg_vector_norm", "argmax", "argmin", "any", "all", "var_mean")
def reduce(flow: Flow, call: Call) -> Value:
    """A reduction over dimensions along which no units lie, or which lie within units."""
    ids = flow.ids(call.args.get("self"))
    dims = call.args.get("dim")
    if ids is None or isinstance(call.args.get("other"), Tensor):
        flow.refuse(call)
        return None
    axes = range(ids.ndim) if dims in (None, []) else [dims] if isinstance(dims, int) else dims
    reduced = {axis % ids.ndim for axis in axes}
    whole = _within(flow, call, ids, reduced)
    if whole is None or call.args.get("keepdim") or call.out[0].ndim == ids.ndim:
        return whole
    return whole.squeeze(tuple(reduced))


def _within(flow: Flow, call: Call, ids: Ids, axes: set[int]) -> Ids | None:
    """Ids that do not vary along some dimensions; None when the units themselves lie there."""
    if set(varying(ids)) and not set(varying(ids)) - axes:
        mixed(flow, call)
        return None
    return whole_along(flow, call, ids, sorted(axes), _MIXES)


@rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "sort", "topk")
def scan(flow: Flow, call: Call) -> Value:
    """Along one dimension, on which no units may lie."""
    ids = flow.ids(call.args["self"])
    if ids is None:
        flow.refuse(call)
        return None
    return _within(flow, call, ids, {call.args.get("dim", -1) % ids.ndim})


@rule("glu")
def glu(flow: Flow, call: Call) -> Value:
    """Half of the units gate the other half: each goes with its gate."""
    ids = flow.ids(call.args["self"])
    if ids is None:
        flow.refuse(call)
        return None
    axis = call.args.get("dim", -1) % ids.ndim
    if ids.shape[axis] == 1:
        return ids
    first, second = np.split(ids, 2, axis)
    return flow.ledger.unify(first, second)
