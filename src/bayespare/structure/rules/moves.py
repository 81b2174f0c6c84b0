"""Rules for operators that move elements about: views, permutations, slices, concatenation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import (
    NOBODY,
    Ids,
    Ref,
    Value,
    align,
    along,
    compress,
    reshape,
    reshape_ref,
    varying,
)
from bayespare.structure.rules.registry import rule


def settle(flow: Flow, call: Call, ids: Ids) -> Value:
    """Refuse ids of hidden units that no longer lie along a single dimension.

    Cutting such a unit would not leave a box behind. Features of the input may lie anywhere,
    because nothing is cut before they are read.
    """
    if len(varying(ids)) > 1 and not flow.ledger.is_input(ids):
        flow.refuse(call, flow.where(call, "splits the units over two dimensions"))
        return None
    return ids


@rule("detach", "alias", "clone", "_to_copy", "contiguous", "lift_fresh")
def same(flow: Flow, call: Call) -> Value:
    """The same elements in the same places."""
    return flow.get(call.args["self"])


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
def like(flow: Flow, call: Call) -> Value:
    """A new tensor whose shape follows another one's."""
    return flow.ids(call.args["self"])


@rule("view", "_unsafe_view", "reshape")
def view(flow: Flow, call: Call) -> Value:
    """Merge and split dimensions."""
    old, new = call.args["self"].shape, call.out[0].shape
    value = flow.get(call.args["self"])
    if isinstance(value, Ref):
        moved = reshape_ref(value, old, new)
        if moved is None:
            flow.refuse(call)
        return moved
    return None if value is None else settle(flow, call, reshape(value, old, new))


def _permute(flow: Flow, call: Call, order: Sequence[int]) -> Value:
    value = flow.get(call.args["self"])
    if isinstance(value, Ref):
        return Ref(value.name, tuple(value.dims[axis] for axis in order))
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
        kept = tuple(
            dim if old[axis] == shape[axis + added] else None for axis, dim in enumerate(value.dims)
        )
        return Ref(value.name, (None,) * added + kept)
    return None if value is None else align(value, len(shape))


@rule("repeat")
def repeat(flow: Flow, call: Call) -> Value:
    """Lay copies side by side."""
    ids = flow.ids(call.args["self"])
    if ids is None:
        flow.refuse(call)
        return None
    times = call.args["repeats"]
    ids = align(ids, len(times))
    return np.tile(ids, [n if ids.shape[axis] > 1 else 1 for axis, n in enumerate(times)])


@rule("flip")
def flip(flow: Flow, call: Call) -> Value:
    """Reverse dimensions: what is left after a removal is reversed just the same."""
    ids = flow.ids(call.args["self"])
    if ids is None:
        flow.refuse(call)
        return None
    return np.flip(ids, tuple(int(axis) % ids.ndim for axis in call.args["dims"]))


def _take(flow: Flow, call: Call, index: slice | Ids, *, drop: bool = False) -> Value:
    """Fixed positions along one dimension: exact only where nothing is ever cut."""
    ids = flow.ids(call.args["self"])
    if ids is None:
        flow.refuse(call)
        return None
    axis = call.args["dim"] % ids.ndim
    if ids.shape[axis] > 1:
        if not flow.ledger.is_input(ids):
            flow.refuse(call, flow.where(call, "takes fixed positions of the units"))
            return None
        ids = ids[(slice(None),) * axis + (index,)]
    return compress(ids.squeeze(axis) if drop else ids)


@rule("slice")
def slice_(flow: Flow, call: Call) -> Value:
    """A range of positions."""
    if call.out[0].shape == call.args["self"].shape and call.args.get("step", 1) == 1:
        return flow.get(call.args["self"])
    args = call.args
    return _take(flow, call, slice(args.get("start"), args.get("end"), args.get("step", 1)))


@rule("select")
def select(flow: Flow, call: Call) -> Value:
    """A single position."""
    index = call.args["index"] % call.args["self"].shape[call.args["dim"]]
    return _take(flow, call, slice(index, index + 1), drop=True)


@rule("index_select")
def index_select(flow: Flow, call: Call) -> Value:
    """A list of positions."""
    return _take(flow, call, call.args["index"].detach().cpu().numpy().astype(np.int64))


@rule("split", "split_with_sizes", "unbind")
def split(flow: Flow, call: Call) -> Value | list[Value]:
    """Parts of one dimension.

    Equal parts stay in step when the units at the same place of every part are one unit.
    """
    ids = flow.ids(call.args["self"])
    if ids is None:
        flow.refuse(call)
        return None
    axis = call.args.get("dim", 0) % ids.ndim
    drop = call.name == "unbind"
    if ids.shape[axis] == 1:
        return [ids.squeeze(axis) if drop else ids] * len(call.out)
    sizes = [1 if drop else part.shape[axis] for part in call.out]
    parts = np.split(ids, np.cumsum(sizes)[:-1].tolist(), axis)
    if not flow.ledger.is_input(ids):
        if drop or len(set(sizes)) > 1:
            flow.refuse(call, flow.where(call, "takes fixed positions of the units"))
            return None
        for part in parts[1:]:
            flow.ledger.unify(parts[0], part)
    return [compress(part.squeeze(axis) if drop else part) for part in parts]


@rule("cat")
def cat(flow: Flow, call: Call) -> Value:
    """Tensors one after the other."""
    pieces = [piece for piece in call.args["tensors"] if piece.shape != (0,)]
    return _cat(flow, call, [flow.ids(p) for p in pieces], [tuple(p.shape) for p in pieces])


@rule("stack")
def stack(flow: Flow, call: Call) -> Value:
    """Tensors one after the other along a new dimension."""
    pieces = call.args["tensors"]
    axis = call.args.get("dim", 0) % call.out[0].ndim
    shapes = [(*p.shape[:axis], 1, *p.shape[axis:]) for p in pieces]
    ids = [flow.ids(p) for p in pieces]
    return _cat(flow, call, [None if i is None else np.expand_dims(i, axis) for i in ids], shapes)


def _cat(flow: Flow, call: Call, ids: list[Ids | None], shapes: list[tuple[int, ...]]) -> Value:
    for tensor in call.tensors():
        ref = flow.ref(tensor)
        if ref:
            flow.ledger.lose(ref.name, flow.where(call, "joins it to other tensors"))
    known = [i for i in ids if i is not None]
    if not known:
        return None
    axis = call.args.get("dim", 0) % call.out[0].ndim
    across = {a for i in known for a in varying(i) if a != axis}
    if across and not all(flow.ledger.is_input(i) for i in known):
        return _cat_across(flow, call, ids, across, axis)
    nobody = np.full((1,) * call.out[0].ndim, NOBODY)
    spelt = []
    for piece, shape in zip(ids, shapes, strict=True):
        labels = nobody if piece is None else piece
        for a in (axis, *across):
            labels = along(labels, a, shape[a])
        spelt.append(labels)
    return compress(np.concatenate(spelt, axis))


def _cat_across(
    flow: Flow, call: Call, ids: list[Ids | None], across: set[int], axis: int
) -> Value:
    """Join along a dimension that owns nothing: the units of all pieces go together."""
    known = [i for i in ids if i is not None]
    if len(across) > 1 or len(known) < len(ids) or any(i.shape[axis] > 1 for i in known):
        flow.refuse(call, flow.where(call, "joins units with entries that always stay"))
        return None
    joined = known[0]
    for other in known[1:]:
        joined = flow.ledger.unify(joined, other)
    return joined
