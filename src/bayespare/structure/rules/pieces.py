"""Rules for operators that take tensors apart and put them together: slices, splits, joins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import (
    NOBODY,
    Ids,
    Ref,
    Value,
    along,
    compress,
    varying,
)
from bayespare.structure.rules.registry import rule

_FIXED = "takes fixed positions of the units"


def _take(flow: Flow, call: Call, index: slice | Ids, *, drop: bool = False) -> Value:
    """Fixed positions along one dimension: exact only where nothing is ever cut."""
    value = flow.get(call.args["self"])
    axis = call.args.get("dim", 0) % call.args["self"].ndim
    if isinstance(value, Ref):
        return _take_ref(value, axis, index, drop=drop)
    if value is None:
        return None
    ids = value
    if ids.shape[axis] > 1:
        if flow.ledger.is_input(ids):
            ids = ids[(slice(None),) * axis + (index,)]
        else:
            whole = flow.coarsen(ids, axis, call, _FIXED)
            if whole is None:
                return None
            ids = whole
    return compress(ids.squeeze(axis) if drop else ids)


def _take_ref(ref: Ref, axis: int, index: slice | Ids, *, drop: bool) -> Ref:
    """A part of a parameter; what is out of order can be cut along the other dimensions only."""
    rest = [a for a in range(len(ref.dims)) if a != axis]
    if drop:
        return ref.pick(rest)
    if isinstance(index, slice) and index.step in (1, None):
        return ref.part(axis, index.start or 0)
    return ref.without_order(axis)


@rule("slice")
def slice_(flow: Flow, call: Call) -> Value:
    """A range of positions."""
    if call.out[0].shape == call.args["self"].shape and call.args.get("step", 1) == 1:
        return flow.get(call.args["self"])
    args = call.args
    size = args["self"].shape[args.get("dim", 0)]
    begin, end, step = slice(args.get("start"), args.get("end"), args.get("step", 1)).indices(size)
    return _take(flow, call, slice(begin, end, step))


@rule("select")
def select(flow: Flow, call: Call) -> Value:
    """A single position."""
    index = call.args["index"] % call.args["self"].shape[call.args["dim"]]
    return _take(flow, call, slice(index, index + 1), drop=True)


@rule("index_select")
def index_select(flow: Flow, call: Call) -> Value:
    """A list of positions."""
    index = call.args["index"]
    if flow.get(index) is not None and flow.ref(index) is None:
        flow.refuse(call)
        return None
    return _take(flow, call, index.detach().cpu().numpy().astype(np.int64))


@rule("index")
def index(flow: Flow, call: Call) -> Value:
    """Positions along dimensions on which no units lie: a table of biases, the last token."""
    value = flow.get(call.args["self"])
    indices = call.args["indices"]
    taken = [axis for axis, i in enumerate(indices) if i is not None]
    chosen = [ids for i in indices if i is not None and (ids := flow.ids(i)) is not None]
    plain = all(flow.ledger.is_input(ids) for ids in chosen)
    ndim = call.args["self"].ndim
    if value is None or not plain or not taken or indices[taken[0]].dtype.is_floating_point:
        flow.refuse(call)
        return None
    # Where one block of positions takes the place of the dimensions it indexes.
    together = taken == list(range(taken[0], taken[-1] + 1))
    if not together or any(not i.dtype.is_signed for i in indices if i is not None):
        flow.refuse(call)
        return None
    for ids in chosen:
        flow.ledger.pin(ids, flow.where(call, "looks positions up with it"))
    added = call.out[0].ndim - (ndim - len(taken))
    before, after = list(range(taken[0])), list(range(taken[-1] + 1, ndim))
    if isinstance(value, Ref):
        return value.pick([*before, *[None] * added, *after])
    left: Ids | None = value
    if flow.ledger.is_input(value) and set(taken) & set(varying(value)):
        flow.refuse(call)
        return None
    for axis in taken:
        if left is not None:
            left = flow.coarsen(left, axis, call, _FIXED)
    if left is None:
        return None
    shape = [left.shape[a] for a in before] + [1] * added + [left.shape[a] for a in after]
    return left.reshape(shape)


@rule("split", "split_with_sizes", "unbind", "unsafe_split", "unsafe_split_with_sizes")
def split(flow: Flow, call: Call) -> Value | list[Value]:
    """Parts of one dimension.

    Equal parts stay in step when the units at the same place of every part are one unit; parts of
    different sizes, which the module has to know, go their own ways.
    """
    value = flow.get(call.args["self"])
    axis = call.args.get("dim", 0) % call.args["self"].ndim
    drop = call.name == "unbind"
    sizes = [1 if drop else part.shape[axis] for part in call.out]
    begins = np.cumsum([0, *sizes[:-1]]).tolist()
    if value is None:
        return None
    if isinstance(value, Ref):
        return [_take_ref(value, axis, slice(begin, None), drop=drop) for begin in begins]
    ids = value
    if ids.shape[axis] > 1 and len(varying(ids)) > 1 and not flow.ledger.is_input(ids):
        ids = flow.ledger.coarsen(ids, axis)
    if ids.shape[axis] == 1:
        return [ids.squeeze(axis) if drop else ids] * len(call.out)
    parts = np.split(ids, begins[1:], axis)
    if not flow.ledger.is_input(ids):
        if drop:
            flow.refuse(call, flow.where(call, _FIXED))
            return None
        if len(set(sizes)) == 1:
            for part in parts[1:]:
                flow.ledger.unify(parts[0], part)
        for part in parts:
            flow.fits(part, call)
    return [compress(part.squeeze(axis) if drop else part) for part in parts]


@rule("cat")
def cat(flow: Flow, call: Call) -> Value:
    """Tensors one after the other."""
    pieces = [piece for piece in call.args["tensors"] if piece.shape != (0,)]
    axis = call.args.get("dim", 0) % call.out[0].ndim
    return _cat(flow, call, pieces, [flow.get(p) for p in pieces], axis)


@rule("stack")
def stack(flow: Flow, call: Call) -> Value:
    """Tensors one after the other along a new dimension."""
    pieces = call.args["tensors"]
    axis = call.args.get("dim", 0) % call.out[0].ndim
    values: list[Value] = []
    for piece in pieces:
        value = flow.get(piece)
        if isinstance(value, Ref):
            order: list[int | None] = list(range(piece.ndim))
            value = value.pick([*order[:axis], None, *order[axis:]])
        elif value is not None:
            value = np.expand_dims(value, axis)
        values.append(value)
    return _cat(flow, call, [piece.unsqueeze(axis) for piece in pieces], values, axis)


def _cat(flow: Flow, call: Call, pieces: Sequence[Tensor], values: list[Value], axis: int) -> Value:
    values = _beside_units(flow, values, axis)
    known = [value for value in values if isinstance(value, np.ndarray)]
    across = {a for i in known for a in varying(i) if a != axis}
    if len(across) == 1:
        values = [
            _lifted(flow, value, piece, axis, next(iter(across)))
            for value, piece in zip(values, pieces, strict=True)
        ]
        known = [value for value in values if isinstance(value, np.ndarray)]
    for value in values:
        if isinstance(value, Ref):
            flow.ledger.lose(value.name, flow.where(call, "joins it to other tensors"))
    if not known:
        return None
    if across and not all(flow.ledger.is_input(i) for i in known):
        return _cat_across(flow, call, known, len(pieces), across, axis)
    nobody = np.full((1,) * call.out[0].ndim, NOBODY)
    spelt = []
    for piece, value in zip(pieces, values, strict=True):
        labels = value if isinstance(value, np.ndarray) else nobody
        for a in (axis, *across):
            labels = along(labels, a, piece.shape[a])
        spelt.append(labels)
    return compress(np.concatenate(spelt, axis))


def _beside_units(flow: Flow, values: list[Value], axis: int) -> list[Value]:
    """The input of the network joined to units: its entries along their dimension are features."""
    known = [value for value in values if isinstance(value, np.ndarray)]
    units = [ids for ids in known if not flow.ledger.is_input(ids)]
    if not units or any(set(varying(ids)) - {axis} for ids in units):
        return values
    found: list[Value] = []
    for value in values:
        if isinstance(value, np.ndarray) and flow.ledger.is_input(value):
            for across in set(varying(value)) - {axis}:
                value = flow.ledger.coarsen(value, across)
        found.append(value)
    return found


def _lifted(flow: Flow, value: Value, piece: Tensor, axis: int, across: int) -> Value:
    """A parameter that is joined to others (a class token) becomes units of its own."""
    if not isinstance(value, Ref) or value.dims[across] is None or across == axis:
        return value
    dim = value.dims[across]
    assert dim is not None
    units = flow.ledger.birth(flow.group_name(value.name), "unit", piece.shape[across])
    flow.ledger.record(value.name, dim, "write", units, value.start(across))
    shape = [1] * piece.ndim
    shape[across] = len(units)
    return units.reshape(shape)


def _cat_across(
    flow: Flow, call: Call, known: list[Ids], pieces: int, across: set[int], axis: int
) -> Value:
    """Join along a dimension that owns nothing: the units of all pieces go together."""
    if len(across) > 1 and not any(i.shape[axis] > 1 for i in known) and len(known) == pieces:
        pass  # heads beside channels: unify place by place
    elif len(across) > 1 and len(known) == pieces:
        known = [flow.ledger.coarsen(ids, axis) for ids in known]
    elif len(across) > 1 or len(known) < pieces or any(i.shape[axis] > 1 for i in known):
        flow.refuse(call, flow.where(call, "joins units with entries that always stay"))
        return None
    joined = known[0]
    for other in known[1:]:
        joined = flow.ledger.unify(joined, other)
    return joined
