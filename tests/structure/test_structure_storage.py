"""Mostly zero tensors are stored as index and value, and come back to the last bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bayespare.errors import BayespareError
from bayespare.structure import count
from bayespare.structure.storage import pack, stored_bytes, unpack


@given(
    shape=st.lists(st.integers(0, 9), max_size=3),
    share=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    kind=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64]),
)
def test_there_and_back(shape, share, kind):
    tensor = (torch.randn(shape) * (torch.rand(shape) < share)).to(kind)
    packed = pack({"layer.weight": tensor})
    assert tensor.dim() > 1 or packed["layer.weight"] is tensor
    assert sum(part.nbytes for part in packed.values()) == stored_bytes(tensor) <= tensor.nbytes
    back = unpack(packed, {"layer.weight": tensor.shape})
    assert list(back) == ["layer.weight"]
    assert torch.equal(back["layer.weight"], tensor)
    assert back["layer.weight"].dtype == kind


def test_a_twentieth_of_the_weights_takes_a_tenth_of_the_bytes():
    layer = nn.Linear(100, 60)
    with torch.no_grad():
        layer.weight[:, 5:] = 0
    assert count(layer, torch.randn(1, 100)).bytes == 60 * 5 * 8 + 16 + 60 * 4


DAMAGE = {
    "no value": ({"w#value": None}, "#value is missing"),
    "no index": ({"w#index": None}, "#index is missing"),
    "no shape": ({"w#shape": None}, "#shape is missing"),
    "another shape": ({"w#shape": torch.tensor([50, 2])}, "is of shape [50, 2], the network needs"),
    "out of range": ({"w#index": torch.tensor([3, 100])}, "its index is damaged"),
    "negative": ({"w#index": torch.tensor([-1, 3])}, "its index is damaged"),
    "twice": ({"w#index": torch.tensor([3, 3])}, "its index is damaged"),
    "too few": ({"w#index": torch.tensor([3])}, "its index is damaged"),
    "another name": ({"v#value": torch.ones(1), "v#index": torch.zeros(1), "v#shape": None}, "v: "),
    "unknown": (
        {"v#value": torch.ones(1), "v#index": torch.zeros(1), "v#shape": torch.ones(1)},
        "the network has no 'v'",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name):
    tensor = torch.zeros(10, 10)
    tensor[0, 3] = tensor[2, 2] = 1
    changes, message = DAMAGE[name]
    packed = {**pack({"w": tensor}), **changes}
    with pytest.raises(BayespareError) as caught:
        unpack({k: v for k, v in packed.items() if v is not None}, {"w": tensor.shape})
    assert message in str(caught.value)
