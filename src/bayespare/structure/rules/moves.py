"""Rules for operators that move elements about: views, permutations, repetitions, shuffles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import Ids, Ref, Value, align, reshape, reshape_ref, varying
from bayespare.structure.rules.registry import rule


@rule("detach", "alias", "clone", "_to_copy", "contiguous", "lift_fresh")
def same(flow: Flow, call: Call) -> Value:
    """The same elements in the same places."""
    return flow.get(call.args["self"])


@rule("as_strided_")
def restride(flow: Flow, call: Call) -> Value:
    """The same elements in the same places, where a pooled map of one position changes its layout.

    PyTorch does that to pool to one position in a network of channels-last memory.
    """
    tensor = call.out[0]
    single = tensor.ndim > 1 and all(size == 1 for size in tensor.shape[2:])
    if not single or tensor.stride()[:2] != (tensor.shape[1], 1):
        flow.refuse(call)
        return None
    return flow.get(call.args["self"])


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
def like(flow: Flow, call: Call) -> Value:
    """A new tensor whose shape follows another one's."""
    return flow.ids(call.args["self"])


@rule("view", "_unsafe_view", "reshape")
def view(flow: Flow, call: Call) -> Value:
    """Merge and split dimensions.

    Units that come to lie along several dimensions stay units for now: what reads them, or at the
    end the ledger, settles along which one they are cut, so that a box is left.
    """
    old, new = call.args["self"].shape, call.out[0].shape
    value = flow.get(call.args["self"])
    if isinstance(value, Ref):
        return reshape_ref(value, old, new)
    if value is None:
        return None
    ids = reshape(value, old, new)
    if not flow.ledger.is_input(ids):
        if len(varying(ids)) > 1:
            flow.ledger.grids.append(ids)
        flow.fits(ids, call)
    return ids


def _permute(flow: Flow, call: Call, order: Sequence[int]) -> Value:
    value = flow.get(call.args["self"])
    if isinstance(value, Ref):
        return value.pick(order)
    return None if value is None else value.transpose(order)


@rule("t")
def t(flow: Flow, call: Call) -> Value:
    """Swap the dimensions of a matrix."""
    return _permute(flow, call, range(call.args["self"].ndim)[::-1])


@rule("transpose")
def transpose(flow: Flow, call: Call) -> Value:
    """Swap two dimensions."""
    order = list(range(call.args["self"].ndim))
    first, second = call.args["dim0"], call.args["dim1"]
    order[first], order[second] = order[second], order[first]
    return _permute(flow, call, order)


@rule("permute")
def permute(flow: Flow, call: Call) -> Value:
    """Reorder the dimensions."""
    ndim = call.args["self"].ndim
    return _permute(flow, call, [axis % ndim for axis in call.args["dims"]])


@rule("unsqueeze", "squeeze")
def squeeze(flow: Flow, call: Call) -> Value:
    """Add or drop dimensions of size 1, which is a view like any other."""
    value = flow.get(call.args["self"])
    old, new = call.args["self"].shape, call.out[0].shape
    if isinstance(value, Ref):
        return reshape_ref(value, old, new)
    return None if value is None else reshape(value, old, new)


@rule("expand")
def expand(flow: Flow, call: Call) -> Value:
    """Repeat dimensions of size 1 without a copy."""
    value, shape = flow.get(call.args["self"]), call.out[0].shape
    if isinstance(value, Ref):
        old = call.args["self"].shape
        added = len(shape) - len(old)
        kept = [axis if old[axis] == shape[axis + added] else None for axis in range(len(old))]
        return value.pick([None] * added + kept)
    if value is None:
        return None
    ids = align(value, len(shape))
    if not flow.ledger.is_input(ids):
        flow.fits(ids, call)
    return ids


@rule("repeat")
def repeat(flow: Flow, call: Call) -> Value:
    """Lay copies side by side."""
    value = flow.get(call.args["self"])
    old, times = call.args["self"].shape, call.args["repeats"]
    added = len(times) - len(old)
    if isinstance(value, Ref):
        if any(n > 1 and old[axis] > 1 for axis, n in enumerate(times[added:])):
            flow.refuse(call)
            return None
        kept = [axis if n == 1 else None for axis, n in enumerate(times[added:])]
        return value.pick([None] * added + kept)
    if value is None:
        return None
    ids = align(value, len(times))
    return np.tile(ids, [n if ids.shape[axis] > 1 else 1 for axis, n in enumerate(times)])


@rule("flip")
def flip(flow: Flow, call: Call) -> Value:
    """Reverse dimensions: what is left after a removal is reversed just the same."""
    ids = flow.ids(call.args["self"])
    if ids is None:
        flow.refuse(call)
        return None
    return np.flip(ids, tuple(int(axis) % ids.ndim for axis in call.args["dims"]))


@rule("roll")
def roll(flow: Flow, call: Call) -> Value:
    """Shift along dimensions on which no units lie."""
    ids = flow.ids(call.args["self"])
    dims = call.args.get("dims")
    if ids is None or not dims:
        flow.refuse(call)
        return None
    return whole_along(flow, call, ids, dims, "shifts the units")


def whole_along(flow: Flow, call: Call, ids: Ids, dims: Sequence[int], what: str) -> Ids | None:
    """Ids that no longer vary along some dimensions: see :meth:`Flow.coarsen`."""
    found: Ids | None = ids
    for axis in dims:
        if found is not None:
            found = flow.coarsen(found, axis % ids.ndim, call, what)
    return found


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(flow: Flow, call: Call) -> Value:
    """Deal the channels of each group out: those at the same place of every group are one unit."""
    ids, groups = flow.ids(call.args["self"]), call.args["groups"]
    if ids is None or flow.ledger.is_input(ids) or varying(ids) != [1]:
        flow.refuse(call)
        return None
    table = ids.reshape(groups, -1)
    flow.ledger.coarsen(table, 0)
    return table.T.reshape(ids.shape)


@rule("pixel_shuffle")
def pixel_shuffle(flow: Flow, call: Call) -> Value:
    """Channels become pixels: those that make the same channel are one unit."""
    ids, factor = flow.ids(call.args["self"]), call.args["upscale_factor"]
    if ids is None or flow.ledger.is_input(ids) or varying(ids) != [ids.ndim - 3]:
        flow.refuse(call)
        return None
    row = flow.ledger.coarsen(ids.reshape(-1, factor**2), 1)
    return row.reshape((*ids.shape[:-3], -1, 1, 1))


@rule("pixel_unshuffle")
def pixel_unshuffle(flow: Flow, call: Call) -> Value:
    """Pixels become channels."""
    ids, factor = flow.ids(call.args["self"]), call.args["downscale_factor"]
    if ids is None or set(varying(ids)) - {ids.ndim - 3}:
        flow.refuse(call)
        return None
    return np.repeat(ids, factor**2, ids.ndim - 3)


@rule("view_as_complex")
def view_as_complex(flow: Flow, call: Call) -> Value:
    """Pairs become complex numbers: both parts are the same unit."""
    ids = flow.ids(call.args["self"])
    if ids is None:
        flow.refuse(call)
        return None
    ids = flow.coarsen(ids, ids.ndim - 1, call, "pairs the units")
    return None if ids is None else ids.squeeze(-1)


@rule("view_as_real")
def view_as_real(flow: Flow, call: Call) -> Value:
    """Complex numbers become pairs."""
    ids = flow.ids(call.args["self"])
    if ids is None:
        flow.refuse(call)
        return None
    return np.expand_dims(ids, -1)
