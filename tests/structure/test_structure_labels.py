"""Label arithmetic against the obvious twin: label every element and move the whole array."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bayespare.structure.labels import Ref, compress, reshape, reshape_ref
from bayespare.structure.settle import components


@st.composite
def views(draw):
    """A shape, another one with as many elements, and ids that vary along some dimensions."""
    factors = draw(st.lists(st.sampled_from([1, 2, 2, 3]), min_size=1, max_size=5))

    def cut():
        shape, rest = [], list(factors)
        while rest:
            take = draw(st.integers(1, len(rest)))
            shape.append(int(np.prod(rest[:take])))
            rest = rest[take:]
        return tuple(shape)

    old, new = cut(), cut()
    small = tuple(size if draw(st.booleans()) else 1 for size in old)
    flat = draw(st.lists(st.integers(-1, 3), min_size=24 * 24, max_size=24 * 24))
    ids = np.array(flat[: int(np.prod(small))], dtype=np.int64).reshape(small)
    return old, new, ids


@given(views())
def test_reshape_follows_every_element(view):
    old, new, ids = view
    got = reshape(ids, old, new)
    slow = np.broadcast_to(ids, old).reshape(new)
    assert np.array_equal(np.broadcast_to(got, new), slow)
    assert got.shape == compress(slow).shape


@given(views())
def test_reshape_there_and_back(view):
    old, new, ids = view
    assert np.array_equal(reshape(reshape(ids, old, new), new, old), compress(ids))


def test_channels_become_columns_and_channels_again():
    ids = np.arange(3).reshape(1, 3, 1, 1)
    columns = reshape(ids, (2, 3, 2, 2), (2, 12))
    assert columns.tolist() == [[0] * 4 + [1] * 4 + [2] * 4]
    assert reshape(columns, (2, 12), (2, 3, 2, 2)).tolist() == ids.tolist()


def test_a_parameter_view_shows_dimensions_that_stay_whole():
    assert reshape_ref(Ref("w", (0, 1)), (4, 3), (1, 4, 1, 3)) == Ref("w", (None, 0, None, 1))
    assert reshape_ref(Ref("w", (0,)), (4,), (2, 2)) == Ref("w", (None, None))
    assert reshape_ref(Ref("w", (0, 1)), (4, 3), (12,)) == Ref("w", (None,))
    assert reshape_ref(Ref("w", (0, 1)), (4, 3), (2, 2, 3)) == Ref("w", (None, None, 1))


def test_a_part_of_a_parameter_knows_where_it_begins():
    part = Ref("w", (0, 1)).part(0, 2).part(0, 1)
    assert (part.start(0), part.start(1)) == (3, 0)
    assert part.pick([1, None, 0]) == Ref("w", (1, None, 0), (0, 0, 3))
    assert reshape_ref(part, (4, 3), (4, 1, 3)) == Ref("w", (0, None, 1), (3, 0, 0))
    assert part.without_order(0) == Ref("w", (None, 1))


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_components_equal_a_search(pairs):
    reach = np.eye(20, dtype=bool)
    for a, b in pairs:
        reach[a, b] = reach[b, a] = True
    for _ in range(20):
        reach = reach @ reach
    columns = [(np.array([a]), np.array([b])) for a, b in pairs]
    assert components(20, columns).tolist() == reach.argmax(1).tolist()
