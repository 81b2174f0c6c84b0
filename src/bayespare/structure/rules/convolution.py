"""Rules for convolutions: dense, grouped, depthwise and transposed."""

from __future__ import annotations

import numpy as np

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import NOBODY, Ids, Ref, Value, varying
from bayespare.structure.rules.products import NOT_PLAIN, add_bias, laid, multiply
from bayespare.structure.rules.registry import rule


@rule("convolution")
def convolution(flow: Flow, call: Call) -> Value:
    """A convolution; a transposed one has its weight the other way round."""
    value, weight = call.args["input"], call.args["weight"]
    ref = flow.ref(weight)
    if ref is None or None in ref.dims[:2]:
        flow.refuse(call, flow.where(call, NOT_PLAIN))
        return None
    flow.make(call.out[0], ref.name)
    ids = flow.ids(value)
    if call.args["groups"] != 1:
        if ids is not None and (flow.ledger.is_input(ids) or set(varying(ids)) - {1}):
            flow.refuse(call, flow.where(call, "convolves groups of what is no channel"))
            return None
        row = np.full(value.shape[1], NOBODY)
        if ids is not None:
            row = flow.ledger.collapse(ids, 1, value.shape[1])
        return laid(_grouped(flow, call, ref, row), 1, call.out[0].ndim)
    axes = (0, 1) if call.args["transposed"] else (1, 0)
    sizes = (weight.shape[axes[0]], weight.shape[axes[1]])
    units, through = multiply(flow, call, value, 1, ref, axes, sizes, "channel")
    add_bias(flow, call, call.args["bias"], 0, units)
    if through is not None:
        flow.ledger.pin(through[through >= 0], flow.where(call, "convolves over units"))
        return None
    return laid(units, 1, call.out[0].ndim)


def _grouped(flow: Flow, call: Call, ref: Ref, row: Ids) -> Ids:
    """The output channels of a grouped convolution, given the ids of its input channels.

    Every group has to keep as many channels as the others. Either whole groups are the units
    (depthwise: channels), or the channels at the same place of every group: whichever is finer.
    """
    groups, channels = call.args["groups"], call.out[0].shape[1]
    inside, outside = len(row) // groups, channels // groups
    if groups >= inside + outside or inside == 1:
        return _whole_groups(flow, call, ref, row)
    ledger = flow.ledger
    places = ledger.coarsen(row.reshape(groups, inside), 0).ravel()
    written = ledger.birth(flow.group_name(ref.name), "channel", channels)
    units = ledger.coarsen(written.reshape(groups, outside), 0).ravel()
    if call.args["transposed"]:
        ledger.record(ref.name, 0, "read", np.tile(places, groups))
        ledger.record(ref.name, 1, "write", units)
    else:
        ledger.record(ref.name, 1, "read", places)
        ledger.record(ref.name, 0, "write", written)
    add_bias(flow, call, call.args["bias"], 0, written)
    return written


def _whole_groups(flow: Flow, call: Call, ref: Ref, row: Ids) -> Ids:
    """Each group is one unit, with what enters and what leaves it."""
    groups, channels = call.args["groups"], call.out[0].shape[1]
    units = flow.ledger.coarsen(row.reshape(groups, -1), 1).ravel()
    written = flow.ledger.birth(flow.group_name(ref.name), "channel", channels)
    flow.ledger.unify(np.repeat(units, channels // groups), written)
    rows = len(row) if call.args["transposed"] else channels
    flow.ledger.record(ref.name, 0, "scale", np.repeat(units, rows // groups))
    if call.args["bias"] is not None:
        bias = flow.ref(call.args["bias"])
        if bias is None or bias.dims != (0,):
            flow.ledger.pin(written, flow.where(call, "adds what is not a parameter"))
        else:
            flow.ledger.record(bias.name, 0, "scale", written)
    flow.counts("groups", units)
    return written
