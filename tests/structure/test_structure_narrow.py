"""The layers of our own against the stock layers they stand in for, and recalibrated norms."""

from itertools import product

import pytest
import torch
from structure_nets import outputs, relative
from torch import nn

from bayespare.errors import BayespareError, UnsupportedStructureError
from bayespare.structure import Verdict, compact, recalibrate, trace
from bayespare.structure.narrow import NarrowAttention, NarrowLayerNorm, narrowed


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("make", [nn.LayerNorm, lambda n: nn.LayerNorm(n, bias=False), nn.RMSNorm])
def test_a_narrow_norm_is_the_stock_one_over_zeros(make):
    torch.manual_seed(0)
    norm = make(7)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 4, 7)
    gone = torch.tensor([1, 4, 5])
    x[..., gone] = 0
    left = [i for i in range(7) if i not in gone]
    expected = norm(x)[..., left]
    narrow = narrowed(norm, "norm")
    assert torch.allclose(narrow(x), norm(x), atol=1e-12)
    narrow.weight = nn.Parameter(narrow.weight[left])
    if getattr(narrow, "bias", None) is not None:
        narrow.bias = nn.Parameter(narrow.bias[left])
    assert torch.allclose(narrow(x[..., left]), expected, atol=1e-12)
    far = 1e6 + torch.randn(2, 7)
    far[:, gone] = 0
    assert torch.allclose(narrow(far[:, left]), norm_twin(norm, far)[:, left], rtol=1e-9)


def norm_twin(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The narrow kind's own arithmetic, entry by entry, over the old width."""
    rows = []
    for row in x:
        mean = row.mean() if isinstance(norm, nn.LayerNorm) else torch.zeros(())
        eps = torch.finfo(row.dtype).eps if norm.eps is None else norm.eps
        rows.append((row - mean) / ((row - mean).square().mean() + eps).sqrt())
    rows = torch.stack(rows)
    weight = torch.ones(7)
    weight[[0, 2, 3, 6]] = norm.weight
    bias = torch.zeros(7)
    if getattr(norm, "bias", None) is not None:
        bias[[0, 2, 3, 6]] = norm.bias
    return rows * weight + bias


SETTINGS = list(product([True, False], [True, False], [True, False], [None, 5]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("first", "bias", "extra", "kdim"), SETTINGS)
def test_narrow_attention_is_the_stock_one(first, bias, extra, kdim):
    torch.manual_seed(0)
    settings = {"batch_first": first, "bias": bias, "kdim": kdim, "vdim": kdim}
    stock = nn.MultiheadAttention(8, 4, add_bias_kv=extra, add_zero_attn=extra, **settings).eval()
    for parameter in stock.parameters():
        nn.init.normal_(parameter)
    query, key = torch.randn(3, 4, 8), torch.randn(3, 6, kdim or 8)
    float_mask, padding = torch.randn(4, 6), torch.rand(3, 6) < 0.3
    padding[:, 0] = False
    causal = torch.ones(4, 6, dtype=torch.bool).triu(1)
    one_each = torch.randn(3 * 4, 4, 6)
    if not first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    calls = [
        {},
        {"need_weights": False},
        {"attn_mask": float_mask},
        {"attn_mask": float_mask > 1, "need_weights": False},
        {"key_padding_mask": padding, "average_attn_weights": False},
        {"attn_mask": one_each, "key_padding_mask": torch.randn(3, 6)},
    ]
    if not extra:  # the stock layer then lets causality hide the keys it adds itself
        calls.append({"attn_mask": causal, "is_causal": True, "need_weights": False})
    wanted = [stock(query, key, key, **call) for call in calls]
    alone = stock(query[:, 0], key[:, 0], key[:, 0])
    narrow = narrowed(stock, "attention")
    assert isinstance(narrow, NarrowAttention)
    assert narrowed(narrow, "attention") is narrow
    for call, (expected, weights) in zip(calls, wanted, strict=True):
        got, ours = narrow(query, key, key, **call)
        assert torch.allclose(got, expected, atol=1e-12)
        assert (ours is None) == (weights is None)
        assert ours is None or torch.allclose(ours, weights, atol=1e-12)
    for got, expected in zip(narrow(query[:, 0], key[:, 0], key[:, 0]), alone, strict=True):
        assert torch.allclose(got, expected, atol=1e-12)


def test_dropout_in_attention_is_on_in_training_only():
    torch.manual_seed(0)
    narrow = narrowed(nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True), "attention")
    x = torch.randn(2, 3, 8)
    for weights in (True, False):
        narrow.train()
        assert not torch.equal(*(narrow(x, x, x, need_weights=weights)[0] for _ in range(2)))
        narrow.eval()
        assert torch.equal(*(narrow(x, x, x, need_weights=weights)[0] for _ in range(2)))


def test_what_has_no_narrow_kind_is_named():
    with pytest.raises(UnsupportedStructureError, match="layer x: BatchNorm1d has no form"):
        narrowed(nn.BatchNorm1d(3), "x")


def test_a_stock_encoder_runs_its_plain_path_with_fewer_heads():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 4, 6, batch_first=True).eval()
    model = nn.Sequential(nn.Linear(5, 8), layer, nn.Linear(8, 2)).eval()
    x = torch.randn(2, 3, 5)
    torch.backends.mha.set_fastpath_enabled(True)  # as it is by default
    plan = trace(model, x)
    assert torch.backends.mha.get_fastpath_enabled()
    small = compact(model, Verdict(plan, {"1.self_attn": torch.arange(4) < 2}), example=x)
    again = compact(model, Verdict(plan, {"1.self_attn": torch.arange(4) < 2}), example=x)
    with torch.inference_mode():
        assert small(x).shape == (2, 3, 2)
        assert torch.equal(small(x), again(x))
    program = torch.export.export(small, (x,))
    assert torch.allclose(program.module()(x), small(x), atol=1e-6)


# ------------------------------------------------------------------ recalibrate
def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.9), nn.Flatten(),
        nn.Linear(64, 5), nn.BatchNorm1d(5, momentum=0.3),
    )  # fmt: skip
    model[1].eval()
    return model


def test_statistics_are_plain_averages_over_the_batches():
    model = network()
    batches = [torch.randn(8, 1, 6, 6) + i for i in range(4)]
    modes = [module.training for module in model.modules()]
    assert recalibrate(model, [(x, None) for x in batches], batches=3) == 2
    assert [module.training for module in model.modules()] == modes
    assert (model[1].momentum, model[6].momentum) == (0.1, 0.3)
    means, variances = [], []
    for x in batches[:3]:
        y = model[0](x)
        means.append(y.mean((0, 2, 3)))
        variances.append(y.var((0, 2, 3)))
    assert torch.allclose(model[1].running_mean, torch.stack(means).mean(0), atol=1e-5)
    assert torch.allclose(model[1].running_var, torch.stack(variances).mean(0), rtol=1e-5)
    assert int(model[1].num_batches_tracked) == 3
    # Dropout is off: what the last norm sees does not change from one time to the next.
    before = model[6].running_mean.clone()
    recalibrate(model, batches, batches=3)
    assert torch.equal(model[6].running_mean, before)


def test_after_a_removal_the_statistics_fit_what_arrives():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)
    )
    x = torch.randn(64, 6)
    recalibrate(model, [x])
    plan = trace(model, x[:2])
    small = compact(model, Verdict(plan, {"0": torch.arange(8) < 3, "2": torch.arange(5) > 1}))
    assert torch.equal(small[3].running_var, model[3].running_var[2:])
    recalibrate(small, [x])
    seen = small[2](small[1](small[0](x)))
    assert torch.allclose(small[3].running_mean, seen.mean(0), atol=1e-6)
    assert relative(outputs(small[:4], x).var(0, correction=1), torch.ones(3)) < 1e-2


def test_nothing_to_recalibrate_reads_nothing():
    def never():
        raise AssertionError
        yield

    assert recalibrate(nn.Linear(3, 2), never()) == 0
    assert recalibrate(nn.BatchNorm1d(3, track_running_stats=False), never()) == 0


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "there are no batches"),
        ([torch.full((4, 1, 6, 6), torch.nan)], "layer 1 sees values that are not finite"),
        ([torch.randn(4, 2, 6, 6)], r"does not run on a batch of shape \(4, 2, 6, 6\)"),
        ([torch.randn(1, 1, 6, 6)], "more than 1 value per channel"),
    ],
)
def test_bad_batches_leave_everything_as_it_was(batches, message):
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with pytest.raises(BayespareError, match=message):
        recalibrate(model, batches)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert model[6].momentum == 0.3


def test_narrow_norms_look_like_the_stock_ones():
    norm = narrowed(nn.LayerNorm(4), "n")
    assert isinstance(norm, NarrowLayerNorm)
    assert repr(norm).startswith("NarrowLayerNorm((4,), eps=1e-05")
    assert repr(norm).endswith("width=4)")
