"""Marginal-likelihood updates of Hugging Face's models: every parameter has its own curvature."""

import pytest
import torch
from torch.nn import functional

from bayespare.bayes.curvature import curvature
from bayespare.bayes.marginal import Laplace, Prior, learn

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.randint(1, 20, (4, 6), generator=torch.Generator().manual_seed(0))


def distilbert(attention):
    config = transformers.DistilBertConfig(
        vocab_size=20, dim=16, n_layers=2, n_heads=4, hidden_dim=12, attn_implementation=attention
    )
    return transformers.DistilBertForSequenceClassification(config)


def gpt2(attention, kind="GPT2ForSequenceClassification"):
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=4, n_inner=12, use_cache=False,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, attn_implementation=attention,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def gpt2_tied(attention):
    return gpt2(attention, "GPT2LMHeadModel")


def built(make, attention):
    torch.manual_seed(0)
    model = make(attention).double()
    with torch.no_grad():
        for parameter in model.parameters():  # wider than its start, or attention does nothing
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def labels(make):
    return TOKENS.roll(-1, 1) if make is gpt2_tied else torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [distilbert, gpt2, gpt2_tied])
def test_the_diagonal_is_that_of_each_examples_gradient(make, attention):
    """Fused and separate projections, Conv1D, a head tied to the embedding, normalisations."""
    model, y = built(make, attention), labels(make)
    found = curvature(
        model, "classification", [(TOKENS[:3], y[:3]), (TOKENS[3:], y[3:])], kind="ef"
    )
    parameters = dict(model.named_parameters())
    assert found.diagonal.keys() == parameters.keys()
    assert found.unused == ()
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    model.eval()
    for n in range(4):
        logits = model(TOKENS[n : n + 1]).logits
        loss = functional.cross_entropy(
            logits.flatten(0, -2), y[n : n + 1].flatten(), reduction="sum"
        )
        grads = torch.autograd.grad(loss, list(parameters.values()))
        for name, grad in zip(parameters, grads, strict=True):
            total[name] += grad.square()
    for name, expected in total.items():
        assert torch.allclose(found.diagonal[name], expected, rtol=1e-9, atol=1e-14), name


@pytest.mark.parametrize("make", [distilbert, gpt2, gpt2_tied])
@pytest.mark.parametrize("structure", ["diag", "kfac"])
def test_an_update_raises_the_evidence(make, structure):
    model, y = built(make, "sdpa"), labels(make)
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    batches = [(TOKENS, y)]
    found = Laplace(
        parameters,
        curvature(model, "classification", batches, structure=structure, generator=generator),
    )
    assert found.blocks.keys() == parameters.keys()
    prior = Prior(parameters, "parameter")
    before = float(found.log_evidence(prior).detach())
    learn(prior, found)
    assert float(found.log_evidence(prior).detach()) > before + 10
