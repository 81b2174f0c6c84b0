"""Limits: what meets them, what they measure, and that counting a structure is counting it cut."""

import itertools
import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Problem, small_conv, small_mlp, table, train

import bayespare.training.budget as module
from bayespare import count, nets, sparsify, trace
from bayespare.errors import BayespareError
from bayespare.structure import Verdict, compact
from bayespare.structure.positions import with_positions
from bayespare.training.budget import Budget, Cost
from bayespare.training.finish import finish
from bayespare.training.schedule import Schedule

SMALL = {
    "mlp": (small_mlp, (6,)),
    "conv": (small_conv, (1, 6, 6)),
    "lenet5": (lambda: nets.build("lenet5", inputs=(1, 20, 20), outputs=3, seed=0), (1, 20, 20)),
}


def never(*_: object, **__: object) -> dict[str, dict[str, float]]:
    raise AssertionError("nobody asked for a time")


# ----------------------------------------------------------------------- limits


@settings(max_examples=200)
@given(
    limits=st.tuples(*[st.none() | st.integers(1, 9)] * 3),
    cost=st.tuples(st.integers(1, 9), *[st.none() | st.integers(1, 9)] * 2),
)
def test_a_budget_is_met_when_every_limit_is(limits, cost):
    wanted = all(
        limit is None or (value is not None and value <= limit)
        for limit, value in zip(limits, cost, strict=True)
    )
    assert Budget(*limits).met(Cost(*cost)) is wanted
    used = Budget(*limits).used(Cost(*cost))
    pairs = [(v, most) for v, most in zip(cost, limits, strict=True) if most is not None]
    assert math.isinf(used) is any(value is None for value, _ in pairs)
    if not math.isinf(used):
        # The tightest limit: a budget of exactly so many times the cost is just met.
        assert all(value <= most * used * (1 + 1e-12) for value, most in pairs)
        assert not pairs or any(value >= most * used * (1 - 1e-12) for value, most in pairs)
    assert bool(Budget(*limits)) is any(limit is not None for limit in limits)


@given(share=st.floats(0.01, 0.99), total=st.integers(200, 10**8))
def test_a_sparsity_is_the_share_that_goes(share, total):
    budget = Budget(sparsity=share).of(total)
    assert budget.sparsity is None
    assert 1 - budget.max_params / total >= share - 1e-9
    assert 1 - (budget.max_params + 1) / total < share
    assert Budget(sparsity=0.9).of(1000).max_params == 100


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"max_params": 0}, "max_params=0: must be a number, 1 or more"),
        ({"max_macs": -1}, "max_macs=-1: must be a number, 1 or more"),
        ({"max_params": "100"}, "max_params='100': must be a number, 1 or more"),
        ({"max_params": float("nan")}, "max_params=nan: must be a number"),
        ({"max_macs": [100]}, r"max_macs=\[100\]: must be a number"),
        ({"max_latency_ms": "1"}, "max_latency_ms='1': must be a number above 0"),
        ({"sparsity": "0.9"}, "sparsity='0.9': must be a number between 0 and 1"),
        ({"max_latency_ms": 0.0}, "max_latency_ms=0.0: must be a number above 0"),
        ({"max_latency_ms": float("nan")}, "max_latency_ms=nan"),
        ({"sparsity": 1.0}, "sparsity=1.0: must be a number between 0 and 1"),
        ({"sparsity": 0.5, "max_params": 3}, "say the same in two ways"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits, says):
    with pytest.raises(BayespareError, match=says):
        Budget(**limits)
    with pytest.raises(BayespareError, match="leaves none of 5 parameters"):
        Budget(sparsity=0.9).of(5)


def test_a_budget_says_itself_as_it_was_asked_for():
    assert str(Budget(30, None, 0.5)) == "max_params=30 max_latency_ms=0.5"
    assert str(Budget(sparsity=0.9)) == "sparsity=0.9"
    assert str(Cost(1234, 567, 0.0123)) == "1,234 parameters, 567 MACs, 0.0123 ms a row"


@pytest.mark.parametrize("method", ["bmr", "spam"])
def test_single_weights_can_be_fewer_than_one_unit_of_every_group_has(method):
    """Of a transformer a fifth is in its width, which no group cuts: zeros can go below that."""
    net = "vit:dim=32,depth=1,heads=2,head=8,mlp=128,patch=7"
    data = table(inputs=(1, 28, 28)).subset(torch.arange(40))
    model = nets.build(net, inputs=data.inputs, outputs=data.outputs, seed=0)
    given = {"valid": data, "method": method, "epochs": 8, "baseline": False}
    with pytest.raises(BayespareError, match=r"sparsity=0\.9: out of reach: one unit left"):
        sparsify(model, data, sparsity=0.9, **given)
    result = sparsify(model, data, sparsity=0.9, unit="weight", **given)
    there = sum(int(p.count_nonzero()) for p in result.model.parameters())
    assert int(result.model.get_parameter("patch.weight").count_nonzero()) < 0.9 * 32 * 49
    assert "was cut down from there" not in " ".join(result.metrics["warnings"])
    assert there <= 0.1 * sum(p.numel() for p in model.parameters())
    with pytest.raises(BayespareError, match="at zero, still has 768 parameters"):
        sparsify(model, data, max_params=700, unit="weight", **given)
    if method == "bmr":
        told = sparsify(model, data, max_params=775, unit="weight", **given).metrics["warnings"]
        assert "was cut down from there" in " ".join(told)


# --------------------------------------------------------------------- measuring


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", range(4))
def test_macs_of_a_structure_are_those_of_the_network_it_becomes(name, seed):
    """Exactly, after the decision, the survivors' weights and the closing of dead paths."""
    make, inputs = SMALL[name]
    problem = Problem(make, inputs=inputs)
    fit = problem.start()
    train(fit, problem)
    random = torch.Generator().manual_seed(seed)
    odds = fit.method.log_odds()
    fit.remove({n: torch.rand(len(v), generator=random) < 0.8 for n, v in odds.items()})
    with torch.no_grad():
        fit.method.gates.normal_(0.5, generator=random)
    template, example = make(), table(inputs=inputs).x[:4]
    cost = Budget(max_macs=1).cost(template, fit.verdict(), fit.parameters(), example[:1])
    fit.decide()
    counted = count(finish(template, fit.method, example).model, example[:1])
    assert (cost.parameters, cost.macs) == (counted.parameters, counted.macs)
    assert cost.latency_ms is None


def test_nothing_is_measured_that_no_limit_asks_for(monkeypatch):
    fit = Problem().start()
    monkeypatch.setattr(module, "latency", never)
    for budget, expected in (
        (Budget(), Cost(7)),
        (Budget(max_params=3), Cost(7)),
        (Budget(max_params=3, max_macs=10**6), Cost(7, 275)),
        # Too large already: its time does not matter.
        (Budget(max_params=3, max_latency_ms=9.0), Cost(7, 275)),
        (Budget(max_macs=5, max_latency_ms=9.0), Cost(7, 275)),
    ):
        assert budget.cost(small_mlp(), fit.verdict(), 7, table().x[:1]) == expected
    assert count(small_mlp(), table().x[:1]).macs == 275


def test_time_is_measured_of_the_cut_network_at_batch_one_and_only_when_it_got_smaller(monkeypatch):
    asked = []

    def timed(models, example, *, batches, **_):
        asked.append(({n: count(m, example).macs for n, m in models.items()}, batches))
        return {name: {"1": 0.25} for name in models}

    monkeypatch.setattr(module, "latency", timed)
    fit, example = Problem().start(), table().x[:1]
    fit.remove({"fc1": torch.arange(16) < 5})
    budget = Budget(max_latency_ms=9.0)
    cost = budget.cost(small_mlp(), fit.verdict(), 50, example)
    assert cost == Cost(50, (6 + 1) * 5 + (5 + 1) * 8 + (8 + 1) * 3, 0.25)
    assert asked == [({"": cost.macs}, (1,))]
    again = budget.cost(small_mlp(), fit.verdict(), 50, example, Cost(50, 1, 0.5))
    assert again.latency_ms == 0.5
    assert len(asked) == 1
    smaller = budget.cost(small_mlp(), fit.verdict(), 49, example, Cost(50, 1, 0.5))
    assert smaller.latency_ms == 0.25
    assert len(asked) == 2


def test_a_time_is_a_time():
    fit = Problem().start()
    cost = Budget(max_latency_ms=1e3).cost(small_mlp(), fit.verdict(), 275, table().x[:1])
    assert 1e-3 < cost.latency_ms < 1e3


# ------------------------------------------------------------------------ prices


@pytest.mark.parametrize("name", SMALL)
def test_a_price_on_work_is_proportional_to_macs(name):
    """Whatever units are there; and on average it is the price of a parameter."""
    make, inputs = SMALL[name]
    example = table(inputs=inputs).x[:1]
    fit = Problem(make, inputs=inputs).start()
    worth = Budget(max_macs=1).worth(make(), example)
    ratios = []
    for seed in range(3):
        if seed:
            random = torch.Generator().manual_seed(seed)
            odds = fit.method.log_odds()
            fit.remove({n: torch.rand(len(v), generator=random) < 0.8 for n, v in odds.items()})
        priced = []
        with torch.no_grad():
            fit.method.gates.fill_(30.0)
            for price, factors in ((0.0, None), (1.0, None), (1.0, worth)):
                fit.method.price, fit.method.worth = price, factors
                priced.append(fit.method.kl().double().item())
        free, by_parameters, by_work = priced
        cost = Budget(max_macs=1).cost(make(), fit.verdict(), fit.parameters(), example)
        norms = sum(p.numel() for n, p in fit.network.named_parameters() if "norm" in n)
        assert by_parameters - free == pytest.approx(cost.parameters - norms, rel=1e-3)
        ratios.append((by_work - free) / cost.macs)
        if not seed:
            assert by_work - free == pytest.approx(by_parameters - free, rel=0.05)
    assert ratios == pytest.approx([ratios[0]] * 3, rel=2e-3)


def test_what_the_price_is_on_follows_the_limits():
    model, example = small_conv(), table(inputs=(1, 6, 6)).x[:1]
    assert Budget(max_params=3).worth(model, example) is None
    assert Budget().worth(model, example) is None
    work = Budget(max_macs=3).worth(model, example)
    assert work == Budget(max_latency_ms=3).worth(model, example)
    assert work["conv"] == pytest.approx(16 * work["hidden"])
    assert work["hidden"] == work["out"] < 1
    both = Budget(max_params=3, max_macs=3).worth(model, example)
    assert both == pytest.approx({name: (1 + factor) / 2 for name, factor in work.items()})
    search = Problem(small_conv, inputs=(1, 6, 6), budget=Budget(max_macs=3)).search()
    search._prepare()
    assert search.fit.method.worth == search._fresh().method.worth == work


# ------------------------------------------------------------------- out of reach


@pytest.mark.parametrize("name", SMALL)
def test_the_floor_is_one_unit_of_every_group(name):
    """No choice of units gives a smaller network; a budget at the floor is not refused."""
    make, inputs = SMALL[name]
    model, example = make(), table(inputs=inputs).x[:1]
    plan = with_positions(trace(model, example))
    with pytest.raises(BayespareError, match="out of reach") as caught:
        Budget(max_params=1).check(model, plan, example)
    said = str(caught.value).replace(",", "")
    params, macs = (int(re.search(rf"(\d+) {w}", said)[1]) for w in ("parameters", "MACs"))
    Budget(max_params=params, max_macs=macs).check(model, plan, example)
    for below in (Budget(max_params=params - 1), Budget(max_macs=macs - 1)):
        with pytest.raises(BayespareError, match="out of reach"):
            below.check(model, plan, example)
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        keep = {g.name: torch.rand(g.size, generator=random) < 0.02 for g in plan.groups}
        kept = plan.surviving(keep, {})
        small = compact(model, Verdict(plan, kept))
        counted = count(small, example)
        assert counted.parameters >= params
        assert counted.macs >= macs


def test_a_time_out_of_reach_is_refused_with_the_fastest(monkeypatch):
    monkeypatch.setattr(module, "latency", lambda models, *_, **__: {n: {"1": 0.5} for n in models})
    plan = trace(small_mlp(), table().x[:4])
    Budget(max_latency_ms=0.5).check(small_mlp(), plan, table().x[:1])
    with pytest.raises(BayespareError, match=r"max_latency_ms=0\.4: out of reach.*0\.5 ms a row"):
        Budget(max_latency_ms=0.4).check(small_mlp(), plan, table().x[:1])


# --------------------------------------------------------------- a search with one

SHORT = Schedule(warm=1, explore=2, cool=1, candidates=3)


def test_a_search_goes_on_until_the_macs_are_met():
    problem = Problem(small_conv, inputs=(1, 6, 6), schedule=SHORT, budget=Budget(max_macs=400))
    search = problem.search()
    search.run()
    for candidate in search.candidates:
        done = finish(search.template, candidate.fit.method, search.train.x[:4])
        assert count(done.model, search.example).macs == candidate.macs <= 400
    assert search.fit.epoch > SHORT.explore


def test_a_search_goes_on_until_the_time_is_met(monkeypatch):
    """A clock that is a function of size stands for the machine."""

    def timed(models, example, **_):
        return {n: {"1": count(m, example).macs / 1000} for n, m in models.items()}

    monkeypatch.setattr(module, "latency", timed)
    problem = Problem(schedule=SHORT, budget=Budget(max_latency_ms=0.06))
    search = problem.search()
    best = search.run()
    assert best.latency_ms == best.macs / 1000 <= 0.06
    assert all(c.latency_ms <= 0.06 for c in search.candidates)


def test_what_was_measured_comes_back_from_a_checkpoint(tmp_path, monkeypatch):
    """A resumed run decides by the times it took, not by new ones."""
    from bayespare.training.checkpoint import Checkpoint

    clock = itertools.count(1)
    monkeypatch.setattr(
        module, "latency", lambda models, *_, **__: {n: {"1": 1 / next(clock)} for n in models}
    )
    problem = Problem(schedule=SHORT, budget=Budget(max_latency_ms=0.6))
    search = problem.search(Checkpoint(tmp_path))
    search.run()
    taken = {c.name: (c.macs, c.latency_ms) for c in search.candidates}
    assert all(time is not None and time <= 0.6 for _, time in taken.values())
    monkeypatch.setattr(module, "latency", never)
    again = problem.search(Checkpoint(tmp_path))
    again.run()
    assert {c.name: (c.macs, c.latency_ms) for c in again.candidates} == taken


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (Budget(max_params=1), r"max_params=1: the smallest structure found has \d+ parameters;"),
        (Budget(max_macs=1), r"max_macs=1: the smallest .* \d+ parameters and \d+ MACs; use more"),
        (Budget(sparsity=0.99), r"sparsity=0\.99: the smallest structure found has \d+"),
        (
            Budget(max_latency_ms=1e-6),
            r"max_latency_ms=1e-06: .* the fastest takes 0\.\d+ ms",
        ),
    ],
    ids=str,
)
def test_a_search_that_meets_no_limit_says_what_it_found(budget, says):
    schedule = replace(SHORT, warm=0, explore=1)
    with pytest.raises(BayespareError, match=says):
        Problem(schedule=schedule, budget=budget).search().run()
