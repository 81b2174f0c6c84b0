"""Networks of which some units cannot be judged, or are read in a way of their own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from cases import CLASSES, NetCase
from torch import Tensor, nn

from bayespare import nets


class Attends(nn.Module):
    """``nn.MultiheadAttention``, its projections fused or, for keys of another width, apart."""

    def __init__(self, **settings: int) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 8)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True, **settings)
        self.leave = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        other = x[:, :2] if self.attention.kdim != 8 else h
        return self.leave((h + self.attention(h, other, other)[0]).relu()).mean(1)


class OneHead(nn.Module):
    """Attention without heads: no weight reads the channels of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 8)
        self.query, self.key, self.value = (nn.Linear(8, n) for n in (6, 6, 7))
        self.leave = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        weights = (self.query(h) @ self.key(h).transpose(1, 2)).softmax(-1)
        return self.leave(weights @ self.value(h)).mean(1)


class Tied(nn.Module):
    """Two layers share a weight: its units stay, the others can go."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.third, self.leave = nn.Linear(8, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.enter, self.first, self.second, self.third):
            x = layer(x).relu()
        return self.leave(x)


class TwoNames(nn.Module):
    """One layer under two names, and one twice in a sequence: their units stay."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.first = nn.Linear(5, 8), nn.Linear(8, 8)
        self.second = self.first
        again = nn.Linear(6, 6)
        self.steps = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), again, nn.ReLU(), again, nn.ReLU())
        self.third, self.leave = nn.Linear(6, 7), nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.enter, self.first, self.second):
            x = layer(x).relu()
        return self.leave(self.third(self.steps(x)).relu())


class TiedDecoder(nn.Module):
    """An autoencoder whose decoder multiplies with the encoder's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.code, self.third = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(8, 6)
        self.leave = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.code(self.enter(x).relu()).relu()
        x = F.linear(x, self.code.weight.t()).relu()
        return self.leave(self.third(x).relu())


class Scaled(nn.Module):
    """A user's linear layer: a gain for each output and a scale besides its weight."""

    def __init__(self, outputs: int, inputs: int, *, bias: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, outputs))
        self.weight = nn.Parameter(0.5 * torch.randn(outputs, inputs))
        if bias:
            self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, getattr(self, "bias", None)) * self.gain * self.scale


class ThirdParameters(nn.Module):
    """Layers that hold more than a weight and a bias; one has no bias, not even None."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Scaled(8, 5, bias=True), Scaled(6, 8, bias=False)
        self.leave = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.second(self.first(x).relu()).relu())


class GroupedUp(nn.Module):
    """A transposed convolution in groups: its outputs are no rows of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(1, 6, 3), nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.norm, self.grouped = nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2, groups=2)
        self.leave = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.up(self.conv(x).relu())).relu()
        return self.leave(self.grouped(x).relu().mean((2, 3)))


class Blocks(nn.Module):
    """Blocks of a Hugging Face model, with embeddings of their own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        import transformers

        sizes = {"vocab_size": 5, "num_hidden_layers": 1, "num_attention_heads": 4}
        if kind == "bert":
            config = transformers.BertConfig(
                hidden_size=8, intermediate_size=6, hidden_dropout_prob=0.0, **sizes
            )
            self.model = transformers.BertModel(config, add_pooling_layer=False)
        elif kind == "gpt2":
            config = transformers.GPT2Config(
                vocab_size=5, n_positions=8, n_embd=8, n_layer=1, n_head=4, n_inner=6,
                use_cache=False, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
            )  # fmt: skip
            self.model = transformers.GPT2Model(config)
        else:
            config = transformers.LlamaConfig(
                hidden_size=8, intermediate_size=6, num_key_value_heads=2, use_cache=False, **sizes
            )
            self.model = transformers.LlamaModel(config)
        self.enter, self.leave = nn.Linear(5, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.model(inputs_embeds=self.enter(x)).last_hidden_state[:, -1])


def _built(spec: str, *inputs: int) -> Callable[[], nn.Module]:
    return lambda: nets.build(spec, inputs=inputs, outputs=CLASSES, seed=0)


_VIT = "simple-vit:dim=8,depth=1,heads=2,head=3,mlp=6,patch=4"
_BLOCK = "model.encoder.layer.0"

MORE_NETS: list[tuple[NetCase, set[str]]] = [
    (NetCase("attention", Attends, (4, 5)), {"input", "attention"}),
    (NetCase("attention-kdim", lambda: Attends(kdim=5, vdim=5), (4, 5)), {"attention"}),
    (NetCase("one-head", OneHead, (4, 5)), {"input", "enter", "value"}),
    (NetCase("tied", Tied, (5,)), {"input", "third"}),
    (NetCase("two-names", TwoNames, (5,)), {"input", "third"}),
    (NetCase("tied-decoder", TiedDecoder, (5,)), {"input", "third"}),
    (NetCase("third-parameters", ThirdParameters, (5,)), {"first", "second"}),
    (NetCase("grouped-up", GroupedUp, (1, 6, 6)), {"conv", "grouped"}),
    (
        NetCase("simple-vit", _built(_VIT, 1, 8, 8), (1, 8, 8)),
        {"patch", "blocks.0.attention.heads", "blocks.0.mlp.fc1"},
    ),
    (
        NetCase("residual-mlp", _built("residual-mlp:6,5", 5), (5,)),
        {"input", "embed", "block1.fc1", "block2.fc1"},
    ),
]
"""A network, and its groups that can be judged."""

if importlib.util.find_spec("transformers"):
    MORE_NETS += [
        (
            NetCase("hf-bert", lambda: Blocks("bert"), (4, 5)),
            {"input", f"{_BLOCK}.attention.self", f"{_BLOCK}.intermediate.dense"},
        ),
        (
            NetCase("hf-gpt2", lambda: Blocks("gpt2"), (4, 5)),
            {"input", "model.h.0.attn", "model.h.0.mlp.c_fc"},
        ),
        (
            NetCase("hf-llama", lambda: Blocks("llama"), (4, 5)),
            {"input", "model.layers.0.self_attn", "model.layers.0.mlp.gate_proj"},
        ),
    ]
