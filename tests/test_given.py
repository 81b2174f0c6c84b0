"""What a user gives in Python: what is refused by name, and what is warned of."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayespare
from bayespare.data import Dataset, from_loader, from_tensors
from bayespare.errors import BayespareError
from bayespare.given import (
    PROBABILITIES,
    check_units,
    few_rows_warnings,
    output_warnings,
    task_warnings,
)
from test_reduce import QUICK, digits


def sparsified(model, train, valid=None):
    return bayespare.sparsify(model, train, valid=valid, epochs=1)


def reduced(model, train, valid=None):
    return bayespare.reduce(model, train, valid=valid, **QUICK)


BOTH = pytest.mark.parametrize("run", [sparsified, reduced])


def rows(outputs: int = 3) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 5, generator=generator)
    names = tuple(str(i) for i in range(outputs))
    return Dataset(x, torch.arange(120) % outputs, "classification", classes=names)


class Two(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 3))


def old_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(5, 3))
    layer(torch.zeros(1, 5))
    return nn.Sequential(layer)


@BOTH
@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: Two(5, 3), "output for 4 rows is tuple"),
        (lambda: Two(5, 3), "give a module whose forward returns the tensor of outputs alone"),
        (lambda: nn.Linear(5, 1), r"whole-number targets are classes: for a regression give dec"),
        (lambda: nn.Linear(5, 2), r"output for 4 rows is \(4, 2\), the data need \(4, 3\)"),
        (lambda: "net", "an nn.Module is needed, not str"),
        (lazy, "0.weight has no shape yet"),
        (old_norm, "the network cannot be copied"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(run, model, says):
    with pytest.raises(BayespareError, match=says):
        run(model(), rows())


@BOTH
def test_classes_given_as_decimals_are_told_so(run):
    data = from_tensors(torch.randn(108, 5), torch.randint(3, (108,)).float())
    with pytest.raises(BayespareError, match=r"for classes give whole numbers, y\.long\(\)"):
        run(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), data)


def test_a_layer_by_itself_is_to_be_put_into_a_module():
    with pytest.raises(BayespareError, match=r"a Linear by itself .* give nn.Sequential\(model\)"):
        sparsified(nn.Linear(5, 3), rows())


@BOTH
@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (torch.ones(3), r"train: weight of shape \(3,\) for 108 examples"),
        (-torch.ones(108), "the weight of row 0 .* is -1.0"),
        (torch.zeros(108), "train: all weights are zero"),
        (torch.full((108,), torch.nan), "is nan"),
    ],
)
def test_weights_that_are_none_are_refused(run, weight, says):
    data = rows()
    train = replace(data.subset(torch.arange(108)), weight=weight)
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(BayespareError, match=says):
        run(net, train, data)


def test_what_gives_no_batches_is_refused():
    with pytest.raises(BayespareError, match="NoneType gives no batches: give a pair"):
        from_loader(None)


def test_probabilities_are_not_taken_for_logits_without_a_word():
    model, splits = digits("mlp:48,24")
    said = output_warnings(nn.Sequential(model, nn.Softmax(-1)), splits.train, splits.train.x[:4])
    assert said == [PROBABILITIES]
    for end in (nn.Identity(), nn.LogSoftmax(-1)):
        assert not output_warnings(nn.Sequential(model, end), splits.train, splits.train.x[:4])
    soft = nn.Sequential(model, nn.Softmax(-1))
    found = bayespare.reduce(soft, splits.train, valid=splits.valid, **QUICK)
    assert PROBABILITIES in found.metrics["warnings"]


@pytest.mark.parametrize("verb", ["sparsify", "reduce"])
def test_so_few_rows_that_nothing_can_be_told_are_said(verb):
    model, splits = digits("mlp:48,24")
    options = {"epochs": 1, "baseline": False} if verb == "sparsify" else QUICK
    train, few = splits.train, splits.valid.subset(torch.arange(2))
    one, enough = splits.test.subset(torch.arange(1)), splits.valid.subset(torch.arange(10))
    run = getattr(bayespare, verb)
    warned = run(model, train, valid=few, test=one, **options).metrics["warnings"]
    assert [text for text in warned if text.startswith("only ")] == few_rows_warnings(few, one)
    assert "only 2 rows of validation data" in few_rows_warnings(few, one)[0]
    assert "only 1 row of test data" in few_rows_warnings(few, one)[1]
    warned = run(model, train, valid=enough, test=enough, **options).metrics["warnings"]
    assert not [text for text in warned if text.startswith("only ")]


def test_a_network_that_knows_a_loaders_numbers_is_not_trained_on_others():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=generator)
    y = 50 + 10 * x[:, 0]
    loader = DataLoader(TensorDataset(x, y), batch_size=50)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    check_units(model, from_loader(loader))  # untrained
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.zero_()
        model[1].weight.copy_(torch.tensor([[10.0, 0.0]]))
        model[1].bias.fill_(50.0)
    with pytest.raises(BayespareError, match=r"use bayespare\.reduce, which keeps the units"):
        bayespare.sparsify(model, loader, epochs=1)


@pytest.mark.parametrize("options", [{"finetune": None}, {"rounds": "3"}, {"rounds": 2.5}])
def test_options_of_another_type_are_refused(options):
    model, splits = digits("mlp:48,24")
    with pytest.raises(BayespareError, match="must be a whole number"):
        bayespare.reduce(model, splits.train, **options)


@pytest.mark.parametrize("verb", ["sparsify", "reduce"])
def test_two_classes_as_decimals_are_said_to_be_a_regression(verb):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=generator)
    labels = (x[:, 0] > 0).float()
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    loader = DataLoader(TensorDataset(x, labels), batch_size=50)
    options = {"epochs": 1, "baseline": False} if verb == "sparsify" else {**QUICK, "force": True}
    result = getattr(bayespare, verb)(model, loader, valid=loader, **options)
    said = task_warnings(from_loader(loader))
    assert result.task == "regression"
    assert said[0] in result.metrics["warnings"]
    assert "they are 0 and 1 alone: for binary classification give whole labels" in said[0]
    for other in (labels.long(), labels + 0.5, labels + x[:, 1], labels + (x[:, 1] > 0)):
        assert not task_warnings(from_loader([(x, other)]))


@BOTH
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_precisions_are_worked_with_as_float32(run, kind, tmp_path):
    shared, splits = digits("mlp:48,24")
    model = copy.deepcopy(shared).to(kind)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    result = run(model, splits.train, splits.valid)
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    (text,) = [t for t in result.metrics["warnings"] if "worked with" in t]
    assert str(kind).removeprefix("torch.") in text
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == kind
        assert torch.equal(tensor, before[name])
    result.save(tmp_path / "run")
    again = bayespare.load(tmp_path / "run", model)
    assert torch.equal(again.model(splits.valid.x), result.model(splits.valid.x))
    assert model.fc1.weight.dtype == kind
