"""A whole run on token ids whose result plain ``from_pretrained`` loads."""

import pytest
import torch
from test_structure_huggingface import Logits, bert
from torch import nn

from bayespare import BayespareError, load, sparsify
from bayespare.data import from_tensors

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_run_on_tokens_is_loaded_by_either_library(tmp_path):
    torch.manual_seed(0)
    x = torch.randint(20, (120, 6))
    data = from_tensors(x, (x == 3).any(1).long(), tokens=True)
    assert data.x.dtype == torch.int64
    model = Logits(bert("sdpa"))
    result = sparsify(
        model, data, method="bmr", settings={"tie": 3.0, "warm_up": 1, "every": 1}, epochs=2,
        batch=24, baseline=False, uniform=True, samples=4,
    )  # fmt: skip
    assert any(kept < units for kept, units in result.verdict.kept.values())
    result.save(tmp_path / "run")
    folder = tmp_path / "run" / "huggingface"
    loaded = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    again = load(tmp_path / "run", model)
    with torch.no_grad():
        expected = result.model.eval()(data.x[:9])
        torch.testing.assert_close(Logits(loaded)(data.x[:9]), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(again.model(data.x[:9]), expected, rtol=0, atol=0)


def test_uniform_is_for_hugging_face_models():
    data = from_tensors(torch.randn(20, 3), torch.arange(20) % 2)
    with pytest.raises(BayespareError, match="holds no Hugging Face model"):
        sparsify(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), data, uniform=True)
