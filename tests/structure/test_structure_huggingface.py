"""Blocks of Hugging Face's models: heads and feed-forward neurons can be removed exactly."""

import copy

import pytest
import torch
from structure_nets import half, relative
from torch import Tensor, nn

from bayespare.structure import Plan, Verdict, compact, mask, trace

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 12,
}  # fmt: skip
TOKENS, IMAGE = torch.randint(20, (2, 6)), torch.randn(2, 1, 8, 8)


class Logits(nn.Module):
    """The logits alone: cached keys and values would be outputs, which stay whole."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


def bert(attention: str) -> nn.Module:
    config = transformers.BertConfig(vocab_size=20, attn_implementation=attention, **SIZES)
    return transformers.BertForSequenceClassification(config)


def distilbert(attention: str) -> nn.Module:
    config = transformers.DistilBertConfig(
        vocab_size=20, dim=16, n_layers=2, n_heads=4, hidden_dim=12, attn_implementation=attention
    )
    return transformers.DistilBertForSequenceClassification(config)


def vit(attention: str) -> nn.Module:
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, attn_implementation=attention, **SIZES
    )
    return transformers.ViTForImageClassification(config)


def gpt2(attention: str) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=4, n_inner=12, use_cache=False,
        bos_token_id=0, eos_token_id=0, attn_implementation=attention,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(attention: str) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=20, num_key_value_heads=2, use_cache=False, attn_implementation=attention,
        **SIZES,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


# What makes the network, its input, heads and neurons of its first block, attributes for one head.
CASES = {
    "bert": (bert, TOKENS, ("bert.encoder.layer.0.attention.self", 4),
             ("bert.encoder.layer.0.intermediate.dense", 12),
             {"num_attention_heads": 1, "all_head_size": 4, "attention_head_size": 4}),
    "distilbert": (distilbert, TOKENS, ("distilbert.transformer.layer.0.attention", 4),
                   ("distilbert.transformer.layer.0.ffn.lin1", 12),
                   {"n_heads": 1, "attention_head_size": 4}),
    "vit": (vit, IMAGE, ("vit.layers.0.attention", 4), ("vit.layers.0.mlp.fc1", 12),
            {"num_attention_heads": 1, "head_dim": 4}),
    "gpt2": (gpt2, TOKENS, ("transformer.h.0.attn", 4), ("transformer.h.0.mlp.c_fc", 12),
             {"num_heads": 1, "split_size": 4, "head_dim": 4, "embed_dim": 16}),
    "llama": (llama, TOKENS, ("model.layers.0.self_attn", 2), ("model.layers.0.mlp.gate_proj", 12),
              {"num_key_value_groups": 2, "head_dim": 4}),
}  # fmt: skip


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CASES)
def test_heads_and_neurons(name, attention):
    torch.manual_seed(0)
    make, x, heads, neurons, attributes = CASES[name]
    model = Logits(make(attention))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model = model.double().eval()
    x = x.double() if x.is_floating_point() else x
    plan = Plan.from_json(trace(model, x).to_json())
    for group, size in (heads, neurons):
        assert plan[f"model.{group}"].size == size
    assert plan[f"model.{heads[0]}"].unit == "head"
    assert sum(group.unit == "head" for group in plan.groups) == 2
    other = x.flip(-1)
    with torch.no_grad():
        for seed in range(3):
            verdict = half(plan, seed)
            small = compact(model, verdict, example=x)
            assert relative(small(other), mask(model, verdict)(other)) <= 1e-9
        one = {f"model.{heads[0]}": torch.arange(heads[1]) == 1}
        small = copy.deepcopy(compact(model, Verdict(plan, one), example=x))
        small.load_state_dict(small.state_dict())
    module = small.model.get_submodule(heads[0])
    assert {key: getattr(module, key) for key in attributes} == attributes
