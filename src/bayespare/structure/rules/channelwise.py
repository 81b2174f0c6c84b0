"""Rules for operators that treat every unit alone: batch norm, pooling, padding, reductions.

Where one of them would work across units instead, it refuses: removing one would change the rest.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import NOBODY, Value, varying
from bayespare.structure.rules.registry import rule


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
@rule("_native_batch_norm_legit", "_batch_norm_no_update", "miopen_batch_norm", "batch_norm")
def batch_norm(flow: Flow, call: Call) -> Value:
    """Batch normalisation: one scale, shift, mean and variance for each channel."""
    value = call.args["input"]
    ids = flow.ids(value)
    parts = [
        ref
        for k in ("weight", "bias", "running_mean", "running_var")
        if (ref := flow.ref(call.args.get(k)))
    ]
    fixed = call.args.get("running_mean") is not None and not call.args.get("training")
    if ids is not None and flow.ledger.is_input(ids):
        for ref in parts:
            flow.ledger.lose(ref.name, "acts on the input of the network")
        return ids if fixed else _mixed(flow, call)
    elsewhere = ids is not None and set(varying(ids)) - {1}
    if elsewhere and not fixed:
        return _mixed(flow, call)
    row = np.full(value.shape[1], NOBODY)
    if ids is not None and not elsewhere:
        row = flow.ledger.collapse(ids, 1, value.shape[1])
    for ref in parts:
        flow.ledger.record(ref.name, 0, "scale", row)
    return ids


def _mixed(flow: Flow, call: Call) -> Value:
    flow.refuse(call, flow.where(call, "mixes units with each other"))
    return None


@rule("native_layer_norm", "native_group_norm", "_fused_rms_norm")
def normalise(flow: Flow, call: Call) -> Value:
    """Normalisation over the units themselves: removing one would change the others."""
    return _mixed(flow, call)


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
        return _mixed(flow, call)
    return ids


@rule("constant_pad_nd")
def pad(flow: Flow, call: Call) -> Value:
    """Constant padding: padded positions of a unit go with it, padded units belong to nobody."""
    ids = flow.ids(call.args["self"])
    if ids is None:
        flow.refuse(call)
        return None
    amounts = call.args["pad"]
    for number in range(len(amounts) // 2):
        axis = ids.ndim - 1 - number
        if ids.shape[axis] > 1:
            before, after = amounts[2 * number : 2 * number + 2]
            if min(before, after) < 0 and not flow.ledger.is_input(ids):
                return _mixed(flow, call)
            width = [(0, 0)] * ids.ndim
            width[axis] = (max(before, 0), max(after, 0))
            ids = np.pad(ids, width, constant_values=NOBODY)
            stop = ids.shape[axis] + min(after, 0)
            ids = ids.take(range(max(-before, 0), stop), axis)
    return ids


@rule("mean", "sum", "amax", "amin", "var", "std", "max", "min", "logsumexp", "prod")
@rule("linalg_vector_norm", "argmax", "argmin")
def reduce(flow: Flow, call: Call) -> Value:
    """A reduction over dimensions along which no units lie."""
    ids = flow.ids(call.args.get("self"))
    dims = call.args.get("dim")
    if ids is None or isinstance(call.args.get("other"), Tensor):
        flow.refuse(call)
        return None
    axes = range(ids.ndim) if dims in (None, []) else [dims] if isinstance(dims, int) else dims
    reduced = {axis % ids.ndim for axis in axes}
    if reduced & set(varying(ids)):
        return _mixed(flow, call)
    if call.args.get("keepdim") or call.out[0].ndim == ids.ndim:
        return ids
    return ids.squeeze(tuple(reduced))


@rule("_softmax", "_log_softmax", "cumsum", "sort", "topk")
def scan(flow: Flow, call: Call) -> Value:
    """Along one dimension, on which no units may lie."""
    ids = flow.ids(call.args["self"])
    if ids is None:
        flow.refuse(call)
        return None
    return _mixed(flow, call) if call.args.get("dim", -1) % ids.ndim in varying(ids) else ids


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
