"""Rules for normalisation: over the batch, over the groups of a GroupNorm, over the units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import NOBODY, Ids, Ref, Value, varying
from bayespare.structure.narrow import NarrowLayerNorm, NarrowRMSNorm
from bayespare.structure.rules.channelwise import mixed
from bayespare.structure.rules.moves import whole_along
from bayespare.structure.rules.registry import module_rule, rule


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
@rule("_native_batch_norm_legit", "_batch_norm_no_update", "miopen_batch_norm", "batch_norm")
def batch_norm(flow: Flow, call: Call) -> Value:
    """Batch normalisation: one scale, shift, mean and variance for each channel."""
    value = call.args["input"]
    ids = flow.ids(value)
    refs = _refs(
        flow, [call.args.get(k) for k in ("weight", "bias", "running_mean", "running_var")]
    )
    fixed = call.args.get("running_mean") is not None and not call.args.get("training")
    if ids is not None and flow.ledger.is_input(ids):
        for ref in refs:
            flow.ledger.lose(ref.name, "acts on the input of the network")
        return ids if fixed else mixed(flow, call)
    elsewhere = ids is not None and set(varying(ids)) - {1}
    if elsewhere and not fixed:
        return mixed(flow, call)
    row = np.full(value.shape[1], NOBODY)
    if ids is not None and not elsewhere:
        row = flow.ledger.collapse(ids, 1, value.shape[1])
    for ref in refs:
        _scale(flow, ref, row)
    maker = flow.maker(value)
    if maker is not None and call.args.get("weight") is not None:
        flow.ledger.fixture(flow.stack.name, "gain", maker, row)
    return ids


def _refs(flow: Flow, tensors: Sequence[Any]) -> list[Ref]:
    return [ref for tensor in tensors if (ref := flow.ref(tensor)) is not None]


def _scale(flow: Flow, ref: Ref, row: Ids) -> None:
    """Let the entries of a norm's parameter belong to the units they act on."""
    if ref.dims == (0,):
        flow.ledger.record(ref.name, 0, "scale", row, ref.start(0))
    else:
        flow.ledger.lose(ref.name, "is rearranged before a norm")


@module_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm(flow: Flow, call: Call, module: nn.Module, value: Tensor) -> Value:
    """Instance normalisation: every channel of every example alone."""
    ids = flow.ids(value)
    refs = _refs(flow, [*module._parameters.values(), *module._buffers.values()])
    refs = [ref for ref in refs if ref.dims]
    if ids is None or flow.ledger.is_input(ids) or varying(ids) not in ([], [1]):
        for ref in refs:
            flow.ledger.lose(ref.name, "acts on no removable unit")
        return None if ids is None else mixed(flow, call)
    row = flow.ledger.collapse(ids, 1, value.shape[1])
    for ref in refs:
        _scale(flow, ref, row)
    flow.counts("num_features", row)
    return ids


@rule("native_group_norm")
def group_norm(flow: Flow, call: Call) -> Value:
    """Group normalisation: the channels that are normalised together are one unit."""
    ids, groups = flow.ids(call.args["input"]), call.args["group"]
    refs = _refs(flow, [call.args.get("weight"), call.args.get("bias")])
    channels = call.args["C"]
    if ids is None:
        for ref in refs:
            _scale(flow, ref, np.full(channels, NOBODY))
        return None
    if flow.ledger.is_input(ids) or set(varying(ids)) - {1} or groups == 1:
        return mixed(flow, call)
    row = flow.ledger.collapse(ids, 1, channels)
    units = flow.ledger.coarsen(row.reshape(groups, -1), 1).ravel()
    flow.counts("num_groups", units)
    flow.counts("num_channels", row)
    for ref in refs:
        _scale(flow, ref, row)
    return ids


@rule("native_layer_norm", "_fused_rms_norm")
def functional_norm(flow: Flow, call: Call) -> Value:
    """A normalisation over units that no module of torch does: its width cannot be kept."""
    ids = flow.ids(call.args["input"])
    refs = _refs(flow, [call.args.get("weight"), call.args.get("bias")])
    if ids is None:
        for ref in refs:
            flow.ledger.lose(ref.name, "acts on no removable unit")
        return None
    return _over(flow, call, ids, len(call.args["normalized_shape"]), refs)


def _over(flow: Flow, call: Call, ids: Ids, dims: int, refs: Sequence[Ref]) -> Ids | None:
    """Normalise over the last dimensions: units that lie there alone are mixed."""
    inner = set(range(ids.ndim - dims, ids.ndim))
    if set(varying(ids)) and not set(varying(ids)) - inner:
        mixed(flow, call)
        return None
    for ref in refs:
        flow.ledger.lose(ref.name, "acts within every unit")
    return whole_along(flow, call, ids, sorted(inner), "normalises over the units")


@module_rule(nn.LayerNorm, nn.RMSNorm, NarrowLayerNorm, NarrowRMSNorm)
def layer_norm(flow: Flow, call: Call, module: nn.Module, value: Tensor) -> Value:
    """Normalisation over the units themselves, by a layer that can keep its old width.

    A removed unit is zero where it is normalised, so the mean and the variance over the old width
    need only the units that stay.
    """
    assert isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    ids = flow.ids(value)
    weights = [module.weight, getattr(module, "bias", None)]
    refs = _refs(flow, weights)
    if ids is None or flow.ledger.is_input(ids) or varying(ids) != [ids.ndim - 1]:
        if ids is not None:
            return _over(flow, call, ids, len(module.normalized_shape), refs)
        for ref in refs:
            flow.ledger.lose(ref.name, "acts on no removable unit")
        return None
    if len(module.normalized_shape) > 1 or module.weight is None:
        return mixed(flow, call)
    if not flow.widths:
        what = "normalises over the units (trace with widths=True to remove them)"
        flow.refuse(call, flow.where(call, what))
        for ref in refs:
            flow.ledger.lose(ref.name, flow.where(call, what))
        return None
    for ref in refs:
        _scale(flow, ref, ids.ravel())
    flow.ledger.fixture(flow.stack.name, "norm", "width", ids.ravel())
    return ids
