"""Compact blocks of Hugging Face's models say the same in other runtimes."""

import pytest
import torch
from structure_nets import half
from test_structure_huggingface import CASES, Logits

import bayespare

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", CASES)
def test_other_runtimes_say_the_same(name, tmp_path):
    torch.manual_seed(0)
    make, x, *_ = CASES[name]
    model = Logits(make("sdpa")).eval()
    small = bayespare.compact(model, half(bayespare.trace(model, x)), example=x)
    for format in ("onnx", "torch"):
        assert bayespare.export(small, x, tmp_path / f"model.{format}", format).difference < 1e-5
