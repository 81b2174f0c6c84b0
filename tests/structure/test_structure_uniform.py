"""Compact Hugging Face models in the form their own library loads: round trips through a folder."""

import pytest
import torch
from structure_nets import relative
from test_structure_huggingface import CASES, Logits
from torch import nn

from bayespare.errors import BayespareError
from bayespare.structure import Plan, Verdict, compact, trace, uniform
from bayespare.structure.uniform import save_uniform

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

NEURONS = "model.transformer.h.0.mlp.c_fc"
# Heads per layer that stay, of 4 (of 2 shared ones in Llama).
HEADS = {"llama": (1, 0)}
# What the config says afterwards, where it can say it.
WIDTHS = {"bert": "intermediate_size", "distilbert": "hidden_dim", "vit": "intermediate_size",
          "gpt2": "n_inner", "llama": "intermediate_size"}  # fmt: skip
FEWER = {
    "vit": {"num_attention_heads": 2, "head_dim": 4},
    "llama": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4},
}


def made(name: str) -> tuple[nn.Module, torch.Tensor, Plan]:
    """A network with weights of ordinary size, its input and its plan."""
    torch.manual_seed(0)
    make, x, *_ = CASES[name]
    model = Logits(make("sdpa"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.eval()
    return model, x, trace(model, x)


def uneven(plan: Plan, heads: tuple[int, int]) -> Verdict:
    """Different numbers of heads and neurons in each layer, the last ones; other units go too."""
    numbers = {"head": iter(heads), 12: iter((7, 5))}
    keep = {}
    for group in plan.groups:
        number = next(numbers.get("head" if group.unit == "head" else group.size, iter(())), None)
        number = group.size - 1 if number is None else number
        keep[group.name] = torch.arange(group.size) >= group.size - number
    return Verdict(plan, keep)


@pytest.mark.parametrize("name", CASES)
def test_plain_from_pretrained_loads_what_was_made_smaller(name, tmp_path):
    model, x, plan = made(name)
    verdict = uneven(plan, HEADS.get(name, (2, 1)))
    small = compact(model, verdict, example=x)
    torch.manual_seed(3)
    noise = torch.get_rng_state()
    even = uniform(small, verdict, example=x)
    assert torch.equal(noise, torch.get_rng_state())
    assert getattr(even.config, WIDTHS[name]) == 7
    sizes = {key: getattr(even.config, key) for key in FEWER.get(name, {})}
    assert sizes == FEWER.get(name, {})
    if name not in FEWER:
        assert even.config.num_attention_heads == model.model.config.num_attention_heads
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "old").write_text("of an earlier run")
    save_uniform(small, verdict, folder)
    assert {path.name for path in tmp_path.iterdir()} == {"hf"}
    assert not (folder / "old").exists()
    loaded = type(model.model).from_pretrained(folder).eval()
    other = x.flip(-1)
    with torch.no_grad():
        assert relative(Logits(loaded)(other), small(other)) <= 1e-5
        assert relative(Logits(even)(other), small(other)) <= 1e-5
    numbers = [sum(p.numel() for p in m.parameters()) for m in (small, loaded, model)]
    assert numbers[0] <= numbers[1] < numbers[2]


def test_a_folder_is_the_same_network_when_nothing_is_removed(tmp_path):
    model, x, plan = made("bert")
    verdict = Verdict(plan, {})
    even = uniform(compact(model, verdict), verdict, example=x)
    assert even.config.to_dict() == model.model.config.to_dict() | {"head_dim": 4}
    torch.testing.assert_close(even.state_dict(), model.model.state_dict(), rtol=0, atol=0)


def test_what_is_no_hugging_face_model_is_refused():
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    plan = trace(plain, torch.randn(2, 3))
    with pytest.raises(BayespareError, match="holds no Hugging Face model"):
        uniform(plain, Verdict(plan, {}))
    model, _, _ = made("bert")
    model.extra = nn.Linear(2, 2)
    with pytest.raises(BayespareError, match=r"extra\.weight lies outside"):
        uniform(model, Verdict(plan, {}))


def test_a_verdict_of_another_network_is_refused():
    model, _, plan = made("gpt2")
    small = compact(model, uneven(plan, (2, 1)))
    with pytest.raises(BayespareError, match=r"c_fc.weight has 7 entries .* keeps 12"):
        uniform(small, Verdict(plan, uneven(plan, (2, 1)).keep | {NEURONS: torch.ones(12) > 0}))
