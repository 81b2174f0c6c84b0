import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bayespare.data import Dataset, hold_out
from bayespare.data.split import draw
from bayespare.errors import BayespareError

fractions = st.floats(0.01, 0.99)
seeds = st.integers(0, 1000)


@settings(deadline=None)
@given(st.integers(2, 300), fractions, seeds)
def test_plain_draw_has_the_right_size(rows, fraction, seed):
    held = draw(rows, fraction, seed, None)
    assert held.sum() == min(max(1, round(rows * fraction)), rows - 1)
    assert (held == draw(rows, fraction, seed, None)).all()


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), fractions, seeds)
@example(sizes=[1, 1, 9], fraction=0.5, seed=0)
def test_stratified_draw_keeps_the_shares(sizes, fraction, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    if max(sizes) == 1:
        with pytest.raises(BayespareError):
            draw(len(labels), fraction, seed, labels)
        return
    held = draw(len(labels), fraction, seed, labels)
    wanted = min(max(1, round(len(labels) * fraction)), len(labels) - 1)
    assert held.sum() == min(wanted, len(labels) - len(sizes))
    for label, size in enumerate(sizes):
        taken = held[labels == label].sum()
        assert taken < size
        room = min(size - 1, size * wanted / len(labels))
        assert taken >= np.floor(room)
        if all(n * (1 - wanted / len(labels)) > 2 for n in sizes):
            assert abs(taken - size * wanted / len(labels)) < 1


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, float("nan")])
def test_shares_out_of_range(fraction):
    with pytest.raises(BayespareError, match="not between 0 and 1"):
        draw(10, fraction, 0, None)


def test_too_few_rows():
    with pytest.raises(BayespareError, match="too few"):
        draw(1, 0.5, 0, None)
    with pytest.raises(BayespareError, match="one row only"):
        draw(3, 0.5, 0, np.arange(3))


def test_hold_out_is_a_partition():
    x = torch.arange(40.0)[:, None]
    data = Dataset(x, torch.arange(40) % 4, "classification", classes=tuple("abcd"))
    train, held = hold_out(data, 0.2, seed=3)
    assert (len(train), len(held)) == (32, 8)
    assert sorted(torch.cat([train.x, held.x]).flatten().tolist()) == list(range(40))
    assert held.y.bincount().tolist() == [2, 2, 2, 2]
    assert torch.equal(train.x.flatten().long() % 4, train.y)
    assert train.classes == data.classes
    assert torch.equal(data.to("cpu").x, data.x)
    assert data.to(torch.device("meta")).y.device.type == "meta"
    values = Dataset(x, x[:, 0], "regression")
    assert len(hold_out(values)[1]) == 4
