"""``reduce`` from end to end: any trained network, no ratio given, nothing else changed."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayespare
from bayespare import data, nets
from bayespare.bayes.likelihood import likelihood_for
from bayespare.data import Dataset
from bayespare.errors import BayespareError
from bayespare.posthoc import ReduceOptions, reduction, run, tune
from bayespare.posthoc.finish import Finisher
from bayespare.posthoc.problem import as_given

QUICK = {"rounds": 3, "between": 1, "finetune": 1, "samples": 300}


def taught(model: nn.Module, train: Dataset, epochs: int) -> nn.Module:
    options = ReduceOptions(lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    tune(model, {}, likelihood_for(train.task), train, epochs, options, generator)
    return model.eval()


@cache
def digits(net: str) -> tuple[nn.Module, data.Splits]:
    """A network trained on the bundled digits, as rows or as images."""
    splits = data.load("digits")
    pad = 6 if net == "lenet5" else 4
    if not net.startswith("mlp"):
        for part in ("train", "valid", "test"):
            own = getattr(splits, part)
            image = torch.nn.functional.pad(own.x.view(-1, 1, 8, 8), (pad,) * 4)
            changed = Dataset(image, own.y, own.task, classes=own.classes)
            object.__setattr__(splits, part, changed.subset(torch.arange(min(len(own), 400))))
    model = nets.build(net, inputs=splits.train.inputs, outputs=10, seed=0)
    return taught(model, splits.train, 4 if net.startswith("mlp") else 6), splits


NETS = ("mlp:48,24", "lenet5", "resnet20:width=4", "vit:dim=16,depth=2,heads=2,patch=4")


@pytest.mark.parametrize("unit", ["unit", "weight"])
def test_weighted_examples_are_reduced_too(unit):
    model, splits = digits("mlp:48,24")
    weight = torch.ones(len(splits.train))
    weighted = replace(splits.train, weight=weight)
    rows = {"valid": splits.valid, "unit": unit, **QUICK}
    result = bayespare.reduce(model, weighted, **rows)
    plain = bayespare.reduce(model, splits.train, **rows)
    assert result.metrics["compact"]["nonzeros"] == plain.metrics["compact"]["nonzeros"]
    assert result.metrics["compact"]["nonzeros"] < 0.97 * result.metrics["dense"]["nonzeros"]


def test_a_weight_counts_as_that_many_rows_in_what_came_true():
    model, splits = digits("mlp:48,24")
    few = splits.train.subset(torch.arange(300))
    weighted = replace(few, weight=torch.full((300,), 10.0))
    repeated = few.subset(torch.arange(300).repeat(10))
    first = []
    for train in (weighted, repeated):
        options = {"rounds": 1, "between": 0, "finetune": 0, "samples": 3000}
        result = bayespare.reduce(model, train, valid=splits.valid, **options)
        first.append(next(row for row in result.history if row["phase"] == "reduce"))
    for key in ("predicted_rise", "realised_rise"):
        assert 0.5 < first[0][key] / first[1][key] < 2


def test_where_every_removal_costs_too_much_the_network_is_kept_whole(monkeypatch):
    model, splits = digits("mlp:48,24")
    monkeypatch.setattr(reduction, "as_good", lambda small, given: False)
    result = bayespare.reduce(model, splits.train, valid=splits.valid, **QUICK)
    assert "dense" in [point.name for point in result.frontier]
    assert any("the network is kept whole" in text for text in result.metrics["warnings"])
    smaller = bayespare.reduce(model, splits.train, valid=splits.valid, max_params=2000, **QUICK)
    assert smaller.metrics["compact"]["parameters"] <= 2000


@pytest.mark.parametrize("unit", ["unit", "weight"])
def test_a_rate_at_which_training_diverges_is_named(unit):
    model, splits = digits("mlp:48,24")
    result = bayespare.reduce(model, splits.train, valid=splits.valid, unit=unit, lr=3.0, **QUICK)
    assert any("lr=3 is too high" in text for text in result.metrics["warnings"])
    assert result.metrics["compact"]["nonzeros"] == result.metrics["dense"]["nonzeros"]


def test_the_size_may_lie_inside_a_round(monkeypatch):
    """What is good up to a third of the second round ends with a quarter of it."""
    model, splits = digits("mlp:48,24")
    rounds, finish = {}, Finisher.finish

    def finished(self, size):
        done = finish(self, size)
        rounds[done.standing] = size.round
        return done

    monkeypatch.setattr(Finisher, "finish", finished)
    for module in (reduction, run):
        monkeypatch.setattr(module, "as_good", lambda small, given: rounds[small] < 4 / 3)
    monkeypatch.setattr(run, "FEW_ROWS", 0)
    result = bayespare.reduce(model, splits.train, valid=splits.valid, **QUICK)
    by_name = {point.name: point.summary for point in result.frontier}
    assert next(name for name, point in by_name.items() if point["chosen"]) == "r01.25"
    sizes = [by_name[name]["parameters"] for name in ("r01", "r01.25", "r01.5", "r02")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


@pytest.mark.parametrize("unit", ["unit", "weight"])
@pytest.mark.parametrize("net", NETS)
def test_it_makes_any_trained_network_smaller(net, unit, tmp_path):
    model, splits = digits(net)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    rows = {"valid": splits.valid, "test": splits.test}
    # Kept whole after one epoch: it is measurably worse by then.
    longer = {"finetune": 3} if (net, unit) == ("lenet5", "weight") else {}
    result = bayespare.reduce(model, splits.train, unit=unit, **rows, **QUICK | longer)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    small, metrics = result.metrics["compact"], result.metrics
    size = "parameters" if unit == "unit" else "nonzeros"
    assert small[size] < 0.97 * metrics["dense"][size]
    assert small["accuracy"] > metrics["dense"]["accuracy"] - 0.15
    assert metrics["compact_equals_masked"] <= 1e-5
    removals = [row for row in result.history if row["phase"] == "reduce"]
    assert len(metrics["criterion"]) == len(removals) > 0
    assert {row["size"] for row in result.history if row not in removals} == {
        point.name for point in result.frontier
    }
    spent = metrics["time_s"]
    assert spent["training"] > 0 < spent["finetuning"]
    # What went has the log-odds of the round it went in; what stays is not in question.
    for name, odds in result.log_odds.items():
        closed = result.verdict.keep[name]
        assert odds[closed].isposinf().all()
        assert odds[odds.isfinite()].numel() > 0 or closed.all()
    # What averages over the posterior is no worse than what does not, or nearly.
    assert metrics["averaged"]["nll"] < small["nll"] + 0.05
    result.save(tmp_path / "run")
    again = bayespare.load(
        tmp_path / "run", nets.build(net, inputs=splits.train.inputs, outputs=10)
    )
    with torch.no_grad():
        assert torch.equal(again.model(splits.test.x), result.model(splits.test.x))


def test_the_same_seed_gives_the_same_network():
    model, splits = digits(NETS[0])
    one, two = (bayespare.reduce(model, splits.train, valid=splits.valid, **QUICK) for _ in "ab")
    pairs = zip(one.model.parameters(), two.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "limit", [{"max_params": 900}, {"sparsity": 0.8}, {"sparsity": 0.9, "unit": "weight"}], ids=str
)
def test_a_budget_is_met(limit):
    model, splits = digits(NETS[0])
    total = sum(p.numel() for p in model.parameters())
    found = bayespare.reduce(
        model, splits.train, valid=splits.valid, **{**QUICK, "rounds": 20, **limit}
    )
    key = "nonzeros" if limit.get("unit") == "weight" else "parameters"
    most = limit.get("max_params", (1 - limit.get("sparsity", 0)) * total)
    assert all(point.summary[key] <= most for point in found.frontier)


def test_what_goes_does_not_depend_on_the_units_of_the_target():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(900, 10, generator=generator)
    y = x[:, 0] * x[:, 1] + x[:, 2] + 0.1 * torch.randn(900, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    taught(model, Dataset(x, y, "regression"), 20)
    kept = []
    for scale in (1.0, 1000.0):
        scaled = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in scaled[2].parameters():
                parameter.mul_(scale)
        # Without training every removal costs too much: only a budget makes it smaller.
        still = {"between": 0, "finetune": 0, "max_params": 384}
        result = bayespare.reduce(scaled, Dataset(x, scale * y, "regression"), **QUICK | still)
        kept.append(dict(result.verdict.kept))
        assert result.metrics["compact"]["parameters"] < 385
    assert kept[0] == kept[1]


def test_a_loader_of_numbers_keeps_its_own_units():
    """The network was trained on them: standardised targets would be others."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=random)
    y = 50 + 20 * x[:, 0] + torch.randn(500, generator=random)
    loader = DataLoader(TensorDataset(x, y), batch_size=100)
    train = as_given(loader)
    assert train.target_scale == (0.0, 1.0)
    assert torch.allclose(train.y.flatten(), y, atol=1e-4)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1))
    nn.init.constant_(model[2].bias, 50.0)
    taught(model, train, 20)
    result = bayespare.reduce(model, loader, **QUICK)
    assert result.metrics["compact"]["rmse"] < 8
    assert result.metrics["compact"]["parameters"] < 0.95 * result.metrics["dense"]["parameters"]
    assert result.predict(x[:4]).mean.mean() > 10


def test_a_loader_beside_a_dataset_is_read_in_its_units():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=random)
    y = 50 + 20 * x[:, 0]
    train = Dataset(x, (y - 50) / 20, "regression", target_scale=(50.0, 20.0))
    other = as_given(DataLoader(TensorDataset(x, y), batch_size=50), train)
    assert torch.allclose(other.y, train.y, atol=1e-6)
    assert other.target_scale == train.target_scale


def test_a_budget_that_is_missed_is_named_as_it_was_given():
    model, splits = digits("mlp:48,24")
    options = {"valid": splits.valid, "rounds": 1, "sparsity": 0.95}
    with pytest.raises(BayespareError, match=r"^sparsity=0.95: .* use more rounds or a larger"):
        bayespare.reduce(model, splits.train, **QUICK | options)


def test_it_says_when_it_judges_on_rows_that_may_have_been_trained_on():
    model, splits = digits("mlp:48,24")
    said = bayespare.reduce(model, splits.train, **QUICK).metrics["warnings"]
    assert any("no valid= was given" in warning for warning in said)
    fair = bayespare.reduce(model, splits.train, valid=splits.valid, **QUICK).metrics["warnings"]
    assert not any("no valid= was given" in warning for warning in fair)


class Aside(nn.Module):
    """A network with a head that no output depends on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)


@pytest.mark.parametrize("unit", ["unit", "weight"])
def test_a_part_that_is_not_used_stays_as_it_is(unit):
    model, splits = digits("mlp:48,24")
    whole = Aside(model)
    result = bayespare.reduce(whole, splits.train, valid=splits.valid, unit=unit, **QUICK)
    assert torch.equal(result.model.head.weight, whole.head.weight)
    assert result.metrics["compact"]["accuracy"] > 0.8


@pytest.mark.parametrize("unit", ["unit", "weight"])
def test_a_last_training_that_harms_is_undone(unit):
    model, splits = digits("mlp:48,24")
    options = QUICK | {"unit": unit, "lr": 3.0, "between": 0, "seed": 1}
    result = bayespare.reduce(model, splits.train, valid=splits.valid, **options)
    row = next(row for row in result.history if row["phase"] == "finish")
    assert not row["taken"]
    assert row["valid_nll"] > 1
    assert result.metrics["compact"]["nll"] < 0.5
    stages = result.point.summary["stages"]
    assert stages["finetuned"]["nll"] == pytest.approx(stages["pruned"]["nll"], rel=1e-5)


def broken(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (broken, {}, "holds values that are not finite"),
        (None, {"unit": "wait"}, "did you mean 'weight'"),
        (None, {"roundz": 3}, "did you mean 'rounds'"),
        (None, {"survivors": "off"}, "survivors='off': must be True or False"),
        (None, {"max_params": 3}, "out of reach"),
        (None, {"share": 1.0}, "share=1.0"),
        (None, {"share": "0.3"}, "share='0.3': must be a number between 0 and 1"),
        (None, {"max_params": "100"}, "max_params='100': must be a number"),
        (None, {"sparsity": "0.9"}, "sparsity='0.9': must be a number between 0 and 1"),
        (None, {"max_memory_gb": "1"}, "max_memory_gb='1': must be a number above 0"),
        (None, {"max_memory_gb": 0.0}, "max_memory_gb=0.0: must be a number above 0"),
        (None, {"max_memory_gb": 1e-6}, "the limit is max_memory_gb=1e-06: .*reduce: unit=weight"),
        (lambda m: nn.Flatten(), {}, "nothing in this model can be removed"),
    ],
)
def test_bad_input_is_refused(change, options, says):
    model, splits = digits(NETS[0])
    with pytest.raises(BayespareError, match=says):
        bayespare.reduce(change(model) if change else model, splits.train, **options)


def test_an_untrained_network_is_refused_unless_forced():
    _, splits = digits(NETS[0])
    fresh = nets.build(NETS[0], inputs=splits.train.inputs, outputs=10, seed=0)
    with pytest.raises(BayespareError, match=r"seems untrained: its NLL on validation data is 2\."):
        bayespare.reduce(fresh, splits.train, valid=splits.valid)
    found = bayespare.reduce(fresh, splits.train, valid=splits.valid, force=True, **QUICK)
    assert found.frontier
